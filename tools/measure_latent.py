"""Score the latent model beside the pixel model: `python tools/measure_latent.py`.

Writes diffusion_course/weights/latent.json, row by row: label agreement and Fréchet distance of
cifar10-latent at each guidance, drawn and scored as tools/measure_tables.py does for cifar10 (same
n, steps, sampler, seed and real images); of real images as they are, encoded and decoded by
vae-small, and with vae-decoder; of both models, each at its best guidance, in fewer steps; at last
of 10,000 new ones at the best guidance. Before all that, what latents of 4, 8 and 16 numbers make of
digits. And the Fréchet distances of some rows once more: in the features of a classifier of another
kind, trained on the way, that no decoder was trained against, and in textures, which nobody trained.
Three quarters of an hour of one core;
`--quick` tries everything with a few images (and says so in the file: give it another `--out`).
"""
from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from book import Book
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from diffusion_course import evaluation as ev
from diffusion_course.checkpoints import WEIGHTS, info, load
from diffusion_course.generation import as_images, generate
from diffusion_course.images import cifar10, digits, to_bytes, to_float
from diffusion_course.latent import decode
from diffusion_course.matching import MLP, fit
from diffusion_course.metrics import energy_distance
from diffusion_course.predictions import Denoiser, Model
from diffusion_course.samplers import euler, sample, uniform_grid
from diffusion_course.schedules import Linear
from diffusion_course.textures import Textures
from diffusion_course.training import train
from diffusion_course.vae import PRESETS, VAE, reconstruct

SCALES = (1.0, 1.5, 1.75, 2.0, 2.25, 2.5, 3.0, 4.0, 6.0)
INTERVALS = ((2.5, 0.25, 0.78), (3.0, 0.25, 0.78), (2.5, 0.1, 0.8))  # (w, lo, hi): guidance at those times alone
STEPS = (2, 3, 4, 6, 8, 12, 20)
NUMBERS = (4, 8, 16)  # of a digit's latent


@torch.no_grad()
def _digits_of(vae: VAE, z: Tensor) -> Tensor:
    """Digits (n, 64) of latents (n, numbers)."""
    return decode(vae, z.unflatten(1, vae.latent)).flatten(1)


