"""Score flow maps beside the students of lesson 19: `python tools/measure_flow_maps.py`.

Writes diffusion_course/weights/flow_maps.json, row by row: a run that was stopped goes on where it
was. Points of the running mixture and digits, three seeds each, every loss with the same number of
network evaluations; then the shipped flow map in latents, beside the reflow student (CIFAR-10 has to
be at hand). Fifteen minutes of one core; `--quick` tries everything with next to no training (and says
so in the file).
"""
from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from book import Book
from torch import Tensor

from diffusion_course import evaluation as ev
from diffusion_course import few_step
from diffusion_course.checkpoints import WEIGHTS, info, load
from diffusion_course.couplings import reflow_pairs
from diffusion_course.distributions import running_mixture
from diffusion_course.few_step import consistency, consistency_loss
from diffusion_course.flow_maps import (
    PRESETS, ExactFlowMap, TwoTimes, composition_loss, draw_times, jump, mean_flow_loss, path_loss,
)
from diffusion_course.generation import as_images, generate
from diffusion_course.images import cifar10, digit_classifier, digits
from diffusion_course.matching import MLP, fit, matching_loss
from diffusion_course.metrics import energy_distance, strays, width
from diffusion_course.predictions import Denoiser, ExactDenoiser, Model
from diffusion_course.samplers import Stepper, euler, heun, sample, trajectory, uniform_grid
from diffusion_course.schedules import Linear
from diffusion_course.training import train

COUNTS = (1, 2, 4)  # steps
BUDGET = 1_600_000  # evaluations that a training in the plane may make
BATCH = 256
DRAWN = 8000  # pairs or paths in the plane
STEPS = 32  # Heun steps of each
MARKS = 8
DIGITS = 62_400  # evaluations of few-step-digits: 1,500 pairs of 8 guided steps, 12,800 digits at 3
PAIRS = 24_000  # of these for the pairs or paths, which every digits training reads


# ---- points --------------------------------------------------------------------------------------

class Plane:
    """The running mixture, its exact flow, and what students of it are judged by."""

    def __init__(self) -> None:
        g = torch.Generator().manual_seed(0)
        self.mixture = running_mixture()
        self.exact = ExactDenoiser(self.mixture, Linear())
        self.data = self.mixture.sample(DRAWN, g)
        self.noise = torch.randn(2000, 2, generator=g)
        self.real = self.mixture.sample(2000, g)
        self.many = self.mixture.sample(20_000, g)
        self.ends = sample(ExactFlowMap(self.exact), self.noise, [0.0, 1.0], jump())

    def scores(self, model: Model, stepper: Stepper, steps: int) -> dict[str, float]:
        """Of what a model makes of the noise in so many steps."""
        g = torch.Generator().manual_seed(3)
        x = sample(model, self.noise, uniform_grid(steps), stepper, generator=g)
        m = self.mixture
        return dict(
            rms=(x - self.ends).square().sum(1).mean().sqrt().item(),
            energy=energy_distance(x, self.real), strays=strays(x, m.log_prob, self.many),
            width=width(x, m.means, m.stds, m.responsibilities(x)),
        )


def marked_loss(model: Model, x: Tensor, *, generator: torch.Generator, first: float = 0.3) -> Tensor:
    """`path_loss` between two marks of each path, which are the rows of x (B, K + 1, 2)."""
    K, rows = x.shape[1] - 1, torch.arange(len(x))
    t, s = draw_times(len(x), 0.0, first, generator)
    i = (t * K).floor().long().clamp(max=K - 1)
    j = torch.maximum((s * K).ceil().long(), i + 1)
    return path_loss(model, x[rows, i], i / K, x[rows, j], j / K)


def reflow_loss(model: Model, x1: Tensor, *, x0: Tensor, generator: torch.Generator) -> Tensor:
    """Lesson 19's: `matching_loss` with 0 for three tenths of the times."""
    t = torch.rand(len(x1), generator=generator)
    t = t * (torch.rand(len(x1), generator=generator) >= 0.3)
    return matching_loss(model, x1, t=t, x0=x0)


@dataclass(frozen=True)
class Way:
    """A way to train in the plane. A value counts 1, its gradient 2 more, a derivative along a direction 1
    more, each call of the teacher 1.

    Attributes:
        loss: of a batch.
        cost: evaluations that a sample of a batch takes.
        fed: "data", "paths" or "pairs".
        stepper: how the student is sampled.
        two: whether it is told two times.
    """

    loss: Callable
    cost: float
    fed: str = "data"
    stepper: Stepper = field(default_factory=jump)
    two: bool = True


