"""Measure the tables of lesson 21: `python tools/measure_cold.py cold`.

Writes diffusion_course/weights/cold.json, row by row: a run that was stopped goes on where it was,
and another model begins anew. A quarter of an hour of one core; `--quick` tries everything with a few images
(and says so in the file): give it another `--out`.
"""
from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from book import Book
from torch import Tensor

from diffusion_course import evaluation as ev
from diffusion_course.checkpoints import WEIGHTS, info, load
from diffusion_course.cold import DEGRADATIONS, START, improved, naive, restore
from diffusion_course.generation import InPrecision, generate
from diffusion_course.images import cifar10
from diffusion_course.predictions import Model

SAMPLERS = {"naive": naive, "improved": improved}
STRONG = {"blur": 0.4, "masking": 0.1, "pixelate": 0.6}  # more damage than START's


def in_batches(f: Callable[[Tensor], Tensor], x: Tensor, size: int = 100) -> Tensor:
    """f(x), computed for `size` images at a time."""
    return torch.cat([f(part) for part in x.split(size)])


class Scorer:
    """Scores by the course's classifier, against real images.

    Args:
        name: of the classifier: a shipped name or a file.
        real: (n, C, H, W) the real images.
        y: (n,) their labels.
    """

    def __init__(self, name: str, real: Tensor, y: Tensor):
        self.classifier, self.real, self.y = load(name), real, y
        self.features = ev.features(real, self.classifier)

    def restored(self, x: Tensor) -> dict:
        """Of images that are to be `real` again.

        Contrast: the mean standard deviation of an image, as a fraction of the real images'.
        """
        return dict(
            frechet=ev.frechet_distance(self.features, ev.features(x, self.classifier)),
            mse=float((x.clamp(-1, 1) - self.real).square().mean()),
            agreement=ev.label_agreement(self.classifier, x, self.y),
            contrast=float(x.std((1, 2, 3)).mean() / self.real.std((1, 2, 3)).mean()),
        )

    @torch.no_grad()
    def made(self, x: Tensor) -> dict:
        """Of images that are to be like `real`.

        Variety: the variance of their features, as a fraction of the real images'; asymmetry: how
        far an image is from its mirror image, likewise; labels: the exponential of the entropy of
        the labels that the classifier sees.
        """
        features = ev.features(x, self.classifier)
        labels = torch.cat([self.classifier(part).argmax(1) for part in x.split(250)])
        mirrored = lambda x: (x - x.flip(3)).square().mean()
        variance = lambda features: float(features.var(0).sum())
        return dict(
            frechet=ev.frechet_distance(self.features, features),
            variety=variance(features) / variance(self.features),
            asymmetry=float(mirrored(x) / mirrored(self.real)),
            labels=float(torch.special.entr(labels.bincount() / len(x)).sum().exp()),
        )


def measure_restored(tables: Book, model: Model, scorer: Scorer) -> None:
    """Test images, damaged and restored."""
    real = scorer.real
    tables.row("restored", dict(kind="real"), scorer.restored, real)
    cases = [(kind, start, (20, 50)) for kind, start in START.items()]
    cases += [(kind, start, (20,)) for kind, start in STRONG.items()]
    for kind, start, counts in cases:
        damaged = DEGRADATIONS[kind](real, start)
        key = dict(kind=kind, start=start)
        tables.row("restored", key | dict(sampler="degraded", steps=0), scorer.restored, damaged)
        samplers = [("direct", naive, 1), ("improved", improved, 1)]
        samplers += [(name, sampler, steps) for steps in counts for name, sampler in SAMPLERS.items()]
        for name, sampler, steps in samplers:
            restored = partial(restore, model, kind=kind, steps=steps, sampler=sampler, start=start)
            measure = lambda f, x: scorer.restored(in_batches(f, x))
            tables.row("restored", key | dict(sampler=name, steps=steps), measure, restored, damaged)