def measure_sizes(tables: Book, seeds: int = 3) -> None:
    """How many numbers a latent has: what its autoencoder loses, and how hard it is to generate.

    Distance: the energy distance of pixels from test digits; readable: the fraction that a linear
    classifier reads with more than 0.9 confidence, both as in lesson 17.
    """
    (x, y), (x_test, _) = digits("train").batch(slice(None)), digits("test").batch(slice(None))
    reader = LogisticRegression(max_iter=5000).fit(x.flatten(1), y)

    def scores(v: Tensor) -> dict:
        sure = (reader.predict_proba(v).max(1) > 0.9).mean()
        return dict(distance=energy_distance(v, x_test.flatten(1)), readable=float(sure))

    def measure(numbers: int) -> dict:
        preset = PRESETS["vae-digits"]
        recipe = replace(preset, images=48_000, net=replace(preset.net, latent=(numbers // 4, 2, 2)))
        with tempfile.TemporaryDirectory() as folder: vae = train(recipe, folder, progress=False)
        with torch.no_grad(): z, z_test = (vae.to_unit(vae.encode(v).mode).flatten(1) for v in (x, x_test))
        decoded = _digits_of(vae, z_test)
        start = torch.randn(len(z_test), numbers, generator=torch.Generator().manual_seed(1))
        drawn = []
        for seed in range(seeds):
            small = Denoiser(MLP(numbers, width=96, seed=seed), Linear())
            fit(small, z, 800, batch_size=256, seed=seed, progress=False)
            drawn.append(scores(_digits_of(vae, sample(small, start, uniform_grid(20), euler()))))
        error = float((decoded - x_test.flatten(1)).square().mean())
        return dict(error=error, decoded=scores(decoded), drawn=drawn)

    tables.row("sizes", dict(numbers=64), lambda: dict(decoded=scores(x[: len(x_test)].flatten(1))))
    for numbers in NUMBERS: tables.row("sizes", dict(numbers=numbers), measure, numbers)


class Mixer(nn.Module):
    """A classifier without convolutions: squares of 4 x 4 pixels, mixed over places and over channels in turn."""

    def __init__(self, width: int = 128, blocks: int = 3, places: int = 64):
        super().__init__()
        self.embed = nn.Linear(48, width)
        self.over_places = nn.ModuleList(self._two_layers(places, 64) for _ in range(blocks))
        self.over_channels = nn.ModuleList(self._two_layers(width, 256) for _ in range(blocks))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * blocks + 1))
        self.read = nn.Linear(width, 10)

    @staticmethod
    def _two_layers(n: int, hidden: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(n, hidden), nn.GELU(), nn.Linear(hidden, n))

    def features(self, x: Tensor) -> Tensor:
        """(B, width) of images (B, 3, 32, 32) in [-1, 1]."""
        h = self.embed(nn.functional.pixel_unshuffle(x, 4).flatten(2).mT)
        for k, (places, channels) in enumerate(zip(self.over_places, self.over_channels, strict=True)):
            h = h + places(self.norms[2 * k](h).mT).mT
            h = h + channels(self.norms[2 * k + 1](h))
        return self.norms[-1](h).mean(1)


def other_classifier(images: int = 150_000, batch: int = 100) -> Mixer:
    """A Mixer that was trained on CIFAR-10 for some minutes."""
    torch.manual_seed(0)
    net, data = Mixer(), cifar10("train")
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.05)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=images // batch)
    for _ in range(images // batch):
        x, y = data.batch(torch.randint(len(data), (batch,)), torch.rand(batch) < 0.5)
        loss = nn.functional.cross_entropy(net.read(net.features(x)), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
    return net.eval()


def measure_others(tables: Book, draws: dict[str, tuple[Model, float, int]], n: int) -> None:
    """Fréchet distances of the draws and of real images, in other features.

    In those of `other_classifier`, and in textures.

    Args:
        tables: where they are written.
        draws: name -> model, guidance and steps.
        n: images a row, and real ones to compare with.
    """
    names = ["as they are", "vae-small", "vae-decoder", *draws]
    found = ({r["what"] for r in tables.tables.get(table, [])} for table in ("other features", "textures"))
    if all(rows >= set(names) for rows in found): return
    net, real = other_classifier(), cifar10("train")

    x_test, y_test = cifar10("test").batch(slice(None))
    with torch.no_grad(): guess = torch.cat([net.read(net.features(part)) for part in x_test.split(250)]).argmax(1)
    first, second = ev.split(n, len(real), 0)
    x, textures = real.x[second], Textures()
    known, known_textures = ev.features(real.x[first], net), ev.features(real.x[first], textures)
    vaes = {"vae-small": load("vae-small"), "vae-decoder": load("cifar10-latent").net.vae()}

    @cache
    def images_of(what: str) -> Tensor:
        if what in draws:
            model, w, steps = draws[what]
            y = torch.arange(n) % 10
            return to_bytes(as_images(model, generate(model, n, steps, "dpmpp_2m", w, seed=0, batch=100, y=y)))
        return to_bytes(reconstruct(vaes[what], to_float(x))) if what in vaes else x

    accuracy = float((guess == y_test).float().mean())
    for what in names:
        measure = lambda what: dict(frechet=ev.frechet_distance(known, ev.features(images_of(what), net)))
        tables.row("other features", dict(what=what, n=n, accuracy=accuracy), measure, what)
        measure = lambda what: dict(
            frechet=ev.frechet_distance(known_textures, ev.features(images_of(what), textures))
        )
        tables.row("textures", dict(what=what, n=n), measure, what)


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="cifar10-latent", help="a shipped name or a file")
    parser.add_argument("--out", type=Path, default=WEIGHTS / "latent.json")
    parser.add_argument("--quick", action="store_true",
                        help="a trial with a few images: its numbers mean nothing")
    args = parser.parse_args()
    pixels = json.loads((WEIGHTS / "tables.json").read_text(encoding="utf-8"))["guidance"]
    model = load(args.model)
    decoder = model.net.config.decoder
    classifier = load("cifar10-classifier")
    real = cifar10("train")
    extractor = ev.name_of(classifier)
    if pixels[0]["extractor"] != extractor:
        raise SystemExit(f"tables.json was made with {pixels[0]['extractor']}: expected {extractor}")
    about = dict(
        command="python tools/measure_latent.py", quick=args.quick, torch=torch.__version__,
        classifier=extractor, model=ev.name_of(model), decoder=ev.name_of(load(decoder)),
        images=info(args.model)["images"], steps=20, sampler="dpmpp_2m",
    )
    tables = Book(args.out, about, anew=("classifier", "model", "decoder"))
    measure_sizes(tables, 1 if args.quick else 3)

    def scores(x: Tensor, y: Tensor, known: Tensor, vae: VAE | None = None) -> dict:
        """Of images, first encoded and decoded if there is a VAE, against features of real ones."""
        if vae is not None: x = to_bytes(reconstruct(vae, to_float(x)))
        return dict(
            agreement=ev.label_agreement(classifier, x, y),
            frechet=ev.frechet_distance(known, ev.features(x, classifier)),
        )

    def drawn(
        model: Model, w: float, n: int, seed: int, known: Tensor, steps: int = 20, interval: tuple = (0.0, 1.0),
    ) -> dict:
        """Of what a model draws, equally many of each label."""
        y = torch.arange(n) % 10
        x = generate(model, n, steps, "dpmpp_2m", w, seed, interval=interval, batch=100, progress=True, y=y)
        return scores(as_images(model, x), y, known)

    def real_rows(n: int) -> Tensor:
        """Scores of real images. Returns features of as many others."""
        first, second = ev.split(n, len(real), 0)
        known = ev.features(real.x[first], classifier)
        x = real.x[second]
        y = real.y[second]
        vaes = {"as they are": None, "vae-small": load("vae-small"), decoder: model.net.vae()}
        for what, vae in vaes.items():
            tables.row("real", dict(what=what, n=n), scores, x, y, known, vae)
        return known

    n = 20 if args.quick else 2000
    known = real_rows(n)
    row = lambda w: tables.row("guidance", dict(w=w, n=n, seed=0), drawn, model, w, n, 0, known)
    best = min([row(w) for w in SCALES], key=lambda r: r["frechet"])["w"]
    of_interval = {
        part: tables.row("intervals", dict(zip(("w", "lo", "hi"), part, strict=True)) | dict(n=n, seed=0),
                         drawn, model, part[0], n, 0, known, interval=part[1:])
        for part in INTERVALS
    }
    best_part = min(of_interval, key=lambda part: of_interval[part]["frechet"])
    for seed in (0, 1, 2):  # of the noise: how much a row may differ from draw to draw
        for w, lo, hi in ((best, 0.0, 1.0), best_part):
            key = dict(w=w, lo=lo, hi=hi, n=n, seed=seed)
            tables.row("seeds", key, drawn, model, w, n, seed, known, interval=(lo, hi))
    pixels = [r for r in pixels if r["images"] == info("cifar10")["images"]]
    pixel_best = min(pixels, key=lambda r: r["scores"]["Fréchet distance"]["value"])["w"]
    models = [("cifar10", load("cifar10"), pixel_best), ("cifar10-latent", model, best)]
    for name, other, w in models:
        for steps in STEPS:
            key = dict(model=name, weights=ev.name_of(other), w=w, steps=steps, nfe=2 * steps, n=n)
            tables.row("steps", key, drawn, other, w, n, 0, known, steps)
    both = {f"{name}, w = {w:g}": (m, w, 20) for name, m, v in models for w in (1.0, v)}
    both |= {f"{name}, w = {v:g}, 8 steps": (m, v, 8) for name, m, v in models}
    measure_others(tables, both, n)
    n = 40 if args.quick else 10_000
    tables.row("best", dict(w=best, n=n, seed=1), drawn, model, best, n, 1, real_rows(n))
    for table in ("real", "guidance", "steps", "best"):
        for row in tables.tables[table]: print(table, row)


if __name__ == "__main__": main()
