"""What the sampling loop costs beside the network: `python benchmarks/loop.py`.

The network is a small U-Net of lesson 13, whose call takes 5 ms or more (`--images`, `--widths`),
or, with `--convolutions WIDTH`, three wide convolutions: the worst case, because each long call
leaves nothing of the loop in the processor's caches. The network keeps the time that is spent
inside it; the rest of a run's time is the loop's own. `sample` and the loops that the documentation
of diffusers shows are run in turn, `--repeats` times; the table has the medians. "Longer by"
compares with bare calls, `for _ in range(n): net(x, t)`, which spend some time outside the network
too. (To time the bare calls in another run and subtract is hopeless: two runs of the same calls
differ by more than the loop costs.)

`--before FOLDER` takes another checkout of the course into the same turns, so that a change of the
loop shows; `--field` times `integrate` on 1,000 points and a field of arithmetic in place of a network.
"""
from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from diffusion_course.unet import UNet, UNetConfig

BARE = "bare calls of the network"
Loops = dict[str, tuple[int, Callable[[], object]]]  # name: (calls of the network, run)


class Convolutions(nn.Module):
    """Three convolutions on images (B, 3, 32, 32), blind to t.

    With ReLU, because an activation with an exponential makes denormal numbers, slow ones, of inputs
    that one loop meets and another not.
    """

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(width, 3, 3, padding=1),
        )

    def forward(self, x, t): return 0.1 * self.layers(x)


class Timed(nn.Module):
    """A network that keeps how long it was busy."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net, self.spent = net, 0.0

    def forward(self, x, t):
        begin = time.perf_counter()
        y = self.net(x, t)
        self.spent += time.perf_counter() - begin
        return y


class Arithmetic(nn.Module):
    """A field that costs next to nothing: u(x, t) = (1 - t) x."""

    def forward(self, x, t): return (1 - t) * x


def import_before(folder: Path) -> str:
    """The package of another checkout beside the installed one, under the name that is returned."""
    home = folder / "diffusion_course"
    spec = importlib.util.spec_from_file_location(
        "before", home / "__init__.py", submodule_search_locations=[str(home)]
    )
    if spec is None or spec.loader is None or not home.is_dir():
        raise SystemExit(f"{folder} is no checkout of the course")
    sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[spec.name])
    return spec.name


def network_loops(package: str, net: nn.Module, x: Tensor, n: int) -> Loops:
    """The loops of one edition of the course."""
    p, s, schedules, ddpm = (
        import_module(f"{package}.{name}") for name in ("predictions", "samplers", "schedules", "ddpm")
    )
    betas = schedules.DDPM(ddpm.linear_betas())
    flow = p.Denoiser(net, schedules.Linear())
    noise = p.Denoiser(net, betas, "eps")
    return {
        "sample, euler, linear path": (n, lambda: s.sample(flow, x, s.uniform_grid(n), s.euler())),
        "sample, heun, linear path": (2 * n, lambda: s.sample(flow, x, s.uniform_grid(n), s.heun())),
        "sample, ddim, DDPM": (n, lambda: s.sample(noise, x, s.trailing_grid(n, betas), s.ddim())),
        "sample, dpmpp_2m, DDPM": (n, lambda: s.sample(noise, x, s.trailing_grid(n, betas), s.dpmpp_2m())),
    }


def field_loops(package: str, u: nn.Module, x: Tensor, n: int) -> Loops:
    """`integrate` on a field, in one edition of the course."""
    solvers = import_module(f"{package}.solvers")
    ts = torch.linspace(0, 1, n + 1)
    def run(step): return lambda: [*solvers.integrate(lambda x, t, s: step(u, x, t, s), x, ts)]
    return {
        "integrate, euler_step": (n, run(solvers.euler_step)),
        "integrate, rk4_step": (4 * n, run(solvers.rk4_step)),
    }


def with_diffusers(net: nn.Module, x: torch.Tensor, steps: int, name: str, **options) -> None:
    """The loop of its documentation: predict, step."""
    import diffusers

    scheduler = getattr(diffusers, name)(**options)
    scheduler.set_timesteps(steps)
    for i in scheduler.timesteps:
        x = scheduler.step(net(x, i.expand(len(x))), i, x).prev_sample


@torch.no_grad()
def main() -> None:
    """Time the loops and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128], help="of the U-Net")
    parser.add_argument("--convolutions", type=int, metavar="WIDTH",
                        help="three convolutions of this width in place of the U-Net")
    parser.add_argument("--threads", type=int, default=1,
                        help="with more than one, what is measured is mostly how fast sleeping threads wake")
    parser.add_argument("--before", type=Path, metavar="FOLDER", help="another checkout of the course")
    parser.add_argument("--field", action="store_true", help="a field on 1,000 points, no network")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    if args.field: inner = Arithmetic()
    elif args.convolutions: inner = Convolutions(args.convolutions)
    else: inner = UNet(UNetConfig(widths=tuple(args.widths), attention=(8,), n_labels=0))
    net = Timed(inner).eval()
    shape = (1000, 2) if args.field else (args.images, 3, 32, 32)
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    n = args.steps
    t = torch.rand((), generator=torch.Generator().manual_seed(1))
    if not args.field: t = t.expand(len(x))

    def bare() -> None:
        for _ in range(n): net(x, t)

    loops: Loops = {BARE: (n, bare)}
    editions = {"": "diffusion_course"}
    if args.before: editions[", before"] = import_before(args.before)
    for mark, package in editions.items():
        make = field_loops if args.field else network_loops
        loops |= {name + mark: loop for name, loop in make(package, net, x, n).items()}
    if not args.field:
        multistep = dict(name="DPMSolverMultistepScheduler", timestep_spacing="trailing")
        one_step = dict(name="DDIMScheduler", timestep_spacing="trailing", clip_sample=False)
        flow_match = dict(name="FlowMatchEulerDiscreteScheduler")
        loops |= {
            "diffusers, FlowMatchEuler": (n, lambda: with_diffusers(net, x, n, **flow_match)),
            "diffusers, DDIM": (n, lambda: with_diffusers(net, x, n, **one_step)),
            "diffusers, DPM-Solver++(2M)": (n, lambda: with_diffusers(net, x, n, **multistep)),
        }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in loops}
    for turn in tqdm(range(args.repeats + 1), leave=False):
        order = list(loops.items())
        for name, (calls, run) in order if turn % 2 else reversed(order):
            net.spent = 0.0
            begin = time.perf_counter()
            run()
            total = time.perf_counter() - begin
            if turn: times[name].append((net.spent / calls, (total - net.spent) / calls))  # the first warms up
    how = f"{n} steps, {torch.get_num_threads()} threads, torch {torch.__version__}"
    what = "1,000 points" if args.field else f"{args.images} images 3 x 32 x 32"
    print(f"{what}, {how}; medians of {args.repeats} turns\n")
    print("| loop | calls | µs a call, network | µs a call, loop | longer by |\n|---|---|---|---|---|")
    for name, (calls, _) in loops.items():
        inside = statistics.median(a for a, _ in times[name])
        outside = statistics.median(b for _, b in times[name])
        turns = zip(times[name], times[BARE], strict=True)
        longer = statistics.median((b - bare) / (a + bare) for (a, b), (_, bare) in turns)
        print(f"| {name} | {calls} | {1e6 * inside:.1f} | {1e6 * outside:.1f} | {longer:.1%} |")


if __name__ == "__main__": main()
