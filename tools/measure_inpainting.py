"""Measure the table of lesson 20: `python tools/measure_inpainting.py cifar10`.

Fills the same hole in the same test images of CIFAR-10 with each method, told each image's label.
Writes diffusion_course/weights/inpainting.json row by row, and goes on where it was stopped; rows
of another model or another n are measured again. Ten minutes of one core. The rows of latents are
measured where a model of latents is shipped (`--latent`).
"""
from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from book import Book
from torch import Tensor

from diffusion_course.checkpoints import WEIGHTS, info, load
from diffusion_course.evaluation import label_agreement, name_of
from diffusion_course.generation import generate
from diffusion_course.guidance import classifier_free
from diffusion_course.images import cifar10
from diffusion_course.inpainting import box, half, known_region, latent_inpaint, latent_mask, paste_back
from diffusion_course.inpainting import reconstruction_guided, resampling, seam
from diffusion_course.predictions import Denoiser, Model, cost
from diffusion_course.samplers import ddim, sample, uniform_grid
from diffusion_course.vae import reconstruct

MASKS = {"box": box(8, 8, 16, 16), "half": half("right")}
STEPS = 20
# name: (steps, repeats, weight of reconstruction guidance, whether known pixels are put back)
METHODS = {
    "replacement": (STEPS, 1, 0.0, True),
    "resampling, 2 times": (STEPS, 2, 0.0, True),
    "resampling, 5 times": (STEPS, 5, 0.0, True),
    "guidance, weight 1": (STEPS, 1, 1.0, True),
    "guidance, weight 3": (STEPS, 1, 3.0, True),
    "guidance alone, weight 3": (STEPS, 1, 3.0, False),
    "replacement, 100 steps": (5 * STEPS, 1, 0.0, True),
    "clean pixels put back": (STEPS, 1, 0.0, True),  # trap 1: without the noise of their time
}
METHODS_FOR_HALF = ("replacement", "resampling, 5 times", "guidance, weight 3")

Filled = tuple[Tensor, int]  # images, and the evaluations that each took


def fill(model: Model, mask: Tensor, method: str, x: Tensor, y: Tensor, seed: int) -> Filled:
    """Images x (B, C, H, W), with labels y, filled by a method of METHODS."""
    steps, repeats, weight, put_back = METHODS[method]
    guided = reconstruction_guided(model, x, mask, weight) if weight else model
    if method == "clean pixels put back": stepper = lambda *step: torch.where(mask, x, ddim()(*step))
    elif repeats > 1: stepper = resampling(ddim(), x, mask, repeats)
    else: stepper = known_region(ddim(), x, mask) if put_back else ddim()
    nfe = steps * repeats * (cost(guided, 0.5) if weight else 1)
    return generate(guided, len(x), steps, stepper, seed=seed, y=y), nfe


def in_parts(x: Tensor, y: Tensor, fill: Callable[[Tensor, Tensor, int], Filled]) -> Filled:
    """`fill(x, y, seed)` of all images, 20 at a time, each part with a seed of its own."""
    parts = [fill(x[i: i + 20], y[i: i + 20], i) for i in range(0, len(x), 20)]
    return torch.cat([images for images, _ in parts]), parts[0][1]


