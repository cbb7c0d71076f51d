"""Score the latent model beside the pixel model: `python tools/measure_latent.py`.

Writes diffusion_course/weights/latent.json, row by row: label agreement and Fréchet distance of
cifar10-latent at each guidance, drawn and scored as tools/measure_tables.py does for cifar10 (same
n, steps, sampler, seed and real images); of real images as they are, encoded and decoded by
vae-small, and with vae-decoder; of both models, each at its best guidance, in fewer steps; at last
of 10,000 new ones at the best guidance. Half an hour of one core; `--quick` tries everything with a
few images (and says so in the file: give it another `--out`).
"""
from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from book import Book
from torch import Tensor

from diffusion_course import evaluation as ev
from diffusion_course.checkpoints import WEIGHTS, info, load
from diffusion_course.generation import as_images, generate
from diffusion_course.images import cifar10, to_bytes, to_float
from diffusion_course.predictions import Model
from diffusion_course.vae import VAE, reconstruct

SCALES = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0)
STEPS = (2, 3, 4, 6, 8, 12, 20)


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

    def scores(x: Tensor, y: Tensor, known: Tensor, vae: VAE | None = None) -> dict:
        """Of images, first encoded and decoded if there is a VAE, against features of real ones."""
        if vae is not None: x = to_bytes(reconstruct(vae, to_float(x)))
        return dict(
            agreement=ev.label_agreement(classifier, x, y),
            frechet=ev.frechet_distance(known, ev.features(x, classifier)),
        )

    def drawn(model: Model, w: float, n: int, seed: int, known: Tensor, steps: int = 20) -> dict:
        """Of what a model draws, equally many of each label."""
        y = torch.arange(n) % 10
        x = generate(model, n, steps, "dpmpp_2m", w, seed=seed, batch=100, progress=True, y=y)
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
    pixels = [r for r in pixels if r["images"] == info("cifar10")["images"]]
    pixel_best = min(pixels, key=lambda r: r["scores"]["Fréchet distance"]["value"])["w"]
    models = [("cifar10", load("cifar10"), pixel_best), ("cifar10-latent", model, best)]
    for name, other, w in models:
        for steps in STEPS:
            key = dict(model=name, w=w, steps=steps, nfe=2 * steps, n=n)
            tables.row("steps", key, drawn, other, w, n, 0, known, steps)
    n = 40 if args.quick else 10_000
    tables.row("best", dict(w=best, n=n, seed=1), drawn, model, best, n, 1, real_rows(n))
    for table in ("real", "guidance", "steps", "best"):
        for row in tables.tables[table]: print(table, row)


if __name__ == "__main__": main()
