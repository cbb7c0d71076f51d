"""Train the networks that lessons 8 to 13 compare, with three seeds each: `python tools/measure_seeds.py`.

Lesson 8: a network of noise in three samplers, by energy distance, strays and width; how well it is inverted; and what
its loss is without the time. Lesson 9: how often labels are hidden, and guidance, by samples of label 1. Lesson 10:
what a network predicts, the levels it is trained at and `sigma_data`, by the error of the predicted x1 at five noise
ratios, and by samples. Lesson 11: three pairings, by strays. Lesson 12: a network that is told the time and one that
isn't, by the loss on new digits at three times. Lesson 13: what skips and attention contribute, by the loss on new
digits in each fifth of time; and attention on images of one grey, by that loss and by the correlation of two corners of
samples. Writes diffusion_course/weights/seeds.json, row by row: a run that was stopped goes on
where it was. Eleven minutes of one core; `--quick` tries everything with a few steps (and says so in the file): give it
another `--out`.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from book import Book
from torch import Tensor, nn

from diffusion_course.checkpoints import WEIGHTS
from diffusion_course.couplings import ot_matching_loss, reflow_pairs
from diffusion_course.distributions import GaussianMixture, running_mixture
from diffusion_course.ddpm import ddpm_loss, invert, linear_betas
from diffusion_course.edm import edm_heun, edm_loss, preconditioned
from diffusion_course.guidance import classifier_free
from diffusion_course.images import DenoiseNet, digits
from diffusion_course.matching import MLP, fit, matching_loss
from diffusion_course.metrics import energy_distance, strays, width
from diffusion_course.predictions import Denoiser, ExactDenoiser
from diffusion_course.samplers import (
    ancestral,
    ddim,
    euler,
    heun,
    karras_grid,
    sample,
    trailing_grid,
    trajectory,
    uniform_grid,
)
from diffusion_course.schedules import DDPM, Linear, VarianceExploding, marginal
from diffusion_course.seeds import seeded_weights
from diffusion_course.unet import Attention, UNet, UNetConfig, part_costs

SEEDS = (0, 1, 2)
RATIOS = (0.005, 0.1, 0.4, 1.0, 30.0)
RUNS = ((0.0, 17), (0.0, 40), (0.2, 40))  # gamma and steps
PATH = VarianceExploding(0.002, 80)
SMALL = UNetConfig(shape=(1, 8, 8), widths=(16, 32), attention=(4,), patch=1)


def seeded(seed: int) -> torch.Generator:
    """A source of randomness."""
    return torch.Generator().manual_seed(seed)


@cache
def hills() -> tuple[GaussianMixture, Tensor, float]:
    """The running mixture, samples of it to train on, and their root mean square."""
    mixture = running_mixture()
    data = mixture.sample(20_000, seeded(0))
    return mixture, data, data.square().mean().sqrt().item()


def raw(kind: str, seed: int) -> Denoiser:
    """A network that is shown x as it is."""
    return Denoiser(MLP(width=64, seed=seed), PATH, kind)


def scaled(sigma_data: float | None, seed: int) -> Denoiser:
    """A preconditioned network; None: for the data as wide as they are."""
    return preconditioned(MLP(width=64, seed=seed), PATH, hills()[2] if sigma_data is None else sigma_data)


TARGETS: dict[str, tuple[Callable[[int], Denoiser], Callable]] = {
    "x1, raw": (partial(raw, "x1"), matching_loss),
    "eps, raw": (partial(raw, "eps"), matching_loss),
    "F": (partial(scaled, None), matching_loss),
    "F, log-normal": (partial(scaled, None), edm_loss),
    "F, mean 2": (partial(scaled, None), partial(edm_loss, mean=2.0, std=1.0)),
    "sigma_data 0.5": (partial(scaled, 0.5), edm_loss),
    "sigma_data 0.1": (partial(scaled, 0.1), edm_loss),
}


@torch.no_grad()
def error(model: Denoiser, ratio: float) -> float:
    """Root mean square error of a coordinate of the predicted x1."""
    mixture = hills()[0]
    t = float(PATH.t_from_log_snr(torch.tensor(-2 * math.log(ratio)).double()))
    x = marginal(mixture, PATH, t).sample(2000, seeded(3))
    return round((model(x, t).x1 - ExactDenoiser(mixture, PATH)(x, t).x1).square().mean().sqrt().item(), 5)


def target(name: str, seed: int, steps: int) -> dict[str, Any]:
    """Errors of a network of lesson 10, and energy distance and strays of its samples."""
    mixture, data, _ = hills()
    make, loss = TARGETS[name]
    model = fit(make(seed), data, steps, loss=loss, batch_size=256, seed=seed, progress=False).model
    crowd, noise = mixture.sample(2000, seeded(11)), 80 * torch.randn(2000, 2, generator=seeded(12))
    runs = []
    for gamma, n in RUNS:
        x = trajectory(model, noise, karras_grid(n, PATH), edm_heun(gamma), generator=seeded(1)).xs[-1]
        runs.append([round(float(energy_distance(x, crowd)), 5), round(float(strays(x, mixture.log_prob, data)), 4)])
    return dict(errors=[error(model, r) for r in RATIOS], runs=runs)


SAMPLERS = {"DDPM small": ancestral(), "DDPM large": ancestral("beta"), "DDIM": ddim()}
NFE = (5, 10, 20, 50, 100, 1000)
COUNTS = (10, 20, 50, 100, 200)  # steps there and back


class Blind(nn.Module):
    """A network that ignores the time."""

    def __init__(self, seed: int):
        super().__init__()
        self.net = MLP(width=64, seed=seed)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Its prediction, the same at all times."""
        return self.net(x, torch.full_like(t, 0.5))