def untouched(a: Tensor, b: Tensor, mask: Tensor) -> float | None:
    """Decibels between a and b where the mask is known, over all images; None where equal."""
    mse = (a - b)[..., mask].double().square().mean()
    return float(10 * torch.log10(4 / mse)) if mse > 0 else None


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a shipped name or a file")
    parser.add_argument("--latent", default="cifar10-latent",
                        help="a model of latents: a shipped name or a file")
    parser.add_argument("--guidance", type=float, default=3.0,
                        help="of the latent model, in one of its rows")
    parser.add_argument("--n", type=int, default=200, help="test images")
    parser.add_argument("--out", type=Path, default=WEIGHTS / "inpainting.json")
    args = parser.parse_args()
    model = load(args.model)
    classifier = load("cifar10-classifier")
    x, y = cifar10("test").batch(slice(args.n))
    which = dict(model=args.model, images=info(args.model).get("images"), n=args.n)
    command = f"python tools/measure_inpainting.py {args.model}"
    about = dict(command=command, steps=STEPS, seed=0, torch=torch.__version__)
    tables = Book(args.out, about | which, anew=("images", "n"))

    def row(mask: str, method: str, make: Callable[[], Filled], **more: str) -> None:
        def measure() -> dict:
            filled, nfe = make()
            edge = seam(filled, MASKS[mask])
            return dict(
                nfe=nfe, agreement=label_agreement(classifier, filled, y), seam=float(edge.mean()),
                error=float(edge.std() / len(x) ** 0.5), untouched=untouched(filled, x, MASKS[mask]),
            )
        print(tables.row("rows", which | dict(mask=mask, method=method) | more, measure))

    for name, mask in MASKS.items():
        references = {
            "real images": x, "the hole grey": torch.where(mask, x, 0),
            "another image's pixels": torch.where(mask, x, x.roll(1, 0)),
        }
        for method, images in references.items(): row(name, method, lambda images=images: (images, 0))
        for method in METHODS if name == "box" else METHODS_FOR_HALF:
            row(name, method, partial(in_parts, x, y, partial(fill, model, mask, method)))
    measure_latents(load(args.latent), args.guidance, x, y, row)


def measure_latents(model: Denoiser, w: float, x: Tensor, y: Tensor, row: Callable) -> None:
    """Rows of a model of latents, for the box: what its autoencoder alone costs, and what it fills."""
    vae = model.net.vae()
    by = dict(latent=name_of(model), vae=name_of(vae))
    decoded = lambda: reconstruct(vae, x)
    row("box", "perfect fill, decoded", lambda: (decoded(), 0), **by)
    row("box", "perfect fill, decoded and pasted back", lambda: (paste_back(decoded(), x, MASKS["box"]), 0), **by)

    def latent(method: str, model: Model, paste: bool, nfe: int) -> None:
        g = torch.Generator().manual_seed(0)

        def fill(x: Tensor, y: Tensor, seed: int) -> Filled:
            grid = uniform_grid(STEPS)
            return latent_inpaint(model, vae, x, MASKS["box"], grid, ddim(), paste=paste, generator=g, y=y), nfe

        row("box", f"latent, {method}", lambda: in_parts(x, y, fill), **by)

    def other(x: Tensor, y: Tensor, seed: int, shown_all: bool, repeats: int, onto_decoded: bool) -> Filled:
        """What `latent_inpaint` does, but the encoder sees what is in the hole, or cells are resampled, or
        the fill is pasted onto the image as the decoder returns it."""
        z = vae.to_unit(vae.encode(x if shown_all else torch.where(MASKS["box"], x, 0)).mode)
        known = ddim(), z, latent_mask(MASKS["box"], vae.latent[1:])
        stepper = resampling(*known, repeats) if repeats > 1 else known_region(*known)
        g = torch.Generator().manual_seed(seed)
        z = sample(model, torch.randn(z.shape, generator=g), uniform_grid(STEPS), stepper, generator=g, y=y)
        around = reconstruct(vae, x) if onto_decoded else x
        return paste_back(vae.decode(vae.from_unit(z)), around, MASKS["box"]), STEPS * repeats

    with torch.no_grad():
        for method, *how in (
            ("encoder shown all, pasted back", True, 1, False),
            ("resampled 5 times, pasted back", False, 5, False),
            ("resampled 5 times, pasted on decoded", False, 5, True),
        ):
            make = partial(other, **dict(zip(("shown_all", "repeats", "onto_decoded"), how, strict=True)))
            row("box", f"latent, {method}", partial(in_parts, x, y, make), **by)
    latent("as decoded", model, False, STEPS)
    latent("pasted back", model, True, STEPS)
    latent(f"w = {w:g}, pasted back", classifier_free(model, w), True, 2 * STEPS)


if __name__ == "__main__": main()
