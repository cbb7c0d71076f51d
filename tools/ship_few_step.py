"""Put the student of lesson 21 into the package: `python tools/ship_few_step.py runs/few-step`.

Expects a run of `diffusion-course train few-step --folder runs/few-step`, and ships its model, or its latest stage while it isn't finished. Writes
diffusion_course/weights/few-step.safetensors. Refuses a student whose autoencoder isn't the one that ships.
"""
from __future__ import annotations

import argparse
from pathlib import Path

from shipping import newest, ship


def main() -> None:
    """Copy, and say what was copied."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the folder of the run")
    ship(newest(parser.parse_args().run), "few-step", lambda model: model.net.vae())  # a ValueError where its autoencoder isn't the shipped one


if __name__ == "__main__": main()
