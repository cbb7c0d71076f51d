"""How well `fit` learns the toy sets: the table of lesson 5.

For each set and seed a fresh network is trained on fresh samples; 10,000 points are drawn with 50 Heun steps from the
averaged weights and compared with 10,000 fresh real ones. The distance (sliced Wasserstein) stands beside its floor,
between two sets of real points.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import torch
from measuring import Cell, described, spread, table
from tqdm import tqdm

from diffusion_course.distributions import toy
from diffusion_course.matching import MLP, fit
from diffusion_course.metrics import real_floor, sliced_wasserstein
from diffusion_course.predictions import Denoiser
from diffusion_course.schedules import Linear
from diffusion_course.solvers import heun_step, integrate

N = 10_000


def draw(name: str, n: int, generator: torch.Generator) -> torch.Tensor:
    "Fresh real samples, with a seed taken from the generator."
    return toy(name, n, seed=int(torch.randint(2**31, (1,), generator=generator)))


@torch.no_grad()
def samples(model: Denoiser, seed: int) -> torch.Tensor:
    "10,000 points of the model, 50 Heun steps."
    noise = torch.randn(N, 2, generator=torch.Generator().manual_seed(seed))
    *_, x = integrate(
        partial(heun_step, lambda x, t: model(x, t).velocity), noise, torch.linspace(0, 1, 51)
    )
    return x


def outside(x: torch.Tensor) -> float:
    "The fraction of points outside the checkerboard's cells."
    cell = x.floor()
    inside = (cell.sum(1) % 2 == 0) & (cell >= -2).all(1) & (cell <= 1).all(1)
    return 1 - inside.float().mean().item()


def measure(quick: bool = False) -> dict[str, Any]:
    """Distances, floors, and the seconds of training."""
    seeds, steps, repeats = (1, 100, 2) if quick else (3, 6000, 20)
    rows: list[list[Cell]] = []
    for name in tqdm(("moons", "checkerboard", "eight_gaussians"), "toys", leave=False):
        floor = real_floor(sliced_wasserstein, partial(draw, name), N, repeats=repeats).mean
        seconds, distances, fractions = [], [], []
        for seed in range(seeds):
            model = Denoiser(MLP(seed=seed), Linear())
            data = toy(name, 50_000, seed=100 + seed)
            start = time.perf_counter()
            history = fit(model, data, steps, seed=seed, progress=False)
            seconds.append(time.perf_counter() - start)
            x = samples(history.model, seed)
            distances.append(sliced_wasserstein(x, toy(name, N, seed=1000 + seed)))
            fractions.append(outside(x))
        mean = lambda v: sum(v) / len(v)
        board = f"{mean(fractions):.1%}" if name == "checkerboard" else None
        distance = mean(distances)
        rows.append(
            [
                name,
                spread(seconds),
                round(distance, 3),
                round(floor, 3),
                round(distance / floor, 2),
                board,
            ]
        )
    columns = ["set", "seconds", "distance", "floor", "ratio", "outside the cells"]
    return dict(
        how=described(__doc__),
        goals=[],
        plots=[],
        tables=[table(f"Means of {seeds} seeds, {steps:,} steps of 512 points", columns, rows)],
    )


if __name__ == "__main__":
    import report

    print(report.table(measure()["tables"][0]))
