"""Measure the table of lesson 19: `python tools/inpainting.py cifar10`.

Fills the same hole in the same test pictures of CIFAR-10 with each method, told each picture's label. Writes diffusion_course/weights/inpainting.json
a row at a time, and goes on where it was stopped; rows of another model or another n are measured again. Ten minutes of one core. The rows of
latents are measured where a model of latents is shipped (`--latent`).
"""
from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from book import Book
from torch import Tensor

from diffusion_course.checkpoints import WEIGHTS, info, load
from diffusion_course.evaluation import label_agreement, name_of
from diffusion_course.generation import generate
from diffusion_course.guidance import classifier_free
from diffusion_course.images import cifar10
from diffusion_course.inpainting import box, half, known_region, latent_inpaint, paste_back, reconstruction_guided, resampling, seam
from diffusion_course.samplers import ddim, uniform_grid
from diffusion_course.vae import reconstruct

MASKS = {"box": box(8, 8, 16, 16), "half": half("right")}
STEPS = 20
# name: (steps, repeats, weight of reconstruction guidance, whether known pixels are put back)
METHODS = {
    "replacement": (STEPS, 1, 0.0, True), "resampling, 2 times": (STEPS, 2, 0.0, True), "resampling, 5 times": (STEPS, 5, 0.0, True),
    "guidance, weight 1": (STEPS, 1, 1.0, True), "guidance, weight 3": (STEPS, 1, 3.0, True),
    "guidance alone, weight 3": (STEPS, 1, 3.0, False), "replacement, 100 steps": (5 * STEPS, 1, 0.0, True),
}
SHORT = ("replacement", "resampling, 5 times", "guidance, weight 3")  # for the half


def filled(model: torch.nn.Module, x: Tensor, y: Tensor, mask: Tensor, method: str, seed: int) -> tuple[Tensor, int]:
    """What the method makes of pictures x, and its NFE."""
    steps, repeats, weight, put_back = METHODS[method]
    asked = reconstruction_guided(model, x, mask, weight) if weight else model
    stepper = resampling(ddim(), x, mask, repeats) if repeats > 1 else known_region(ddim(), x, mask) if put_back else ddim()
    return generate(asked, len(x), steps, stepper, seed=seed, y=y), steps * repeats * (asked.cost(0.5) if weight else 1)


def untouched(a: Tensor, b: Tensor, mask: Tensor) -> float | None:
    """Decibels between a and b where the mask is known, over all pictures; None where they are equal."""
    square = (a - b)[..., mask].double().square().mean()
    return float(10 * torch.log10(4 / square)) if square > 0 else None


def in_parts(x: Tensor, y: Tensor, fill: Callable[[Tensor, Tensor, int], tuple[Tensor, int]]) -> tuple[Tensor, int]:
    """All pictures, 20 at a time, each part with a seed of its own."""
    parts = [fill(x[i: i + 20], y[i: i + 20], i) for i in range(0, len(x), 20)]
    return torch.cat([p for p, _ in parts]), parts[0][1]


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a shipped name or a file")
    parser.add_argument("--latent", default="cifar10-latent", help="a model of latents: a shipped name or a file")
    parser.add_argument("--guidance", type=float, default=3.0, help="of the latent model, in one of its rows")
    parser.add_argument("--n", type=int, default=200, help="test pictures")
    parser.add_argument("--out", type=Path, default=WEIGHTS / "inpainting.json")
    args = parser.parse_args()
    model, judge, test = load(args.model), load("cifar10-classifier"), cifar10("test")
    x, y = test.batch(slice(args.n))
    which = dict(model=args.model, images=info(args.model).get("images"), n=args.n)
    about = dict(command=f"python tools/inpainting.py {args.model}", steps=STEPS, seed=0, torch=torch.__version__)
    book = Book(args.out, about | which, anew=("images", "n"))

    def row(mask: str, method: str, make: Callable[[], tuple[Tensor, int]], **more: str) -> None:
        def measure() -> dict:
            made, calls = make()
            border = seam(made, MASKS[mask])
            return dict(nfe=calls, agreement=label_agreement(judge, made, y), seam=float(border.mean()), error=float(border.std() / len(x) ** 0.5),
                        untouched=untouched(made, x, MASKS[mask]))
        print(book.row("rows", which | dict(mask=mask, method=method) | more, measure))

    for name, mask in MASKS.items():
        row(name, "real pictures", lambda: (x, 0))
        row(name, "the hole grey", lambda mask=mask: (torch.where(mask, x, 0), 0))
        row(name, "another picture's pixels", lambda mask=mask: (torch.where(mask, x, x.roll(1, 0)), 0))
        for method in METHODS if name == "box" else SHORT:
            fill = lambda x, y, i, mask=mask, method=method: filled(model, x, y, mask, method, i)
            row(name, method, lambda fill=fill: in_parts(x, y, fill))
    latent = load(args.latent)
    vae, w, by = latent.net.vae(), args.guidance, dict(latent=name_of(latent), vae=name_of(latent.net.vae()))
    for paste, kind in ((False, "decoded"), (True, "decoded and pasted back")):
        back = lambda paste=paste: paste_back(reconstruct(vae, x), x, MASKS["box"]) if paste else reconstruct(vae, x)
        row("box", f"perfect fill, {kind}", lambda back=back: (back(), 0), **by)
    for paste, asked, kind in ((False, latent, "as decoded"), (True, latent, "pasted back"),
                               (True, classifier_free(latent, w), f"w = {w:g}, pasted back")):
        g = torch.Generator().manual_seed(0)
        fill = lambda x, y, i, paste=paste, asked=asked, g=g: (latent_inpaint(
            asked, vae, x, MASKS["box"], uniform_grid(STEPS), ddim(), paste=paste, generator=g, y=y), STEPS * (1 if asked is latent else 2))
        row("box", f"latent, {kind}", lambda fill=fill: in_parts(x, y, fill), **by)


if __name__ == "__main__": main()