def at_times(loss: Callable, same: float, first: float, **options: Any) -> Callable:
    """The loss with s = t in a fraction `same`, and with the whole jump (0, 1) in a fraction `first`."""
    def one(model: Model, x1: Tensor, *, generator: torch.Generator) -> Tensor:
        t, s = draw_times(len(x1), same, first, generator)
        return loss(model, x1, t=t, s=s, generator=generator, **options)
    return one


def ways(exact: Model) -> dict[str, Way]:
    """The losses that are compared; those with a star give three tenths to the whole jump, as paths and reflow do."""
    def agree(model: Model, x1: Tensor, *, generator: torch.Generator) -> Tensor:
        return consistency_loss(model, model, exact, x1, generator=generator)

    kinds = {
        "identity, from scratch": (mean_flow_loss, 4, 0.5, {}),
        "composition, from scratch": (composition_loss, 4, 0.5, {}),
        "identity, distilled": (mean_flow_loss, 5, 0.25, dict(teacher=exact, robust=0.01)),
        "composition, distilled": (composition_loss, 5.8, 0.1, dict(teacher=exact, step=0.1)),
    }
    found = {
        f"{name}{star}": Way(at_times(loss, same, first, **options), cost)
        for name, (loss, cost, same, options) in kinds.items() for star, first in (("", 0.0), (" *", 0.3))
    }
    return found | {
        "paths *": Way(marked_loss, 3, "paths"), "reflow *": Way(reflow_loss, 3, "pairs", euler(), False),
        "consistency": Way(agree, 6, "data", consistency(), False),
    }


def trained(plane: Plane, way: Way, data: Tensor | tuple[Tensor, Tensor], steps: int, seed: int) -> dict:
    """What a training in the plane reaches: lists over COUNTS."""
    net = MLP(width=96, n_cond=1, seed=seed) if way.two else MLP(width=96, seed=seed)
    model = Denoiser(TwoTimes(net) if way.two else net, Linear())
    history = fit(model, data, steps, loss=way.loss, batch_size=BATCH, lr=2e-3, seed=seed, progress=False)
    each = [plane.scores(history.model, way.stepper, k) for k in COUNTS]
    return dict(batches=steps, loss=history.loss[-50:].mean().item()) | {k: [e[k] for e in each] for k in each[0]}


