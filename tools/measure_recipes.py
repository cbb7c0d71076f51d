"""Train CIFAR-10 by one recipe after another at equal cost, and judge each: `python tools/measure_recipes.py`.

Every row changes one thing in the preset `cifar10-small`, shortened to 100,000 images. A step that takes longer gets
fewer of them: the speeds of both are measured in turn, and so all rows take the same time of the same machine. Judged
are the error of the velocity on test images, at ten times that lie evenly, and 1,000 samples, by the Fréchet distance
in the classifier's features and by label agreement. Averages of other lengths and guidance in an interval cost no
training, and are tried with the preset's own runs. Writes diffusion_course/weights/recipes.json, row by row: a run
that was stopped goes on where it was. About fifteen minutes of two cores with 16-bit units a row; nothing else may
run beside it. `--quick` tries everything with a few images (and says so in the file: give it another `--out`).
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from book import Book
from torch import nn
from tqdm import trange

from diffusion_course import evaluation as ev
from diffusion_course.checkpoints import WEIGHTS, load
from diffusion_course.images import Images, cifar10
from diffusion_course.training import PRESETS, DenoiserRecipe, Run, autocast
from diffusion_course.unet import part_costs

BASE = dataclasses.replace(PRESETS["cifar10-small"], images=100_096, stages=())
KEPT = (3, 9, 30, 100)  # averages whose length is 1 / k of the run so far; the preset's begins as k = 9
SAMPLING: dict[str, dict[str, Any]] = {
    "w = 3": dict(guidance=3.0),
    "w = 2": dict(guidance=2.0),
    "w = 4 for t in 0.25 to 0.78": dict(guidance=4.0, interval=(0.25, 0.78)),
}


def small(**net: Any) -> dict[str, Any]:
    """Changes of the network."""
    return dict(net=dataclasses.replace(BASE.net, **net))


CHANGES: dict[str, dict[str, Any]] = {
    "as shipped": {},
    "times: 15 % drawn evenly": dict(times="mixed"),
    "times: all drawn evenly": dict(times="uniform"),
    "widths 64, 128, 256": small(widths=(64, 128, 256)),
    "widths 96, 128, 256": small(widths=(96, 128, 256)),
    "two blocks a level, widths 64, 96, 128": small(widths=(64, 96, 128), blocks=2),
    "patches of 1, widths 32, 64, 128, 128": small(widths=(32, 64, 128, 128), patch=1),
    "attention at 16 as well": small(attention=(16, 8, 4)),
    "attention in the middle only": small(attention=()),
    "time and label added": small(modulate=False),
    "learning rate doubled": dict(lr=2e-3),
    "learning rate halved": dict(lr=5e-4),
    "learning rate constant": dict(decay=0.0),
    "batches of 64": dict(batch=64),
    "batches of 256": dict(batch=256),
    "predicts x1": dict(kind="x1"),
    "labels hidden once in five": dict(drop=0.2),
    "no mirrored images": dict(flip=False),
    "Adam remembers squares longer": dict(betas=(0.9, 0.999)),
}
FINALISTS = ("as shipped", "times: 15 % drawn evenly", "widths 64, 128, 256")
SEEDS = (0, 1, 2)


def recipe(change: str, seed: int = 0, **more: Any) -> DenoiserRecipe:
    """The preset with one change."""
    return dataclasses.replace(BASE, seed=seed, **CHANGES[change], **more)


def new_run(config: DenoiserRecipe) -> Run:
    """A run that saves nothing."""
    return Run(config, Path("unused"), Accelerator(cpu=True))


def cost(change: str, rounds: int = 5, steps: int = 4) -> dict[str, Any]:
    """How long an image takes, as a multiple of the preset's: the median over rounds in turn."""
    runs = [new_run(recipe(name)) for name in ("as shipped", change)]
    for run in runs: run.step()
    ratios = []
    for _ in range(rounds):
        seconds = []
        for run in runs:
            start = time.perf_counter()
            for _ in range(steps): run.step()
            seconds.append((time.perf_counter() - start) / run.config.batch)
        ratios.append(seconds[1] / seconds[0])
    parts = part_costs(recipe(change).net).values()
    return dict(
        ratio=round(float(torch.tensor(ratios).median()), 3), parameters=sum(p.parameters for p in parts),
        multiply_adds=sum(p.multiply_adds for p in parts),
    )


