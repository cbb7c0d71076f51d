"""How straight and how fast flows get by pairing noise with data: the table of lesson 11.

Eight Gaussians (standard deviation 0.316) on a circle of radius 5, from N(0, I), batches of 512. For each seed three
networks of one size are trained for as many steps: on independent pairs, on pairs from minibatch optimal transport,
and on the pairs of one reflow of the first. Energy: path energy E of 8,192 starts, 100 Heun steps, as
(E - W2²) / W2², where W2² is that of N(0, I) and the data, by exact assignment of evenly spread points (a scrambled
Sobol sequence, the mean of eight draws of 1,024; what is left of its bias shows in the value for 2,048 points). A
small negative value means a model whose ends lie a little nearer than the data. One step, 100 steps: 2-Wasserstein
distance of 1,000 samples (Euler, Heun) from 1,000 real points, the mean of five draws.
"""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from measuring import Cell, described, goal, spread, table
from torch import Tensor
from tqdm import tqdm

from diffusion_course.couplings import ot_matching_loss, path_energy, reflow_pairs
from diffusion_course.distributions import GaussianMixture
from diffusion_course.matching import MLP, fit
from diffusion_course.metrics import real_floor, wasserstein2
from diffusion_course.predictions import Denoiser
from diffusion_course.samplers import Stepper, euler, heun, sample, uniform_grid
from diffusion_course.schedules import Linear

ANGLES = torch.arange(8) * math.pi / 4
DATA = GaussianMixture(5 * torch.stack([ANGLES.cos(), ANGLES.sin()], 1), [0.316] * 8)
DRAWS = 5  # of 1,000 points, for each distance


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(n: int, seed: int) -> Tensor:
    return torch.randn(n, 2, generator=rng(seed))


def even(n: int, seed: int) -> tuple[Tensor, Tensor]:
    "n points of N(0, I) and n of the data, spread more evenly than by chance; n a power of two."
    u = (
        torch.quasirandom.SobolEngine(5, scramble=True, seed=seed)
        .draw(n, dtype=torch.float64)
        .clamp(1e-9, 1 - 1e-9)
    )
    z = torch.special.ndtri(u[:, :4])
    k = (8 * u[:, 4]).long()
    return z[:, :2].float(), (DATA.means[k] + DATA.stds[k, None] * z[:, 2:]).float()


def squared_w2(n: int, draws: int) -> Tensor:
    "W2² of N(0, I) and the data from n points of each, for as many independent draws."
    return torch.tensor([wasserstein2(*even(n, seed)) ** 2 for seed in range(draws)])


def distance(model: Denoiser, steps: int, stepper: Stepper) -> float:
    "The mean W2 of 1,000 samples to 1,000 real points."
    ends = (sample(model, noise(1000, 200 + k), uniform_grid(steps), stepper) for k in range(DRAWS))
    return sum(wasserstein2(x, DATA.sample(1000, rng(300 + k))) for k, x in enumerate(ends)) / DRAWS


def models(seed: int, steps: int, width: int, n: int) -> dict[str, tuple[Denoiser, float]]:
    "The three models by name, with the seconds that each took."
    data = DATA.sample(n, rng(1000 + seed))
    trained: dict[str, tuple[Denoiser, float]] = {}

    def train(name: str, make_data, **options) -> None:
        start = time.perf_counter()
        model = Denoiser(MLP(width=width, seed=seed), Linear())
        history = fit(
            model, make_data(), steps, batch_size=512, seed=seed, progress=False, **options
        )
        trained[name] = history.model, time.perf_counter() - start

    train("independent", lambda: data)
    train("minibatch OT", lambda: data, loss=ot_matching_loss)
    train(
        "reflowed", lambda: reflow_pairs(trained["independent"][0], noise(n, 2000 + seed), steps=50)
    )
    return trained


def measure(quick: bool = False) -> dict[str, Any]:
    """Energies and distances, and what lesson 11 says of them."""
    seeds, steps, width = (1, 10, 32) if quick else (2, 3000, 128)
    draws = ((512, 1),) if quick else ((2048, 2), (1024, 8))
    squared = {n: squared_w2(n, k) for n, k in draws}
    shown = "; ".join(
        f"{v.mean():.3f} ± {v.std(correction=0):.3f} from {n:,} points" for n, v in squared.items()
    )
    w2_squared = squared[draws[-1][0]].mean().item()
    floor = real_floor(wasserstein2, DATA.sample, 1000, repeats=2 if quick else 20)
    found: dict[str, list[tuple[float, ...]]] = {}
    for seed in tqdm(range(seeds), "couplings", leave=False):
        for name, (model, seconds) in models(seed, steps, width, 1024 if quick else 50_000).items():
            energy = (
                path_energy(model, even(256 if quick else 8192, 100)[0], 10 if quick else 100)
                / w2_squared
                - 1
            )
            row = (
                energy,
                distance(model, 1, euler()),
                distance(model, 5 if quick else 100, heun()),
                seconds,
            )
            found.setdefault(name, []).append(row)
    rows: list[list[Cell]] = []
    for name, of_seeds in found.items():
        energy, one, hundred, _ = torch.tensor(of_seeds).mean(0).tolist()
        rows.append(
            [
                name,
                round(energy, 3),
                round(one, 2),
                round(hundred, 2),
                spread([r[3] for r in of_seeds]),
            ]
        )
    factor = min(a[1] / b[1] for a, b in zip(found["independent"], found["reflowed"], strict=True))
    goals = [
        goal(
            "energy with minibatch OT, worst seed", max(r[0] for r in found["minibatch OT"]), 0.05
        ),
        goal(
            "energy of independent pairs, worst seed",
            min(r[0] for r in found["independent"]),
            0.15,
            False,
        ),
        goal("one step after a reflow, worst seed", factor, 5, False, "times nearer"),
    ]
    columns = ["trained on", "(E - W2²) / W2²", "W2, one step", "W2, 100 Heun steps", "seconds"]
    note = (
        f"W2²: {shown}. Floor of W2, two real samples of 1,000: {floor.mean:.2f} ± {floor.std:.2f}."
    )
    title = f"Means of {seeds} seeds, {steps:,} steps, width {width}"
    return dict(
        how=described(__doc__), goals=goals, plots=[], tables=[table(title, columns, rows, note)]
    )


if __name__ == "__main__":
    import report

    print(report.table(measure()["tables"][0]))
