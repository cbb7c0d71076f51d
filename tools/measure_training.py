"""Measure the tables of lesson 14 on digits: `python tools/measure_training.py`.

Over three seeds: raw and averaged weights at a constant and at a falling learning rate, the first steps at a high rate
with and without warm-up and clipping, and the loss after resuming with and without Adam's moments. Writes
diffusion_course/weights/training.json, row by row: a run that was stopped goes on where it was. Six minutes of one
core; `--quick` tries everything with a few steps (and says so in the file): give it another `--out`.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from book import Book

from diffusion_course.checkpoints import WEIGHTS
from diffusion_course.generation import generate
from diffusion_course.images import digit_classifier, digits
from diffusion_course.training import PRESETS, Run

SMALL = replace(PRESETS["digits"], batch=64, precision="fp32")
SEEDS = (0, 1, 2)
RATES = {
    "constant": 0.0,
    "falling": 0.5,
}  # the fraction of the run over which the learning rate falls
REMEDIES: dict[str, dict[str, Any]] = {
    "neither": dict(warmup=0, clip=1e9),
    "clipping": dict(warmup=0, clip=1.0),
    "warm-up": dict(warmup=64 * 30, clip=1e9),
    "both": dict(warmup=64 * 30, clip=1.0),
}


def new_run(**changes: Any) -> Run:
    """A run on digits that saves nothing."""
    return Run(replace(SMALL, **changes), Path("unused"), Accelerator(cpu=True))


def recorded(run: Run) -> list[list[float]]:
    """Loss and length of the gradient of each step so far."""
    return [[round(v, 5) for v in pair] for pair in torch.stack(run.recent).tolist()]


@torch.no_grad()
def test_loss(model: torch.nn.Module) -> float:
    """The loss on test digits, at the same times and with the same noise for each model."""
    mode = model.training
    x, y = digits("test").batch(slice(None))
    loss = SMALL.loss(model.eval(), x, y, torch.Generator().manual_seed(0))
    model.train(mode)
    return round(float(loss), 5)


def recognised(model: torch.nn.Module, n: int) -> float:
    """The fraction of n samples in which the classifier sees the digit that was asked for."""
    y = torch.arange(n) % 10
    x = generate(model, n, 12, "dpmpp_2m", seed=5, y=y, precision="fp32")
    with torch.no_grad():
        return float((digit_classifier()(x) == y).double().mean())


def averages(seed: int, decay: float, steps: int, every: int, n: int) -> dict:
    """Test losses of the weights and of their average along a run, and how many samples of each are recognised."""
    run = new_run(images=64 * steps, warmup=640, ema=0.97, lr=4e-3, decay=decay, seed=seed)
    curve = []
    while run.steps < steps:
        run.step()
        if run.steps % every == 0:
            curve.append([run.seen, test_loss(run.model), test_loss(run.average.module)])
    seen_by = [recognised(m, n) for m in (run.model.eval(), run.average.module)]
    return dict(curve=curve, recognised=seen_by)


def beginning(seed: int, remedy: dict[str, Any], steps: int) -> dict:
    """The first steps at a rate that is too high."""
    run = new_run(images=10**9, decay=0.0, lr=1.2e-2, seed=seed, **remedy)
    for _ in range(steps):
        run.step()
    return dict(steps=recorded(run))


def resumed(seed: int, keep_moments: bool, before: int, after: int) -> dict:
    """The steps after resuming, with Adam's moments or without."""
    run = new_run(images=10**9, decay=0.0, warmup=640, lr=4e-3, seed=seed)
    for _ in range(before):
        run.step()
    if not keep_moments:
        run.optimizer.state.clear()
    run.recent.clear()
    for _ in range(after):
        run.step()
    return dict(steps=recorded(run))


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=WEIGHTS / "training.json")
    parser.add_argument(
        "--quick", action="store_true", help="a trial with a few steps: its numbers mean nothing"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    quick = args.quick
    about = dict(command="python tools/measure_training.py", quick=quick, torch=torch.__version__)
    tables = Book(args.out, about)
    for seed in SEEDS[:1] if quick else SEEDS:
        for rate, decay in RATES.items():
            lengths = (4, 2, 10) if quick else (320, 16, 500)
            tables.row("averages", dict(rate=rate, seed=seed), averages, seed, decay, *lengths)
        for name, remedy in REMEDIES.items():
            tables.row(
                "beginnings",
                dict(remedy=name, seed=seed),
                beginning,
                seed,
                remedy,
                2 if quick else 60,
            )
        for kept in (True, False):
            tables.row(
                "resumed",
                dict(kept=kept, seed=seed),
                resumed,
                seed,
                kept,
                *((2, 2) if quick else (120, 40)),
            )


if __name__ == "__main__":
    main()