@torch.no_grad()
def chain(seed: int, steps: int) -> dict[str, Any]:
    """Of a network of lesson 8: its loss, and that without the time; of each sampler the energy distance, strays and
    width at each number of steps; there and back the root mean square error, the largest with 100 steps, and how far
    its latents lie from the exact ones (the median)."""
    mixture, data, _ = hills()
    path = DDPM(linear_betas(1000))
    exact, fresh, losses = ExactDenoiser(mixture, path), mixture.sample(20_000, seeded(50)), []
    for net in (Blind(seed), MLP(width=64, seed=seed)):
        with torch.enable_grad():
            model = fit(Denoiser(net, path, "eps"), data, steps, loss=ddpm_loss, batch_size=256, seed=seed,
                        progress=False).model
        losses.append(round(float(ddpm_loss(model, fresh, generator=seeded(8))), 4))
    noise, real, many = torch.randn(2000, 2, generator=seeded(1)), mixture.sample(2000, seeded(100)), fresh

    def judged(x: Tensor) -> list[float]:
        spread = width(x, mixture.means, mixture.stds, mixture.responsibilities(x))
        return [round(float(v), 4) for v in (energy_distance(x, real), strays(x, mixture.log_prob, many), spread)]

    runs = {s: [judged(sample(model, noise, trailing_grid(n, path), stepper, generator=seeded(12))) for n in NFE]
            for s, stepper in SAMPLERS.items()}
    some, off = mixture.sample_labelled(600, seeded(5))[0][:500], {}
    for n in COUNTS:
        ts = trailing_grid(n, path)
        z = invert(model, some, ts)
        off[n] = (sample(model, z, ts, ddim()) - some).norm(dim=1)
    apart = (z - invert(exact, some, ts)).norm(dim=1).median()
    return dict(loss=losses[1], blind=losses[0], runs=runs,
                off=[round(float(o.square().mean().sqrt()), 4) for o in off.values()],
                worst=round(float(off[100].max()), 4), apart=round(float(apart), 4))


GUIDED: dict[str, tuple[float, tuple[float, float]]] = {  # w, and the times at which it holds
    "w = 1": (1.0, (0, 1)), "w = 1.25": (1.25, (0, 1)), "w = 1.5": (1.5, (0, 1)), "w = 3": (3.0, (0, 1)),
    "w = 3 from t = 0.7": (3.0, (0.7, 1)),
}


