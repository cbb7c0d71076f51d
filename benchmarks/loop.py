"""What a sampling loop costs beside the network, in this library and in others.

The network keeps the time that is spent inside it; the rest of a run's time is the loop's own, and is given for a
step, in processor time of the one thread. All loops take turns. In the plane the network is lesson 5's MLP on
1,000 points; the images' is a small U-Net of lesson 13 on one image, whose call takes 5 ms or more. With more
threads, what is measured is mostly how fast sleeping threads wake. (To time bare calls of the network in another
run and subtract is hopeless: two runs of the same calls differ by more than the loop costs.)

`python benchmarks/loop.py --before FOLDER` takes another checkout of the course into the same turns, so that a
change of the loop shows; `--field` times `integrate` on a field of arithmetic.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peers
import torch
from measuring import Run, bars, described, goal, ratios, scaled, spread, table, turns
from torch import Tensor, nn

from diffusion_course.matching import MLP
from diffusion_course.unet import UNet, UNetConfig

OURS = "ours"
Loops = dict[str, dict[str, Callable[[], object]]]  # stepper: library: run
WHY = (
    "our step does what the others leave out (`python benchmarks/loop.py --profile`): times"
    " checked and kept in double precision, one made for each sample, shapes of answer and step looked at, singular"
    " ends looked up, eval mode held, evaluations counted, first predictions kept for multistep methods;"
    " k-diffusion is given noise ratios and knows no schedule, torchdiffeq knows no model"
)


class Timed(nn.Module):
    """A network that keeps how long it was busy."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net, self.spent = net, 0.0

    def forward(self, x: Tensor, t: Tensor, **kwargs: object) -> Tensor:
        begin = time.thread_time()
        y = self.net(x, t.expand(len(x)).to(x.dtype))  # diffusers counts times in whole numbers
        self.spent += time.thread_time() - begin
        return y


