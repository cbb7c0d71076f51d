"""Measure the floors that the lessons compare with: `python tools/measure_floors.py`.

Writes diffusion_course/weights/floors.json: for each metric, set of data and pair of sizes the mean,
standard deviation and 99 % quantile over pairs of independent real sets (`real_floor`): 4,000 pairs
of small sets, 1,000 of larger ones, because the quantile of 300 pairs still varies by a tenth. Half
an hour of one core.
"""
from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from tqdm import tqdm

from diffusion_course.checkpoints import WEIGHTS
from diffusion_course.distributions import GaussianMixture, running_mixture
from diffusion_course.files import whole_file
from diffusion_course.metrics import energy_distance, real_floor, wasserstein2
from diffusion_course.schedules import Cosine, Linear, VariancePreserving, marginal

METRICS = {"energy distance": energy_distance, "W2": wasserstein2}
SCHEDULES = {"linear": Linear(), "cosine": Cosine(), "VP": VariancePreserving()}
EQUAL = (50, 100, 200, 400, 500, 800, 1000, 2000)
UNEQUAL = ((400, 2000), (500, 2000), (1000, 2000))


def of_label(y: int) -> GaussianMixture:
    """The running mixture's components of one label."""
    mixture = running_mixture()
    i = mixture.labels == y
    return GaussianMixture(mixture.means[i], mixture.stds[i], mixture.weights[i] / mixture.weights[i].sum())


def wanted() -> list[tuple]:
    """(metric, data, sampler, n, against) of each row."""
    mixture = running_mixture()
    whole = [(n, n) for n in EQUAL] + list(UNEQUAL)
    rows = [("energy distance", "running mixture", mixture.sample, *sizes) for sizes in whole]
    rows += [("W2", "running mixture", mixture.sample, n, n) for n in (400, 500)]
    for y in range(3):
        rows += [("energy distance", f"label {y}", of_label(y).sample, n, n) for n in (500, 1000)]
    for name, schedule in SCHEDULES.items():
        for t in (0.5, 0.8):
            draw = marginal(mixture, schedule, t).sample
            rows.append(("energy distance", f"running mixture, {name}, t = {t}", draw, 800, 800))
    normal = lambda n, generator: torch.randn(n, 2, generator=generator)
    return [*rows, ("energy distance", "N(0, I)", normal, 500, 500)]


def main() -> None:
    """Measure all of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, help="pairs; default: 1,000 to 4,000, by size")
    parser.add_argument("--out", type=Path, default=WEIGHTS / "floors.json")
    args = parser.parse_args()
    found = []
    for metric, data, draw, n, against in tqdm(wanted()):
        repeats = args.repeats or (4000 if n * against <= 800_000 else 1000)
        floor = real_floor(METRICS[metric], draw, n, repeats, against=against)
        row = dict(metric=metric, data=data, n=n, against=against, repeats=repeats,
                   mean=floor.mean, std=floor.std, q99=floor.q99)
        found.append({k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()})
    about = dict(command="python tools/measure_floors.py", seed=0)
    lines = ",\n".join(f"  {json.dumps(row)}" for row in found)
    with whole_file(args.out) as path:
        path.write_text(f'{{"about": {json.dumps(about)}, "floors": [\n{lines}\n]}}\n', encoding="utf-8")


if __name__ == "__main__": main()
