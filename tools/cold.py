"""Measure the tables of lesson 20: `python tools/cold.py cold`.

Writes diffusion_course/weights/cold.json, a row at a time: a run that was stopped goes on where it was, and another model begins anew.
Ten minutes of one core; `--quick` tries everything with a few pictures (and says so in the file). Give it another `--out`.
"""
from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from book import Book
from torch import Tensor

from diffusion_course import evaluation as ev
from diffusion_course.checkpoints import WEIGHTS, info, load
from diffusion_course.cold import DEGRADATIONS, START, improved, naive, restore
from diffusion_course.generation import InPrecision, generate
from diffusion_course.images import cifar10

SAMPLERS = dict(naive=naive, improved=improved)
STRONG = {"blur": 0.4, "masking": 0.1, "pixelate": 0.6}  # more damage than START's


def batches(make: Callable[[Tensor], Tensor], x: Tensor, size: int = 100) -> Tensor:
    """make of all pictures, some at a time."""
    return torch.cat([make(part) for part in x.split(size)])


class Judge:
    """What the course's classifier says about pictures, beside real ones."""

    def __init__(self, name: str, real: Tensor, y: Tensor):
        self.net, self.real, self.y = load(name), real, y
        self.features = ev.features(real, self.net)

    def restored(self, x: Tensor) -> dict:
        """Of pictures that are to be `real` again."""
        found = dict(frechet=ev.frechet_distance(self.features, ev.features(x, self.net)), mse=float((x.clamp(-1, 1) - self.real).square().mean()),
                     agreement=ev.label_agreement(self.net, x, self.y))
        return found | dict(contrast=float(x.std((1, 2, 3)).mean() / self.real.std((1, 2, 3)).mean()))

    def made(self, x: Tensor) -> dict:
        """Of pictures that are to be like `real`. Variety: how far two of them are apart, as a share of two real ones."""
        f = ev.features(x, self.net)
        with torch.no_grad(): said = torch.cat([self.net(part) for part in x.split(250)]).argmax(1)
        wide = lambda v: float(v.var(0).sum())
        mirrored = (x - x.flip(3)).square().mean() / (self.real - self.real.flip(3)).square().mean()
        return dict(frechet=ev.frechet_distance(self.features, f), variety=wide(f) / wide(self.features), asymmetry=float(mirrored),
                    labels=float(torch.special.entr(said.bincount() / len(x)).sum().exp()))


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a restorer: a shipped name or a file")
    parser.add_argument("--denoiser", default="cifar10", help="to compare with: a shipped name or a file")
    parser.add_argument("--classifier", default="cifar10-classifier", help="a shipped name or a file")
    parser.add_argument("--out", type=Path, default=WEIGHTS / "cold.json")
    parser.add_argument("--quick", action="store_true", help="a trial with a few pictures: its numbers mean nothing")
    args = parser.parse_args()
    n = 20 if args.quick else 1000
    about = dict(command=f"python tools/cold.py {Path(args.model).stem}", quick=args.quick, n=n, torch=torch.__version__, images=info(args.model).get("images"),
                 restorer=ev.name_of(load(args.model)), classifier=ev.name_of(load(args.classifier)))
    book = Book(args.out, about, anew=("restorer", "classifier", "n"))

    model, (x1, y) = InPrecision(load(args.model)), cifar10("test").batch(slice(n))
    others, judge = cifar10("test").batch(slice(n, 2 * n))[0], Judge(args.classifier, x1, y)
    colours = cifar10("train").batch(slice(None, None, 5))[0].mean((2, 3)).double()
    book.tables["colours"] = dict(mean=colours.mean(0).tolist(), covariance=torch.cov(colours.T).tolist())

    book.row("restored", dict(kind="real"), lambda: judge.restored(x1))
    for kind, start, counts in [*((k, t, (20, 50)) for k, t in START.items()), *((k, t, (20,)) for k, t in STRONG.items())]:
        x = DEGRADATIONS[kind](x1, start)
        book.row("restored", dict(kind=kind, start=start, sampler="degraded", steps=0), lambda x=x: judge.restored(x))
        for name, sampler, steps in [("direct", naive, 1), *((name, sampler, n) for n in counts for name, sampler in SAMPLERS.items())]:
            made = lambda p, k=kind, n=steps, f=sampler, t=start: restore(model, p, k, n, f, t)
            book.row("restored", dict(kind=kind, start=start, sampler=name, steps=steps), lambda x=x, made=made: judge.restored(batches(made, x)))

    book.row("made", dict(how="real"), lambda: judge.made(others))
    g = torch.Generator().manual_seed(0)
    root, flat = torch.linalg.cholesky(torch.cov(colours.T)), torch.ones(1, 1, 32, 32)
    start = (colours.mean(0) + torch.randn(n, 3, generator=g, dtype=torch.float64) @ root.T).float()[:, :, None, None] * flat
    grain = torch.randn(start.shape, generator=g)
    for kind in ("blur", "pixelate"):
        for noise in (0.0, 0.002):
            made = lambda k=kind, a=noise: judge.made(batches(lambda p: restore(model, p, k, 25, start=0.0), start + a * grain))
            book.row("made", dict(how=kind, noise=noise), made)
    book.row("made", dict(how="masking", noise=0.0), lambda: judge.made(restore(model, 0 * start[:1], "masking", 25, start=0.0).expand(n, -1, -1, -1)))
    denoiser = load(args.denoiser)
    denoised = lambda k: generate(denoiser, min(n, 100), 20, "dpmpp_2m", 1.0, k, y=torch.arange(min(n, 100)) % 10)
    book.tables["made"] = [r for r in book.tables["made"] if r.get("denoiser") in (None, ev.name_of(denoiser))]
    book.row("made", dict(how="noise", denoiser=ev.name_of(denoiser)), lambda: judge.made(torch.cat([denoised(k) for k in range(max(1, n // 100))])))


if __name__ == "__main__": main()