class Arithmetic(nn.Module):
    """A field that costs next to nothing: u(x, t) = (1 - t) x."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return (1 - t) * x


class Small(nn.Module):
    """The network as smalldiffusion asks for it: rand_input and predict_eps_cfg come from its mixin."""

    def __init__(self, net: nn.Module, shape: tuple[int, ...]):
        super().__init__()
        self.net, self.input_dims = net, shape

    def forward(self, x: Tensor, sigma: Tensor, cond: None = None) -> Tensor:
        return self.net(x, sigma.float())


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


def our_loops(package: str, net: nn.Module, x: Tensor, n: int) -> dict[str, Run]:
    """`sample` with every stepper, in one edition of the course."""
    p, s, schedules, ddpm = (
        import_module(f"{package}.{name}")
        for name in ("predictions", "samplers", "schedules", "ddpm")
    )
    betas = schedules.DDPM(ddpm.linear_betas())
    flow, noise = p.Denoiser(net, schedules.Linear()), p.Denoiser(net, betas, "eps")
    straight, trailing = s.uniform_grid(n), s.trailing_grid(n, betas)
    runs = {
        name: lambda make=make: s.sample(flow, x, straight, make())
        for name, make in dict(euler=s.euler, midpoint=s.midpoint, heun=s.heun, rk4=s.rk4).items()
    }
    discrete = dict(ddim=s.ddim, dpmpp_2m=s.dpmpp_2m, ancestral=s.ancestral)
    return runs | {
        name: lambda make=make: s.sample(noise, x, trailing, make())
        for name, make in discrete.items()
    }


def with_diffusers(net: nn.Module, x: Tensor, steps: int, name: str, **options: object) -> Tensor:
    """The loop of its documentation: predict, step."""
    import diffusers

    scheduler = getattr(diffusers, name)(**options)
    scheduler.set_timesteps(steps)
    for i in scheduler.timesteps:
        z = scheduler.scale_model_input(x, i) if name.startswith("Heun") else x
        x = scheduler.step(net(z, i), i, x).prev_sample
    return x


def their_loops(net: nn.Module, x: Tensor, n: int) -> Loops:
    """The same steppers of the others, as far as they have them."""
    found: Loops = {}
    add = lambda stepper, library, run: found.setdefault(stepper, {}).update({library: run})
    if peers.has("diffusers"):
        trailing = dict(timestep_spacing="trailing")
        for stepper, name, options in (
            ("euler", "FlowMatchEulerDiscreteScheduler", {}),
            ("heun", "HeunDiscreteScheduler", trailing),
            ("ddim", "DDIMScheduler", trailing | dict(clip_sample=False)),
            ("dpmpp_2m", "DPMSolverMultistepScheduler", trailing),
            ("ancestral", "DDPMScheduler", trailing | dict(clip_sample=False)),
        ):
            add(
                stepper,
                "diffusers",
                lambda name=name, options=options: with_diffusers(net, x, n, name, **options),
            )
    if peers.has("azula"):
        a, noise = peers.load("azula.sample"), peers.load("azula.noise")
        denoise = peers.load("azula.denoise")
        straight = denoise.KarrasDenoiser(net, noise.RectifiedSchedule())
        preserving = denoise.KarrasDenoiser(net, noise.VPSchedule())
        for stepper, make, model in (
            ("euler", a.EulerSampler, straight),
            ("heun", a.HeunSampler, straight),
            ("ddim", a.DDIMSampler, preserving),
            ("dpmpp_2m", a.xEABSampler, preserving),
            ("ancestral", a.DDPMSampler, preserving),
        ):
            add(
                stepper,
                "azula",
                lambda make=make, model=model: make(model, steps=n, silent=True)(x),
            )
    if peers.has("smalldiffusion"):
        small = peers.load("smalldiffusion")
        model = type("SmallModel", (Small, small.ModelMixin), {})(net, tuple(x.shape[1:]))
        here = SimpleNamespace(
            device=x.device
        )  # in place of accelerate's Accelerator, which only moves x there
        schedule = small.ScheduleDDPM()
        for stepper, mu in (("ddim", 0.0), ("ancestral", 0.5)):
            add(
                stepper,
                "smalldiffusion",
                lambda mu=mu: [
                    *small.samples(model, schedule.sample_sigmas(n), mu=mu, xt=x, accelerator=here)
                ],
            )
    if peers.has("k_diffusion.sampling"):
        k = peers.load("k_diffusion.sampling")
        sigmas = k.get_sigmas_karras(n, 0.01, 80.0)
        for stepper, run in (
            ("euler", k.sample_euler),
            ("heun", k.sample_heun),
            ("dpmpp_2m", k.sample_dpmpp_2m),
            ("ancestral", k.sample_euler_ancestral),
        ):
            add(stepper, "k-diffusion", lambda run=run: run(net, x, sigmas, disable=True))
    if peers.has("torchdiffeq"):
        odeint = peers.load("torchdiffeq").odeint
        ts = torch.linspace(0, 1, n + 1)
        for name in ("euler", "midpoint", "rk4"):
            add(
                name,
                "torchdiffeq",
                lambda name=name: odeint(lambda t, x: net(x, t), x, ts, method=name),
            )
    if peers.has("flow_matching.solver"):
        solver = peers.load("flow_matching.solver")
        wrapper = peers.load("flow_matching.utils").ModelWrapper
        wrapped = type(
            "Wrapped", (wrapper,), {"forward": lambda self, x, t, **_: self.model(x, t)}
        )(net)
        for name in ("euler", "midpoint"):
            add(
                name,
                "flow_matching",
                lambda name=name: solver.ODESolver(wrapped).sample(
                    x, step_size=1 / n, method=name, time_grid=torch.tensor([0.0, 1.0])
                ),
            )
    return found


@torch.no_grad()
def loops_beside(
    net: nn.Module,
    x: Tensor,
    n: int,
    repeats: int,
    editions: dict[str, str],
    what: str,
) -> dict[str, dict[str, list[float]]]:
    """For each stepper and library: seconds of the loop itself, a step, of each turn."""
    timed = Timed(net).eval()
    found = their_loops(timed, x, n)
    for mark, package in editions.items():
        for stepper, run in our_loops(package, timed, x, n).items():
            found[stepper] = {mark: run} | found.get(stepper, {})
    times: dict[str, dict[str, list[float]]] = {}

    def outside(run: Callable[[], object]) -> float:
        timed.spent = 0.0
        begin = time.thread_time()
        run()
        return (time.thread_time() - begin - timed.spent) / n

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for stepper, runs in found.items():
            loops = {library: lambda run=run: outside(run) for library, run in runs.items()}
            times[stepper] = turns(loops, repeats, f"{what}, {stepper}")
    return times


def single_thread(measure: Callable) -> Callable:
    """The measurement in one thread, and the number of threads put back."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return measure(*args, **kwargs)
        finally:
            torch.set_num_threads(threads)

    return wrapped