def guided(drop: float, seed: int, steps: int) -> dict[str, Any]:
    """Of a network of lesson 9: the energy distance without a label; and of samples of label 1 in each way the strays,
    the fraction in its narrow hill, the energy distance."""
    mixture = hills()[0]
    data, labels = mixture.sample_labelled(20_000, seeded(3))
    mine = mixture.labels == 1
    own = GaussianMixture(mixture.means[mine], mixture.stds[mine], mixture.weights[mine])
    model = fit(Denoiser(MLP(width=64, n_labels=3, seed=seed), Linear()), data, steps, labels=labels, drop=drop,
                batch_size=256, seed=seed, progress=False).model
    start, many = torch.randn(1000, 2, generator=seeded(12)), own.sample(20_000, seeded(5))
    ways = {}
    for name, (w, interval) in GUIDED.items():
        way = classifier_free(model, w, interval=interval) if w != 1 else model
        x = sample(way, start, uniform_grid(40), heun(), y=1)
        found = strays(x, own.log_prob, many), own.responsibilities(x)[:, 1].mean(), energy_distance(x, many[:1000])
        ways[name] = [round(float(v), 4) for v in found]
    free = sample(model, start, uniform_grid(40), heun())
    return dict(free=round(float(energy_distance(free, mixture.sample(1000, seeded(6)))), 4), ways=ways)


def flow(pairing: str, seed: int, steps: int) -> dict[str, Any]:
    """The strays of a flow of lesson 11 in one step of Euler's method, and in 40 of Heun's."""
    mixture, data, _ = hills()
    train = partial(fit, steps=steps, batch_size=256, seed=seed, progress=False)

    def fresh() -> Denoiser: return Denoiser(MLP(width=64, seed=seed), Linear())

    if pairing == "optimal transport": model = train(fresh(), data, loss=ot_matching_loss).model
    else: model = train(fresh(), data).model
    if pairing == "reflowed":
        pairs = reflow_pairs(model, torch.randn(20_000, 2, generator=seeded(4)), steps=20)
        model = train(fresh(), pairs).model
    x, many = torch.randn(3000, 2, generator=seeded(12)), mixture.sample(20_000, seeded(5))
    ends = sample(model, x, uniform_grid(1), euler()), sample(model, x, uniform_grid(40), heun())
    return dict(strays=[round(float(strays(end, mixture.log_prob, many)), 4) for end in ends])


TIMES = (0.1, 0.5, 0.9)


def told(time: bool, seed: int, steps: int) -> dict[str, Any]:
    """The velocity loss of a network of lesson 12 at the end of its training, and on new digits at three times."""
    x, y = digits().batch(slice(None))
    run = fit(Denoiser(DenoiseNet(time=time, n_labels=10, seed=seed), Linear()), x, steps, labels=y, batch_size=64,
              seed=seed, progress=False)
    new = digits("test").batch(slice(None))[0]
    with torch.no_grad():
        losses = [round(float(matching_loss(run.model, new, t=torch.full((len(new),), t), generator=seeded(3))), 4)
                  for t in TIMES]
    return dict(last=round(float(run.loss[-200:].mean()), 4), losses=losses)


def without_skips(net: UNet) -> UNet:
    """The network, with zeros in place of what its skips carry."""
    kept = [shape[0] for part, (shape, *_) in part_costs(net.config).items() if part.startswith(("stem", "down"))]

    def cut(stage: nn.Module, args: tuple[Tensor, ...], k: int) -> tuple[Tensor, ...]:
        return torch.cat([args[0][:, :-k], 0 * args[0][:, -k:]], 1), *args[1:]

    for stage, k in zip(net.up, reversed(kept), strict=True):
        stage.register_forward_pre_hook(partial(cut, k=k))
    return net


def without_attention(net: UNet) -> UNet:
    """The network without attention at its coarsest resolution either."""
    net.middle[1] = nn.Identity()
    return net


PARTS: dict[str, Callable[[int], nn.Module]] = {
    "two convolutions": lambda seed: DenoiseNet((1, 8, 8), 64, n_labels=10, seed=seed),
    "U-Net": lambda seed: UNet(SMALL, seed=seed),
    "without skips": lambda seed: without_skips(UNet(SMALL, seed=seed)),
    "without attention": lambda seed: without_attention(UNet(replace(SMALL, attention=()), seed=seed)),
}


