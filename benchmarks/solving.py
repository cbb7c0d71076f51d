"""How many evaluations of an exact field a solver needs for a given error.

The field is exact, that of lesson 1's mixture on its way from noise to data, in double precision, so what is left of
an error is the solver's alone: the root mean square distance, over 128 starts, of the ends from those of DOP853 at
1e-11. With fixed steps it is the least number of equal steps whose error stays below the bound, with adaptive ones
the loosest of the tolerances tried, four a decade. On the straight path the others are torchdiffeq's solvers; on
DDPM's path (1,000 linear betas, trailing times, network of the noise) they are diffusers' schedulers.
"""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import peers
import torch
from measuring import Cell, described, goal, lines, table
from torch import Tensor
from tqdm import tqdm

from diffusion_course.ddpm import linear_betas
from diffusion_course.distributions import running_mixture
from diffusion_course.predictions import ExactDenoiser
from diffusion_course.samplers import (
    Stepper,
    adaptive,
    ddim,
    dpmpp_2m,
    euler,
    heun,
    midpoint,
    rk4,
    trailing_grid,
    trajectory,
    uniform_grid,
)
from diffusion_course.schedules import DDPM, Linear

Solve = Callable[
    [int], tuple[Tensor, int]
]  # steps (or minus a tolerance's place) -> ends, evaluations
Curve = list[tuple[int, float]]  # evaluations, error
MOST = 300  # evaluations, beyond which a solver is not followed
BOUNDS = {"straight path": (1e-2, 1e-3, 1e-4, 1e-6), "DDPM's path": (1e-1, 3e-2, 1e-2, 3e-3)}
PAIRS = {  # ours, and the solver of the others that is the same method, or the nearest to it
    "straight path": [
        ("euler", "torchdiffeq, euler"),
        ("midpoint", "torchdiffeq, midpoint"),
        ("heun", "torchdiffeq, heun2"),
        ("rk4", "torchdiffeq, rk4"),
        ("adaptive (DOP853)", "torchdiffeq, dopri5"),
        ("adaptive (DOP853)", "torchdiffeq, dopri8"),
    ],
    "DDPM's path": [
        ("ddim", "diffusers, DDIM"),
        ("ddim", "diffusers, Euler"),
        ("dpmpp_2m", "diffusers, DPM-Solver++(2M)"),
        ("dpmpp_2m", "diffusers, UniPC"),
        ("dpmpp_2m", "diffusers, DEIS"),
        ("heun", "diffusers, Heun"),
    ],
}
# Numbers of steps that divide 1,000, where others make the scheduler step past its own times.
COUNTS = {"diffusers, DDIM": (1, 2, 4, 5, 8, 10, 20, 25, 40, 50, 100, 125, 200, 250, 500)}
WHY = {
    "rk4": "torchdiffeq's rk4 is Kutta's 3/8 rule, whose error constant is smaller than that of the classical method,"
    " which lesson 2 builds; both are of order 4, with four evaluations a step",
    "adaptive (DOP853)": "DOP853 pays 12 evaluations a step, and two more to choose its first, so that it overtakes"
    " a pair of order 5 only at small errors; it is here for reference solutions",
    "heun": "diffusers' Heun steps in x / alpha over sigma / alpha, ours in x over t, where this path is less smooth",
    "dpmpp_2m": "UniPC corrects each step with the evaluation that the next one makes anyway, and so has order 3;"
    " dpmpp_2m has no corrector",
}


def root_mean_square(a: Tensor, b: Tensor) -> float:
    return (a - b).square().sum(1).mean().sqrt().item()


def start(n: int) -> Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def exact_ends(model: ExactDenoiser, x: Tensor) -> Tensor:
    """Where paths from x end: as x / alpha over sigma / alpha they are those of the straight path, which is smooth."""
    alpha, sigma = model.schedule.weights(0.0)
    t = alpha / (alpha + sigma)
    smooth = ExactDenoiser(model.mixture, Linear())
    return trajectory(
        smooth, x / (alpha + sigma), uniform_grid(1, start=t), adaptive(1e-11, 1e-11)
    ).xs[-1]


def of_course(
    model: ExactDenoiser,
    x: Tensor,
    stepper: Stepper,
    grid: Callable[[int], Tensor],
    n: int,
) -> tuple[Tensor, int]:
    """Our sampler with n steps."""
    run = trajectory(model, x, grid(n), stepper)
    return run.xs[-1], run.nfe


