"""Measure the tables of lesson 23: `python tools/measure_fine_tuning.py`.

Letters of 8 x 8 pixels are learned from scratch and from the shipped model of handwritten digits,
with as many images, over three seeds and two learning rates, white on black as the digits are; and the
letters of 16 x 16 pixels that the lesson trains on, over three seeds and three budgets. Writes
diffusion_course/weights/fine_tuning.json, row by row: a run that was stopped goes on where it was.
Half an hour of one core; `--quick` tries everything with a few images (and says so in the file):
give it another `--out`.
"""
from __future__ import annotations

import argparse
import dataclasses
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from book import Book
from sklearn.svm import SVC, SVR

from diffusion_course.checkpoints import WEIGHTS, load
from diffusion_course.generation import generate
from diffusion_course.images import Images, image_folder
from diffusion_course.matching import matching_loss
from diffusion_course.metrics import energy_distance
from diffusion_course.training import PRESETS, DenoiserRecipe, train
from diffusion_course.unet import UNetConfig
from diffusion_course.your_own import write_letters

BUDGETS = (800, 3_200, 12_800)  # images seen
RATES = (1e-3, 3e-3)  # learning rates, of which a reader takes the better one for each way
SEEDS = (0, 1, 2)
LOOKS = (6_400, 19_200)  # images seen, of the 432 that the lesson learns


class Scorer:
    """Scores a model of letters against letters that it has not seen.

    Args:
        others: freshly drawn letters.
        n: samples to draw.
    """

    def __init__(self, others: Images, n: int):
        self.x, self.y = others.batch(slice(None))
        self.n = n
        half = len(self.x) // 2
        self.order = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(0))
        learn = self.order[half:]
        self.svm = SVC(C=10).fit(self.x[learn].flatten(1).numpy(), self.y[learn].numpy())

    def agreement(self, x: torch.Tensor, y: torch.Tensor) -> float:
        """The fraction of images in which the support vector machine sees the label."""
        return float((torch.from_numpy(self.svm.predict(x.flatten(1).numpy())) == y).double().mean())

    def real(self) -> dict:
        """What as many real letters score, which neither the machine nor the comparison has seen."""
        i, j = self.order[: self.n], self.order[self.n: 2 * self.n]
        distance = energy_distance(self.x[i].flatten(1), self.x[j].flatten(1))
        return dict(distance=distance, agreement=self.agreement(self.x[i], self.y[i]))

    @torch.no_grad()
    def of(self, model: torch.nn.Module) -> dict:
        """Loss on unseen letters, energy distance of pixels, and label agreement."""
        loss = matching_loss(model, self.x, y=self.y, generator=torch.Generator().manual_seed(0))
        y = torch.arange(self.n) % 3
        x = generate(model, self.n, 15, "dpmpp_2m", seed=0, y=y, precision="fp32").clamp(-1, 1)
        j = self.order[self.n: 2 * self.n]
        distance = energy_distance(x.flatten(1), self.x[j].flatten(1))
        return dict(loss=float(loss), distance=distance, agreement=self.agreement(x, y))


def measure(recipe: DenoiserRecipe, scorer: Scorer) -> dict:
    """A training, and the scores of its model."""
    with tempfile.TemporaryDirectory() as run:
        return scorer.of(train(recipe, run, progress=False, device="cpu").eval())


def judge_of(folder: Path) -> Callable[[torch.Tensor, float], dict]:
    """The lesson's four scores of images against those that its folder holds out, one for each."""
    flat = lambda x: x.clamp(-1, 1).flatten(1)
    learned, unseen = (image_folder(folder, split, size=16) for split in ("train", "test"))
    (x_train, y_train), (_, y) = learned.batch(slice(None)), unseen.batch(slice(None))
    letter = SVC(C=10).fit(flat(x_train).numpy(), y_train.numpy())
    slant = SVR(C=10).fit(flat(x_train).numpy(), learned.cond[:, 0].numpy())

    def judge(x: torch.Tensor, w: float) -> dict:
        near = torch.cdist(flat(x), flat(x_train)).min(1).values.median() / 16
        return dict(
            w=w, agreement=float((letter.predict(flat(x).numpy()) == y.numpy()).mean()),
            slant=float(np.abs(slant.predict(flat(x).numpy()) - unseen.cond[:, 0].numpy()).mean()),
            nearest=float(near), distance=energy_distance(flat(x), flat(x_train)),
        )

    return judge


def looked(folder: Path, images: int, seed: int) -> dict:
    """The lesson's training of letters with this many images, and its scores at guidance 1 and 2."""
    net = UNetConfig(shape=(1, 16, 16), widths=(32, 48), attention=(), head=16, patch=1, n_labels=3, n_cond=2,
                     dropout=0.1)
    recipe = dataclasses.replace(PRESETS["images"], data=str(folder), net=net, images=images, seed=seed,
                                 precision="fp32")
    with tempfile.TemporaryDirectory() as run: model = train(recipe, run, progress=False, device="cpu").eval()
    unseen, judge = image_folder(folder, "test", size=16), judge_of(folder)
    drawn = lambda w: generate(model, len(unseen), 12, "dpmpp_2m", w, 0, y=unseen.batch(slice(None))[1],
                               cond=unseen.cond, precision="fp32")
    return dict(scores=[judge(drawn(w), w) for w in (1.0, 2.0)])


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=WEIGHTS / "fine_tuning.json")
    parser.add_argument("--quick", action="store_true", help="a trial with a few images: its numbers mean nothing")
    args = parser.parse_args()
    n, budgets = (12, (64,)) if args.quick else (300, BUDGETS)
    seeds, rates = (SEEDS[:1], RATES[:1]) if args.quick else (SEEDS, RATES)
    about = dict(command="python tools/measure_fine_tuning.py", quick=args.quick, n=n, start="digits",
                 torch=torch.__version__)
    tables = Book(args.out, about, anew=("n", "start"))
    net = dataclasses.replace(load("digits").net.config, n_labels=3)
    with tempfile.TemporaryDirectory() as temporary:
        draw = lambda name, each, seed: write_letters(Path(temporary, name), each=each, seed=seed, inverted=True)
        mine = draw("mine", 20 if args.quick else 160, 0)
        scorer = Scorer(image_folder(draw("other", 40 if args.quick else 500, 1), size=8), n)
        tables.row("letters", dict(how="real"), scorer.real)
        for images, rate, seed in itertools.product(budgets, rates, seeds):
            for how, start in (("scratch", ""), ("fine-tuned", "digits")):
                recipe = dataclasses.replace(
                    PRESETS["images"], data=str(mine), net=net, start=start, images=images, lr=rate,
                    warmup=images // 8, seed=seed, precision="fp32", ema=0.99,
                )
                tables.row("letters", dict(how=how, images=images, lr=rate, seed=seed), measure, recipe, scorer)
        folder = write_letters(Path(temporary, "letters"), each=20 if args.quick else 160)
        x = image_folder(folder, "test", size=16).batch(slice(None))[0]
        tables.row("looks", dict(how="held out"), lambda: dict(scores=[judge_of(folder)(x, 1.0)]))
        for images, seed in itertools.product((64,) if args.quick else LOOKS, seeds):
            tables.row("looks", dict(how="trained", images=images, seed=seed), looked, folder, images, seed)


if __name__ == "__main__": main()