def part(name: str, seed: int, steps: int) -> dict[str, Any]:
    """The velocity loss of a network of lesson 13 on new digits, in each fifth of time."""
    x, y = digits().batch(slice(None))
    model = fit(Denoiser(PARTS[name](seed), Linear()), x, steps, labels=y, batch_size=64, seed=seed,
                progress=False).model
    x, y = digits("test").batch(slice(None))
    return dict(losses=by_fifths(model, x, y))


@torch.no_grad()
def by_fifths(model: Denoiser, x: Tensor, y: Tensor | None = None) -> list[float]:
    """The velocity loss in each fifth of time."""
    x, generator, losses = x.repeat(4, 1, 1, 1), seeded(8), []
    y = y if y is None else y.repeat(4)
    for k in range(5):
        t = (k + torch.rand(len(x), generator=generator)) / 5
        losses.append(round(float(matching_loss(model, x, t=t, generator=generator, y=y)), 4))
    return losses


def conv() -> nn.Module:
    """A convolution that keeps the size."""
    return nn.Conv2d(32, 32, 3, padding=1)


BETWEEN: dict[str, Callable[[], list[nn.Module]]] = {  # the two convolutions of lesson 12
    "two convolutions": list,
    "four convolutions": lambda: [conv(), nn.SiLU(), conv(), nn.SiLU()],
    "two and attention": lambda: [Attention(32, 32)],
}


def grey(name: str, seed: int, steps: int) -> dict[str, Any]:
    """Of a network that draws images of one grey each: its loss in each fifth of time, and the correlation of two
    opposite corners of its samples."""
    def images(n: int, seed: int) -> Tensor:
        return 0.5 * torch.randn(n, 1, 1, 1, generator=seeded(seed)).expand(n, 1, 12, 12)

    net = DenoiseNet((1, 12, 12), 32, seed=seed)
    with seeded_weights(seed): net.last = nn.Sequential(*BETWEEN[name](), net.last)  # type: ignore[assignment]
    model = fit(Denoiser(net, Linear()), images(4000, 0), steps, batch_size=32, seed=seed, progress=False).model
    x = sample(model, torch.randn(200, 1, 12, 12, generator=seeded(12)), uniform_grid(20), heun())
    ends = torch.stack([x[:, 0, :3, :3].mean((1, 2)), x[:, 0, -3:, -3:].mean((1, 2))])
    return dict(losses=by_fifths(model, images(500, 1)), corners=round(float(torch.corrcoef(ends)[0, 1]), 4))


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=WEIGHTS / "seeds.json")
    parser.add_argument("--quick", action="store_true", help="a trial with a few steps: its numbers mean nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    about = dict(command="python tools/measure_seeds.py", quick=args.quick, torch=torch.__version__)
    tables = Book(args.out, about)
    for seed in SEEDS[:1] if args.quick else SEEDS:
        for name in TARGETS:
            tables.row("targets", dict(model=name, seed=seed), target, name, seed, 3 if args.quick else 1000)
        tables.row("ddpm", dict(seed=seed), chain, seed, 3 if args.quick else 1200)
        for drop in (0.0, 0.1, 0.5):
            tables.row("guided", dict(drop=drop, seed=seed), guided, drop, seed, 3 if args.quick else 700)
        for name in ("independent", "optimal transport", "reflowed"):
            tables.row("flows", dict(pairing=name, seed=seed), flow, name, seed, 3 if args.quick else 800)
        for time in (False, True):
            tables.row("told", dict(time=time, seed=seed), told, time, seed, 3 if args.quick else 1000)
        for name in PARTS:
            tables.row("parts", dict(network=name, seed=seed), part, name, seed, 3 if args.quick else 300)
        for name in BETWEEN:
            tables.row("greys", dict(network=name, seed=seed), grey, name, seed, 3 if args.quick else 300)


if __name__ == "__main__":
    main()