@torch.no_grad()
def errors(model: nn.Module, test: Images, n: int) -> list[float]:
    """The mean squared error of the velocity at ten times, of the same images with the same noise."""
    x1, y = test.batch(slice(0, n))
    noise = torch.randn(x1.shape, generator=torch.Generator().manual_seed(0))
    found = []
    for k in range(10):
        t, total = (k + 0.5) / 10, 0.0
        for i in range(0, n, 100):
            a, eps = x1[i:i + 100], noise[i:i + 100]
            with autocast(torch.device("cpu")): v = model((1 - t) * eps + t * a, t, y=y[i:i + 100]).velocity
            total += float((v.float() - (a - eps)).square().sum())
        found.append(round(total / x1.numel(), 5))
    return found


class Averages:
    """Several moving averages of a model's weights, each over its own fraction of the run.

    Args:
        weights: of the model.
    """

    def __init__(self, weights: list[nn.Parameter]):
        self.weights = weights
        self.kept = {k: [w.detach().clone() for w in weights] for k in KEPT}

    def update(self, step: int) -> None:
        """Take the weights after this many steps in."""
        for k, kept in self.kept.items(): torch._foreach_lerp_(kept, [w.detach() for w in self.weights], k / (k + step))

    def put(self, k: int) -> None:
        """Give the model the average over 1 / k of the run."""
        with torch.no_grad():
            for w, kept in zip(self.weights, self.kept[k], strict=True): w.copy_(kept)


class Measurement:
    """The rows.

    Args:
        images: of the preset's run.
        n: samples behind a score.
    """

    def __init__(self, images: int, n: int):
        self.images, self.n = images, n
        self.real, self.test = cifar10("train"), cifar10("test")
        self.classifier = load("cifar10-classifier")

    def scores(self, model: nn.Module, how: dict[str, Any]) -> dict[str, float]:
        """What samples of the model are worth."""
        found = ev.evaluate(model, self.classifier, self.real, self.n, steps=20, precision="auto", **how)
        return {name: round(score.value, 4) for name, score in found.items()}

    def row(self, change: str, seed: int, ratio: float) -> dict[str, Any]:
        """Train by a recipe and judge it."""
        images = round(self.images / ratio)
        run = new_run(recipe(change, seed, images=images, warmup=BASE.warmup * images // BASE.images))
        averages = Averages(run.weights) if change == "as shipped" else None
        begin = time.perf_counter()
        for _ in trange(-(-images // run.config.batch), desc=change, mininterval=5):
            run.step()
            if averages: averages.update(run.steps)
        trained = time.perf_counter() - begin
        model, few = run.average.module, min(1000, self.n)
        found: dict[str, Any] = dict(images=run.seen, trained=round(trained), errors=errors(model, self.test, few))
        how = SAMPLING if averages else {"w = 3": SAMPLING["w = 3"]}
        found["scores"] = {name: self.scores(model, options) for name, options in how.items()}
        if averages: found["averages"] = self.averages(run, averages, few)
        return found

    def averages(self, run: Run, averages: Averages, few: int) -> dict[str, Any]:
        """The weights as they are, and averages of other lengths, judged alike."""
        run.model.eval()
        judged = {"none": self.judged(run.model, few)}
        for k in KEPT:
            averages.put(k)
            judged[f"1/{k} of the run"] = self.judged(run.model, few)
        return judged

    def judged(self, model: nn.Module, few: int) -> dict[str, Any]:
        """Errors and scores of one set of weights."""
        return dict(errors=errors(model, self.test, few), scores=self.scores(model, SAMPLING["w = 3"]))


def main() -> None:
    """Measure what is missing, and say what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=WEIGHTS / "recipes.json")
    parser.add_argument("--only", nargs="+", choices=list(CHANGES), metavar="CHANGE",
                        help="these changes alone, with one seed")
    parser.add_argument("--quick", action="store_true",
                        help="a trial with a few images: its numbers mean nothing")
    args = parser.parse_args()
    about = dict(
        command="python tools/measure_recipes.py" + " --quick" * args.quick, quick=args.quick,
        images=512 if args.quick else BASE.images, n=20 if args.quick else 1000, torch=torch.__version__,
    )
    book = Book(args.out, about)
    measurement = Measurement(about["images"], about["n"])
    rounds = dict(rounds=1, steps=1) if args.quick else {}
    everything = [(name, 0) for name in args.only or CHANGES]
    if not args.only: everything += [(name, seed) for name in FINALISTS for seed in SEEDS[1:]]
    for change, seed in everything:
        paid = book.row("costs", dict(change=change), cost, change, **rounds)
        row = book.row("recipes", dict(change=change, seed=seed), measurement.row, change, seed, paid["ratio"])
        score = row["scores"]["w = 3"]
        print(f"{change}, seed {seed}: {row['images']:,} images, error {sum(row['errors']) / 10:.4f},"
              f" Fréchet distance {score['Fréchet distance']:.3f}, agreement {score['label agreement']:.3f}")


if __name__ == "__main__": main()