def settings(n_images: int = 1, n_points: int = 1000) -> dict[str, tuple[nn.Module, Tensor]]:
    """The two networks, each with what it is given."""
    g = torch.Generator().manual_seed(0)
    return {
        "plane": (MLP(), torch.randn(n_points, 2, generator=g)),
        "images": (
            UNet(UNetConfig(widths=(64, 128), attention=(8,), n_labels=0)),
            torch.randn(n_images, 3, 32, 32, generator=g),
        ),
    }


@single_thread
def measure(quick: bool = False, before: Path | None = None) -> dict[str, Any]:
    """The loops of all libraries, in the plane and on images."""
    repeats = 2 if quick else 15
    editions = {OURS: "diffusion_course"} | ({"before": import_before(before)} if before else {})
    tables, goals, plots = [], [], []
    for what, (net, x) in settings().items():
        n = (20 if quick else 50) if what == "plane" else 3 if quick else 30
        times = loops_beside(
            net, x, n, repeats if what == "plane" else max(2, repeats // 2), editions, what
        )
        rows = [
            [stepper, library, scaled(spread(v), 1e6), ratios(v, of[OURS])]
            for stepper, of in times.items()
            for library, v in of.items()
        ]
        size = f"{len(x):,} points" if what == "plane" else f"{len(x)} image of 3 x 32 x 32"
        tables.append(
            table(
                f"{what.capitalize()}: {size}, {n} steps",
                ["stepper", "library", "loop's own time, µs a step", "times ours"],
                rows,
            )
        )
        for stepper, of in times.items():
            others = {k: spread(v)["median"] for k, v in of.items() if k not in editions}
            if not others:
                continue
            best = min(others, key=lambda k: others[k])
            goals.append(
                goal(
                    f"{what}, {stepper}: no loop of the others costs less ({best} the least)",
                    ratios(of[OURS], of[best])["median"],
                    1.0,
                    unit="times",
                    why=WHY,
                )
            )
        values = {
            f"{library}, {stepper}": scaled(spread(v), 1e6)
            for stepper, of in times.items()
            for library, v in of.items()
        }
        plots.append(bars(what, f"The loop's own time, {what}", values, "µs a step"))
    return dict(how=described(__doc__), tables=tables, goals=goals, plots=plots)


@single_thread
@torch.no_grad()
def field(before: Path | None, n: int = 50, repeats: int = 20) -> dict[str, Any]:
    """`integrate` on a field of arithmetic, in the editions of the course."""
    u, ts = Arithmetic(), torch.linspace(0, 1, n + 1)
    x = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
    runs: dict[str, Run] = {}
    for mark, package in (
        {OURS: "diffusion_course"} | ({"before": import_before(before)} if before else {})
    ).items():
        s = import_module(f"{package}.solvers")
        for name in ("euler_step", "rk4_step"):
            step = vars(s)[name]
            runs[f"{mark}, {name}"] = lambda s=s, step=step: [
                *s.integrate(lambda x, t, r: step(u, x, t, r), x, ts)
            ]
    rows = [[name, scaled(spread(v), 1e6 / n)] for name, v in turns(runs, repeats).items()]
    return table("integrate on 1,000 points", ["loop", "µs a step"], rows)


def profile(steps: int = 400) -> None:
    """Where our Euler loop spends its time, in Python's own profiler, the network beside it."""
    import cProfile
    import pstats

    net, x = settings()["plane"]
    run = our_loops("diffusion_course", Timed(net).eval(), x, steps)["euler"]
    run()
    with cProfile.Profile() as p:
        run()
    pstats.Stats(p).sort_stats("tottime").print_stats(15)


def main() -> None:
    """The tables, printed."""
    import report

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--before", type=Path, metavar="FOLDER", help="another checkout of the course"
    )
    parser.add_argument("--field", action="store_true", help="a field on 1,000 points, no network")
    parser.add_argument(
        "--profile", action="store_true", help="where our Euler loop spends its time"
    )
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    if args.profile:
        profile()
    elif args.field:
        print(report.table(field(args.before)))
    else:
        print(*map(report.table, measure(args.quick, args.before)["tables"]), sep="\n\n")


if __name__ == "__main__":
    main()
