"""Put finished runs into the package: `python tools/ship.py runs/cifar10-small runs/digits --early 40064`.

Writes diffusion_course/weights/: cifar10.safetensors (the finished model, or the last stage so far), cifar10-early.safetensors (the stage that lesson
14 goes on from), ladder/*.webp (the samples of all stages), cifar10-metrics.csv (the loss curve) and digits.safetensors.
"""
from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path

from PIL import Image

from diffusion_course.checkpoints import WEIGHTS, info, load, save


def copy(source: Path, target: Path) -> dict:
    """A model with its record, in which the command is what a user would type."""
    about = info(source)
    about["command"] = re.sub(r" (--resume|--folder \S+)", "", about.get("command", ""))
    save(load(source), target, **about)
    return about


def main() -> None:
    """Copy, and say what was copied."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="of `diffusion-course train cifar10-small`")
    parser.add_argument("digits", type=Path, help="of `diffusion-course train digits`")
    parser.add_argument("--early", type=int, required=True, help="pictures seen by the stage that lesson 14 goes on from")
    args = parser.parse_args()
    stages = sorted((args.run / "stages").glob("*.safetensors"))
    final = args.run / "model.safetensors"
    print("cifar10:", copy(final if final.exists() else stages[-1], WEIGHTS / "cifar10.safetensors"))
    print("cifar10-early:", copy(args.run / "stages" / f"{args.early:09d}.safetensors", WEIGHTS / "cifar10-early.safetensors"))
    print("digits:", copy(args.digits / "model.safetensors", WEIGHTS / "digits.safetensors"))
    shutil.rmtree(WEIGHTS / "ladder", ignore_errors=True)
    (WEIGHTS / "ladder").mkdir()
    for picture in sorted((args.run / "samples").glob("*.png")):
        Image.open(picture).save(WEIGHTS / "ladder" / f"{picture.stem}.webp", quality=85, method=6)
    shutil.copyfile(args.run / "metrics.csv", WEIGHTS / "cifar10-metrics.csv")
    files = [p for p in WEIGHTS.rglob("*") if p.is_file()]
    for p in files: p.chmod(0o644)
    print(f"{len(files)} files, {sum(p.stat().st_size for p in files) / 2**20:.1f} MB in all")


if __name__ == "__main__": main()