def measure_again(tables: Book, model: Model, scorer: Scorer, first: int) -> None:
    """The rows that the lesson compares, on other test images, which begin at `first`: how much a score varies."""
    for kind, start in START.items():
        damaged = DEGRADATIONS[kind](scorer.real, start)
        for name, sampler, steps in (("direct", naive, 1), ("improved", improved, 1), ("improved", improved, 20)):
            restored = partial(restore, model, kind=kind, steps=steps, sampler=sampler, start=start)
            measure = lambda f, x: scorer.restored(in_batches(f, x))
            key = dict(kind=kind, start=start, sampler=name, steps=steps, first=first)
            tables.row("again", key, measure, restored, damaged)


def measure_made(
    tables: Book, model: Model, scorer: Scorer, others: Tensor, colours: Tensor,
) -> None:
    """Images made from plain colours, drawn from the Gaussian of training images' mean colours (m, 3)."""
    tables.row("made", dict(how="real"), scorer.made, others)
    n = len(scorer.real)
    g = torch.Generator().manual_seed(0)
    root = torch.linalg.cholesky(torch.cov(colours.T))
    colour = colours.mean(0) + torch.randn(n, 3, generator=g, dtype=torch.float64) @ root.T
    start = colour.float()[:, :, None, None] * torch.ones(1, 1, 32, 32)
    eps = torch.randn(start.shape, generator=g)
    for kind in ("blur", "pixelate"):
        for noise in (0.0, 0.002):
            restored = partial(restore, model, kind=kind, steps=25, start=0.0)
            measure = lambda f, x: scorer.made(in_batches(f, x))
            tables.row("made", dict(how=kind, noise=noise), measure, restored, start + noise * eps)
    # All masked images are black: they have one restoration.
    restored = lambda: restore(model, 0 * start[:1], "masking", 25, start=0.0).expand(n, -1, -1, -1)
    tables.row("made", dict(how="masking", noise=0.0), lambda: scorer.made(restored()))


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a restorer: a shipped name or a file")
    parser.add_argument("--denoiser", default="cifar10", help="to compare with: a shipped name or a file")
    parser.add_argument("--classifier", default="cifar10-classifier",
                        help="a shipped name or a file")
    parser.add_argument("--out", type=Path, default=WEIGHTS / "cold.json")
    parser.add_argument("--quick", action="store_true",
                        help="a trial with a few images: its numbers mean nothing")
    args = parser.parse_args()
    n = 20 if args.quick else 1000
    about = dict(
        command=f"python tools/measure_cold.py {Path(args.model).stem}", quick=args.quick, n=n,
        torch=torch.__version__, images=info(args.model).get("images"),
        restorer=ev.name_of(load(args.model)), classifier=ev.name_of(load(args.classifier)),
    )
    tables = Book(args.out, about, anew=("restorer", "classifier", "n"))
    model = InPrecision(load(args.model))
    test = cifar10("test")
    scorer = Scorer(args.classifier, *test.batch(slice(n)))
    colours = cifar10("train").batch(slice(None, None, 5))[0].mean((2, 3)).double()
    tables.tables["colours"] = dict(mean=colours.mean(0).tolist(), covariance=torch.cov(colours.T).tolist())
    measure_restored(tables, model, scorer)
    measure_again(tables, model, Scorer(args.classifier, *test.batch(slice(n, 2 * n))), n)
    measure_made(tables, model, scorer, test.batch(slice(n, 2 * n))[0], colours)

    denoiser = load(args.denoiser)
    name = ev.name_of(denoiser)
    fair = dict(how="noise", denoiser=name, told="no label")  # no more than the other rows are told
    tables.tables["made"] = [r for r in tables.tables["made"] if "denoiser" not in r or fair.items() <= r.items()]

    def denoised() -> dict:
        draw = lambda seed: generate(denoiser, min(n, 100), 20, "dpmpp_2m", seed=seed)
        return scorer.made(torch.cat([draw(seed) for seed in range(max(1, n // 100))]))

    tables.row("made", fair, denoised)


if __name__ == "__main__": main()
