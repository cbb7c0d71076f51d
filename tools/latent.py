"""Score the latent model beside the pixel model: `python tools/latent.py`.

Writes diffusion_course/weights/latent.json, a row at a time: label agreement and Fréchet distance of cifar10-latent at each guidance, drawn and
scored as tools/tables.py does for cifar10 (same n, steps, sampler, seed and real pictures); of real pictures as they are, encoded and decoded by
vae-small, and with vae-decoder; of both models, each at its best guidance, in fewer steps; at last of 10,000 new ones at the best guidance.
Half an hour of one core; `--quick` tries everything with a few pictures (and says so in the file: give it another `--out`).
"""
from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from book import Book

from diffusion_course import evaluation as ev
from diffusion_course.checkpoints import WEIGHTS, info, load
from diffusion_course.generation import as_images, generate
from diffusion_course.images import cifar10, to_bytes, to_float
from diffusion_course.vae import VAE, reconstruct

SCALES = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0)
STEPS = (2, 3, 4, 6, 8, 12, 20)


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="cifar10-latent", help="a shipped name or a file")
    parser.add_argument("--out", type=Path, default=WEIGHTS / "latent.json")
    parser.add_argument("--quick", action="store_true", help="a trial with a few pictures: its numbers mean nothing")
    args = parser.parse_args()
    pixels = json.loads((WEIGHTS / "tables.json").read_text())
    model, judge, real = load(args.model), load("cifar10-classifier"), cifar10("train")
    extractor = ev.name_of(judge)
    if (used := pixels["guidance"][0]["extractor"]) != extractor: raise SystemExit(f"tables.json was made with {used}: expected {extractor}")
    about = dict(command="python tools/latent.py", quick=args.quick, torch=torch.__version__, classifier=extractor, model=ev.name_of(model),
                 decoder=ev.name_of(load(model.net.config.decoder)), images=info(args.model)["images"], steps=20, sampler="dpmpp_2m")
    book = Book(args.out, about, anew=("classifier", "model", "decoder"))
    known_best = {r["w"]: r["scores"]["Fréchet distance"]["value"] for r in pixels["guidance"] if r["images"] == info("cifar10")["images"]}

    def scores(x: torch.Tensor, y: torch.Tensor, known: torch.Tensor, vae: VAE | None = None) -> dict:
        """Of pictures, encoded and decoded if so asked, against known real ones."""
        if vae is not None: x = to_bytes(reconstruct(vae, to_float(x)))
        return dict(agreement=ev.label_agreement(judge, x, y), frechet=ev.frechet_distance(known, ev.features(x, judge)))

    def drawn(w: float, n: int, seed: int, known: torch.Tensor, steps: int = 20, model: torch.nn.Module = model) -> dict:
        """Of what a model makes, equally many of each label."""
        y = torch.arange(n) % 10
        x = as_images(model, generate(model, n, steps, "dpmpp_2m", w, seed=seed, batch=100, progress=True, y=y))
        return scores(x, y, known)

    some, many = (20, 40) if args.quick else (2000, 10_000)
    for n in (some, many):
        first, second = ev.split(n, len(real), 0)
        known = ev.features(real.x[first], judge)
        for what, vae in (("as they are", None), ("vae-small", load("vae-small")), (model.net.config.decoder, model.net.vae())):
            book.row("real", dict(what=what, n=n), scores, real.x[second], real.y[second], known, vae)
        if n == many: break
        best = min((book.row("guidance", dict(w=w, n=n, seed=0), drawn, w, n, 0, known) for w in SCALES), key=lambda r: r["frechet"])["w"]
        for name, which, w in (("cifar10", load("cifar10"), min(known_best, key=known_best.get)), ("cifar10-latent", model, best)):
            for steps in STEPS: book.row("steps", dict(model=name, w=w, steps=steps, nfe=2 * steps, n=n), drawn, w, n, 0, known, steps, which)
    book.row("best", dict(w=best, n=many, seed=1), drawn, best, many, 1, known)
    for table in ("real", "guidance", "steps", "best"):
        for row in book.tables[table]: print(table, row)


if __name__ == "__main__": main()
