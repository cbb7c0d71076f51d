"""Put finished runs into the package: `python tools/ship.py runs/cifar10-small runs/digits --early 40064`.

Writes diffusion_course/weights/: cifar10.safetensors (the finished model, or the last stage so far), cifar10-early.safetensors (the stage that lesson
14 goes on from), ladder/*.webp (the samples of all stages), cifar10-metrics.csv (the loss curve) and digits.safetensors.
"""
from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from PIL import Image
from shipping import newest, ship

from diffusion_course.checkpoints import WEIGHTS, info, load
from diffusion_course.generation import generate
from diffusion_course.images import digit_classifier


def quality_of_digits(model: torch.nn.Module) -> str:
    """What the classifier of lesson 12 says about 500 digits."""
    y = torch.arange(500) % 10
    x = generate(model, len(y), 20, "dpmpp_2m", 2.0, seed=0, y=y)
    return f"label agreement {(digit_classifier()(x) == y).double().mean():.1%} ({len(y)}, w = 2)"


def quality_of_pictures(images: int) -> str:
    """The best row of tools/tables.py for the model that has seen so many pictures."""
    rows = [r for r in json.loads((WEIGHTS / "tables.json").read_text()).get("best", []) if r["images"] == images]
    if not rows: return "not measured yet: python tools/tables.py cifar10"
    r = rows[0]
    value = lambda name: r["scores"][name]["value"]
    return f"label agreement {value('label agreement'):.1%}, Fréchet distance {value('Fréchet distance'):.3f} ({r['n']:,}, w = {r['w']:g})"


def main() -> None:
    """Copy, and say what was copied."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="of `diffusion-course train cifar10-small`")
    parser.add_argument("digits", type=Path, help="of `diffusion-course train digits`")
    parser.add_argument("--early", type=int, required=True, help="pictures seen by the stage that lesson 14 goes on from")
    args = parser.parse_args()
    final, digits = newest(args.run), args.digits / "model.safetensors"
    ship(final, "cifar10", quality=quality_of_pictures(info(final)["images"]))
    ship(args.run / "stages" / f"{args.early:09d}.safetensors", "cifar10-early")
    ship(digits, "digits", quality=quality_of_digits(load(digits)))
    shutil.rmtree(WEIGHTS / "ladder", ignore_errors=True)
    (WEIGHTS / "ladder").mkdir()
    for picture in sorted((args.run / "samples").glob("*.png")):
        Image.open(picture).save(WEIGHTS / "ladder" / f"{picture.stem}.webp", quality=85, method=6)
    shutil.copyfile(args.run / "metrics.csv", WEIGHTS / "cifar10-metrics.csv")
    files = [p for p in WEIGHTS.rglob("*") if p.is_file()]
    for p in files: p.chmod(0o644)
    print(f"{len(files)} files, {sum(p.stat().st_size for p in files) / 2**20:.1f} MB in all")


if __name__ == "__main__": main()
