"""Put the finished runs of lesson 17 into the package: `python tools/ship_vae.py runs`.

Expects runs/vae-small, runs/vae-64, runs/vae-512 (`diffusion-course train NAME`) and runs/kl-K for each K of KLS (`diffusion-course train
vae-digits --kl K --folder runs/kl-K`). Writes diffusion_course/weights/vae-*.safetensors and vae-digits/kl-*.safetensors, with the quality measured
on test pictures beside each.
"""
from __future__ import annotations

import argparse
from pathlib import Path

from shipping import ship

from diffusion_course.checkpoints import info, load
from diffusion_course.images import cifar10, digits
from diffusion_course.vae import psnr, reconstruct

KLS = ("0", "0.01", "0.1", "0.5", "2")


def main() -> None:
    """Copy, measure, and say what was copied."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, help="the folder that holds the runs")
    runs = parser.parse_args().runs
    tests = {name: data("test").batch(slice(0, 1000))[0] for name, data in (("cifar10", cifar10), ("digits", digits))}
    names = {f"vae-{k}": f"vae-{k}" for k in ("small", "64", "512")} | {f"kl-{k}": f"vae-digits/kl-{k}" for k in KLS}
    for run, name in names.items():
        source = runs / run / "model.safetensors"
        x = tests[info(source)["config"]["data"]]
        ship(source, name, psnr=round(psnr(x, reconstruct(load(source), x)).mean().item(), 2))


if __name__ == "__main__": main()
