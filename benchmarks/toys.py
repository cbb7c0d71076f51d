"""How well and how fast `fit` learns the toy sets: `python benchmarks/toys.py [--seeds N] [--steps
N]`.

For each set and seed a fresh network is trained on fresh samples; 10,000 points are drawn with 50
Heun steps from the averaged weights and compared with 10,000 fresh real ones. The distance (sliced
Wasserstein) is given as a multiple of its floor, between two sets of real points.
"""
from __future__ import annotations

import argparse
import time
from functools import partial

import torch

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
    *_, x = integrate(partial(heun_step, lambda x, t: model(x, t).velocity), noise, torch.linspace(0, 1, 51))
    return x


def outside(x: torch.Tensor) -> float:
    "The fraction of points outside the checkerboard's cells."
    cell = x.floor()
    inside = (cell.sum(1) % 2 == 0) & (cell >= -2).all(1) & (cell <= 1).all(1)
    return 1 - inside.float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6000)
    args = parser.parse_args()
    columns = f"{'set':16s} {'seconds':>8s} {'distance':>9s} {'floor':>7s} {'ratio':>6s} {'outside':>8s}"
    print(f"{columns}   (mean of {args.seeds} seeds, {args.steps} steps)")
    for name in ("moons", "checkerboard", "eight_gaussians"):
        floor = real_floor(sliced_wasserstein, partial(draw, name), N, repeats=20).mean
        seconds, distances, fractions = [], [], []
        for seed in range(args.seeds):
            model = Denoiser(MLP(seed=seed), Linear())
            data = toy(name, 50_000, seed=100 + seed)
            start = time.perf_counter()
            history = fit(model, data, args.steps, seed=seed, progress=False)
            seconds.append(time.perf_counter() - start)
            x = samples(history.model, seed)
            distances.append(sliced_wasserstein(x, toy(name, N, seed=1000 + seed)))
            fractions.append(outside(x))
        mean = lambda v: sum(v) / len(v)
        distance = mean(distances)
        board = f"{mean(fractions):8.1%}" if name == "checkerboard" else f"{'':8s}"
        row = f"{max(seconds):8.1f} {distance:9.4f} {floor:7.4f} {distance / floor:6.2f} {board}"
        print(f"{name:16s} {row}", flush=True)


if __name__ == "__main__":
    main()