def of_torchdiffeq(
    model: ExactDenoiser,
    x: Tensor,
    method: str,
    options: Callable[[float], dict],
    n: float,
) -> tuple[Tensor, int]:
    """odeint with a counted field."""
    count = 0

    def field(t: Tensor, x: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return model(x, t).velocity

    chosen = options(n)
    ts = chosen.pop("ts", torch.tensor([0.0, 1.0], dtype=torch.float64))
    with torch.no_grad():
        ends = peers.load("torchdiffeq").odeint(field, x, ts, method=method, **chosen)[-1]
    return ends, count


def of_diffusers(
    model: ExactDenoiser, x: Tensor, name: str, options: dict[str, Any], n: int
) -> tuple[Tensor, int]:
    """The loop of its documentation, with our betas in double precision where the scheduler keeps them."""
    import diffusers

    schedule: Any = model.schedule
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        s = getattr(diffusers, name)(
            num_train_timesteps=1000,
            trained_betas=schedule.betas.tolist(),
            timestep_spacing="trailing",
            prediction_type="epsilon",
            **options,
        )
    s.set_timesteps(n)
    count = 0
    z = x * s.init_noise_sigma
    for i in s.timesteps:
        t = schedule.t_of(i.long())
        scaled = s.scale_model_input(z, i).double()
        p = model(scaled, t)
        z = s.step(p.eps, i, z).prev_sample.double()
        count += 1
    return z, count


def fewest(
    solve: Solve,
    truth: Tensor,
    bound: float,
    evaluations: int,
    step_counts: Sequence[int] = (),
) -> tuple[int | None, Curve]:
    """The least number of evaluations with an error below the bound, to 3 %: doubling, then halving the interval."""
    curve: Curve = []

    def good(n: int) -> bool:
        ends, nfe = solve(n)
        curve.append((nfe, root_mean_square(ends, truth)))
        return curve[-1][1] <= bound

    low, high = 0, 1
    if step_counts:
        return next(
            (solve(n)[1] for n in step_counts if n * evaluations <= 2 * MOST and good(n)), None
        ), curve
    while not good(high):
        low, high = high, 2 * high
        if high * evaluations > 2 * MOST:
            return None, curve
    while high - low > max(1, high // 32):
        middle = (low + high) // 2
        low, high = (low, middle) if good(middle) else (middle, high)
    return solve(high)[1], curve


def loosest(
    solve: Callable[[float], tuple[Tensor, int]], truth: Tensor, bound: float
) -> tuple[int | None, Curve]:
    """Evaluations at the loosest tolerance whose error stays below the bound, four tolerances a decade."""
    curve: Curve = []
    for k in range(2, 45):
        ends, nfe = solve(10 ** (-k / 4))
        curve.append((nfe, root_mean_square(ends, truth)))
        if curve[-1][1] <= bound:
            return nfe, curve
        if nfe > MOST:
            break
    return None, curve


def straight(x: Tensor) -> tuple[dict[str, tuple[Solve, int]], dict[str, Callable], ExactDenoiser]:
    """Fixed solvers with their evaluations a step, and adaptive ones, on the straight path."""
    model = ExactDenoiser(running_mixture(), Linear())
    fixed: dict[str, tuple[Solve, int]] = {
        name: (partial(of_course, model, x, make(), uniform_grid), cost)
        for name, make, cost in (
            ("euler", euler, 1),
            ("midpoint", midpoint, 2),
            ("heun", heun, 2),
            ("rk4", rk4, 4),
            ("dpmpp_2m", dpmpp_2m, 1),
        )
    }
    free: dict[str, Callable] = {
        "adaptive (DOP853)": lambda tol: of_course(model, x, adaptive(tol, tol), uniform_grid, 1)
    }
    if peers.has("torchdiffeq"):
        steps = lambda n: dict(ts=torch.linspace(0, 1, n + 1, dtype=torch.float64))
        for method, cost in (("euler", 1), ("midpoint", 2), ("heun2", 2), ("rk4", 4)):
            fixed[f"torchdiffeq, {method}"] = partial(of_torchdiffeq, model, x, method, steps), cost
        for method in ("dopri5", "dopri8", "bosh3"):
            # step_t: a step ends at t = 1, beyond which the field isn't defined
            end = torch.tensor([1.0], dtype=torch.float64)
            options = lambda tol, end=end: dict(rtol=tol, atol=tol, options=dict(step_t=end))
            free[f"torchdiffeq, {method}"] = partial(of_torchdiffeq, model, x, method, options)
    return fixed, free, model


def discrete(x: Tensor) -> tuple[dict[str, tuple[Solve, int]], dict[str, Callable], ExactDenoiser]:
    """Samplers of DDPM's path."""
    schedule = DDPM(linear_betas(1000))
    model = ExactDenoiser(running_mixture(), schedule)
    grid = lambda n: trailing_grid(n, schedule)
    fixed: dict[str, tuple[Solve, int]] = {
        name: (partial(of_course, model, x, make(), grid), cost)
        for name, make, cost in (("ddim", ddim, 1), ("dpmpp_2m", dpmpp_2m, 1), ("heun", heun, 2))
    }
    if peers.has("diffusers"):
        for name, scheduler, options, cost in (
            ("DDIM", "DDIMScheduler", dict(clip_sample=False, set_alpha_to_one=True), 1),
            ("Euler", "EulerDiscreteScheduler", {}, 1),
            ("DPM-Solver++(2M)", "DPMSolverMultistepScheduler", dict(final_sigmas_type="zero"), 1),
            ("UniPC", "UniPCMultistepScheduler", dict(final_sigmas_type="zero"), 1),
            ("DEIS", "DEISMultistepScheduler", {}, 1),
            ("Heun", "HeunDiscreteScheduler", {}, 2),
        ):
            fixed[f"diffusers, {name}"] = partial(of_diffusers, model, x, scheduler, options), cost
    return fixed, {}, model


def measure(quick: bool = False) -> dict[str, Any]:
    """Evaluations to each bound, on both paths."""
    x = start(16 if quick else 128)
    tables, goals, plots = [], [], []
    for path, make in {"straight path": straight, "DDPM's path": discrete}.items():
        fixed, free, model = make(x)
        truth = exact_ends(model, x)
        bounds = BOUNDS[path][:2] if quick else BOUNDS[path]
        needed: dict[str, list[int | None]] = {}
        curves: dict[str, Curve] = {}
        for name in tqdm([*fixed, *free], path, leave=False):
            needed[name], curves[name] = [], []
            solve = cache(fixed[name][0] if name in fixed else free[name])
            for bound in bounds:
                if name in fixed:
                    found, curve = fewest(solve, truth, bound, fixed[name][1], COUNTS.get(name, ()))
                else:
                    found, curve = loosest(solve, truth, bound)
                needed[name].append(found)
                curves[name] += curve
        rows: list[list[Cell]] = [
            [label(name), *(f"more than {MOST:,}" if n is None else n for n in found)]
            for name, found in needed.items()
        ]
        tables.append(
            table(
                f"Evaluations for an error of at most this, {path}",
                ["solver", *(f"{b:g}" for b in bounds)],
                rows,
            )
        )
        for ours, other in PAIRS[path]:
            both = [
                (a, b) for a, b in zip(needed[ours], needed.get(other, []), strict=False) if a and b
            ]
            if both:
                goals.append(
                    goal(
                        f"{path}: {ours} needs no more evaluations than {other}, at any of these errors",
                        max(a / b for a, b in both),
                        1.0,
                        unit="times",
                        why=WHY.get(ours, ""),
                    )
                )
        tidy = {label(name): best_of(curve) for name, curve in curves.items()}
        plots.append(
            lines(
                "straight" if make is straight else "ddpm",
                f"Error and evaluations, {path}",
                tidy,
                ("evaluations of the field", "root mean square error"),
            )
        )
    return dict(how=described(__doc__), tables=tables, goals=goals, plots=plots)


def label(name: str) -> str:
    """The solver's name, with whose it is."""
    return name if ", " in name else f"ours, {name}"


def best_of(curve: Curve) -> tuple[list[int], list[float]]:
    """The points of a curve in order, each number of evaluations once."""
    points = dict(
        sorted((nfe, error) for nfe, error in curve if error > 1e-11 and math.isfinite(error))
    )
    return list(points), list(points.values())
