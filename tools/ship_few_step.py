"""Put the student of lesson 21 into the package: `python tools/ship_few_step.py runs/few-step`.

Expects a run of `diffusion-course train few-step --folder runs/few-step`, and ships its model, or its latest stage while it isn't finished. Writes
diffusion_course/weights/few-step.safetensors. Refuses a student whose autoencoder isn't the one that ships.
"""
from __future__ import annotations

import argparse
import re
from pathlib import Path

from diffusion_course.checkpoints import WEIGHTS, info, load, save


def main() -> None:
    """Copy, and say what was copied."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the folder of the run")
    parser.add_argument("--out", type=Path, default=WEIGHTS / "few-step.safetensors")
    args = parser.parse_args()
    source = args.run / "model.safetensors"
    if not source.exists(): source = max((args.run / "stages").glob("*.safetensors"))
    model, about = load(source), info(source)
    model.net.vae()  # a ValueError where its autoencoder isn't the one that ships
    about["command"] = re.sub(r" (--resume|--folder \S+|--kept \S+)", "", about.get("command", "diffusion-course train few-step"))
    if "kept" in about.get("config", {}): about["config"]["kept"] = ""
    save(model, args.out, **about)
    args.out.chmod(0o644)
    print(f"{source}: {args.out.stat().st_size / 2**20:.2f} MB, {about['images']:,} pairs seen, {about['seconds']} s, loss {about['loss']:.4f}")


if __name__ == "__main__": main()