def measure_points(tables: Book, seeds: range, quick: bool) -> None:
    """Every loss with the same number of evaluations."""
    plane = Plane()
    g = torch.Generator().manual_seed(1)
    start = torch.randn(200 if quick else DRAWN, 2, generator=g)
    xs = trajectory(plane.exact, start, uniform_grid(STEPS), heun()).xs[:: STEPS // MARKS]
    fed: dict[str, Any] = dict(data=plane.data, paths=xs.transpose(0, 1).contiguous(),
                               pairs=reflow_pairs(plane.exact, start, STEPS))
    for name, way in ways(plane.exact).items():
        drawing = 0 if way.fed == "data" else DRAWN * STEPS * 2
        steps = 5 if quick else round((BUDGET - drawing) / (way.cost * BATCH))
        for seed in seeds:
            key = dict(loss_name=name, seed=seed, cost=way.cost)
            tables.row("points", key, trained, plane, way, fed[way.fed], steps, seed)


# ---- digits --------------------------------------------------------------------------------------

def digits_recipes() -> dict[str, tuple[few_step.ReflowRecipe, float]]:
    """The trainings that are compared, and the evaluations that a digit costs them."""
    student, other = (few_step.PRESETS[k] for k in ("few-step-digits", "few-step-digits-consistency"))
    flow = PRESETS["flow-map-digits"]
    identity = replace(flow, by="identity", channels_last=False, precision="fp32", robust=0.01, same=0.25, first=0.3)
    return {
        "reflow": (student, 3.0), "consistency": (other, 8.0), "paths": (flow, 3.2),
        "identity, distilled": (identity, 6.0), "composition, distilled": (replace(flow, by="composition"), 7.7),
    }


class Digits:
    """The teacher's digits, and what students of it are judged by."""

    def __init__(self) -> None:
        self.real = digits().batch(slice(None))[0].flatten(1).double()
        self.y = torch.arange(500) % 10
        self.judge = digit_classifier()
        self.teacher = generate(load("digits"), 500, 20, "dpmpp_2m", 2.0, 0, y=self.y)
        self.far = (self.teacher - self.teacher.roll(10, 0)).square().mean()  # to another digit of its label

    def scores(self, x: Tensor) -> dict[str, float]:
        """Of 500 digits."""
        return dict(
            frechet=ev.frechet_distance(self.real, x.flatten(1).double()),
            agreement=(self.judge(x) == self.y).double().mean().item(),
            strange=float((x - self.teacher).square().mean() / self.far),
        )

    def trained(self, recipe: few_step.ReflowRecipe) -> dict:
        """What a training reaches: lists over COUNTS."""
        recipe.pictures()
        with tempfile.TemporaryDirectory() as run: model = train(recipe, Path(run) / "run", progress=False)
        each = [self.scores(generate(model, 500, k, recipe.stepper(), 1.0, 0, y=self.y)) for k in COUNTS]
        return dict(images=recipe.images) | {k: [e[k] for e in each] for k in each[0]}


def measure_digits(tables: Book, seeds: range, quick: bool) -> None:
    """Every training with the same number of evaluations, its 500 digits against all real ones."""
    judge = Digits()
    own = lambda: {k: [v] for k, v in judge.scores(judge.teacher).items()}
    tables.row("digits", dict(loss_name="teacher, 20 steps", seed=0), own)
    with tempfile.TemporaryDirectory() as kept:
        for name, (recipe, cost) in digits_recipes().items():
            images = 128 if quick else round((DIGITS - PAIRS) / cost / 64) * 64
            for seed in seeds:
                config = replace(recipe, kept=kept, seed=seed, images=images)
                tables.row("digits", dict(loss_name=name, seed=seed, cost=cost), judge.trained, config)


# ---- latents -------------------------------------------------------------------------------------

def measure_latents(tables: Book, names: list[str], quick: bool) -> None:
    """Decoded images against real ones: of flow maps as tools/measure_few_step.py does, and of all one step
    with 10,000."""
    classifier, real = load("cifar10-classifier"), cifar10("train")

    def measure(model: Denoiser, stepper: Stepper, steps: int, n: int) -> dict:
        y = torch.arange(n) % 10
        known = ev.features(real.x[ev.split(n, len(real), 0)[0]], classifier)
        x = as_images(model, generate(model, n, steps, stepper, seed=0, batch=200, y=y))
        features = ev.features(x, classifier)
        return dict(
            frechet=ev.frechet_distance(known, features), agreement=ev.label_agreement(classifier, x, y),
            variety=float(features.var(0).sum() / known.var(0).sum()),
        )

    for name in names:
        model = load(name)
        stepper = jump() if isinstance(model.net, TwoTimes) else euler()
        few, many = (40, 60) if quick else (2000, 10_000)
        counts = [(few, k) for k in COUNTS] if isinstance(model.net, TwoTimes) else []
        for n, steps in [*counts, (many, 1)]:
            key = dict(model=Path(name).stem, weights=ev.name_of(model), n=n, steps=steps)
            tables.row("latents", key | dict(images=info(name).get("images")), measure, model, stepper, steps, n)


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help="points, digits, latents; default: all")
    parser.add_argument("--models", nargs="*", default=["flow-map", "few-step"],
                        help="of latents: shipped names or files")
    parser.add_argument("--out", type=Path, default=WEIGHTS / "flow_maps.json")
    parser.add_argument("--quick", action="store_true", help="a trial with next to no training")
    args = parser.parse_args()
    parts = args.parts or ["points", "digits", "latents"]
    if set(parts) - {"points", "digits", "latents"}:
        parser.error(f"parts are {' '.join(parts)}: expected some of points, digits, latents")
    about = dict(command="python tools/measure_flow_maps.py", quick=args.quick, torch=torch.__version__,
                 budget=BUDGET, digits_budget=DIGITS, drawn=DRAWN, solver_steps=STEPS, marks=MARKS, batch=BATCH,
                 steps=list(COUNTS))
    tables = Book(args.out, about, anew=("budget", "digits_budget", "drawn"))
    seeds = range(1 if args.quick else 3)
    if "points" in parts: measure_points(tables, seeds, args.quick)
    if "digits" in parts: measure_digits(tables, seeds, args.quick)
    if "latents" in parts: measure_latents(tables, args.models, args.quick)


if __name__ == "__main__": main()
