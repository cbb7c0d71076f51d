"""What the sampling loop costs beside the network: `python benchmarks/loop.py`.

The network is a small U-Net of lesson 13, whose call takes 5 ms or more (`--images`, `--widths`),
or, with `--convolutions WIDTH`, three wide convolutions: the worst case, because each long call
leaves nothing of the loop in the processor's caches. The network keeps the time that is spent
inside it; the rest of a run's time is the loop's own. `sample` and the loops that the documentation
of diffusers shows are run in turn, `--repeats` times; the table has the medians. "Longer by"
compares with bare calls, `for _ in range(n): net(x, t)`, which spend some time outside the network
too. (To time the bare calls in another run and subtract is hopeless: two runs of the same calls
differ by more than the loop costs.)
"""
from __future__ import annotations

import argparse
import statistics
import time
import warnings

import torch
from torch import nn
from tqdm import tqdm

from diffusion_course.ddpm import linear_betas
from diffusion_course.predictions import Denoiser
from diffusion_course.samplers import ddim, dpmpp_2m, euler, heun, sample, trailing_grid, uniform_grid
from diffusion_course.schedules import DDPM, Linear
from diffusion_course.unet import UNet, UNetConfig

BARE = "bare calls of the network"


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
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    if args.convolutions: inner = Convolutions(args.convolutions)
    else: inner = UNet(UNetConfig(widths=tuple(args.widths), n_labels=0))
    net = Timed(inner).eval()
    x = torch.randn(args.images, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    n = args.steps
    ddpm = DDPM(linear_betas())
    flow = Denoiser(net, Linear())
    noise = Denoiser(net, ddpm, "eps")
    multistep = dict(name="DPMSolverMultistepScheduler", timestep_spacing="trailing")
    one_step = dict(name="DDIMScheduler", timestep_spacing="trailing", clip_sample=False)
    t = torch.rand(len(x), generator=torch.Generator().manual_seed(1))

    def bare() -> None:
        for _ in range(n): net(x, t)

    loops = {
        BARE: (n, bare),
        "sample, euler, linear path": (n, lambda: sample(flow, x, uniform_grid(n), euler())),
        "sample, heun, linear path": (2 * n, lambda: sample(flow, x, uniform_grid(n), heun())),
        "sample, ddim, DDPM": (n, lambda: sample(noise, x, trailing_grid(n, ddpm), ddim())),
        "sample, dpmpp_2m, DDPM": (n, lambda: sample(noise, x, trailing_grid(n, ddpm), dpmpp_2m())),
        "diffusers, FlowMatchEuler": (n, lambda: with_diffusers(net, x, n, "FlowMatchEulerDiscreteScheduler")),
        "diffusers, DDIM": (n, lambda: with_diffusers(net, x, n, **one_step)),
        "diffusers, DPM-Solver++(2M)": (n, lambda: with_diffusers(net, x, n, **multistep)),
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in loops}
    for turn in tqdm(range(args.repeats + 1), leave=False):
        for name, (calls, run) in loops.items():
            net.spent = 0.0
            begin = time.perf_counter()
            run()
            total = time.perf_counter() - begin
            if turn: times[name].append((net.spent / calls, (total - net.spent) / calls))  # the first warms up
    how = f"{n} steps, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"{args.images} images 3 x 32 x 32, {how}; medians of {args.repeats} turns\n")
    print("| loop | calls | ms a call, network | µs a call, loop | longer by |\n|---|---|---|---|---|")
    for name, (calls, _) in loops.items():
        inside = statistics.median(a for a, _ in times[name])
        outside = statistics.median(b for _, b in times[name])
        turns = zip(times[name], times[BARE], strict=True)
        longer = statistics.median((b - bare) / (a + bare) for (a, b), (_, bare) in turns)
        print(f"| {name} | {calls} | {1e3 * inside:.2f} | {1e6 * outside:.0f} | {longer:.1%} |")


if __name__ == "__main__": main()
