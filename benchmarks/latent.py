"""What latents save: `python benchmarks/latent.py`.

Draws the same number of images with cifar10 and cifar10-latent, in turn, decoding included. Same
steps, sampler, guidance and threads for both. The table has the seconds of each turn (wall clock
and this process's processor time), and the ratio of the same turn; the last line its median.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from diffusion_course.checkpoints import load
from diffusion_course.generation import generate
from diffusion_course.latent import decode


def spent(f: Callable) -> tuple[float, float]:
    """Wall-clock and processor seconds of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    f()
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    """Both models, turn by turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=64, help="images a turn")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--sampler", default="dpmpp_2m")
    parser.add_argument("--guidance", type=float, default=2.5)
    parser.add_argument("--turns", type=int, default=5)
    args = parser.parse_args()
    pixel = load("cifar10")
    model = load("cifar10-latent")
    y = torch.arange(args.n) % 10
    draw = lambda m, steps=args.steps: generate(
        m, args.n, steps, args.sampler, args.guidance, seed=0, y=y
    )
    draw(pixel, 1)  # the first calls compile and allocate
    decode(model, draw(model, 1))
    how = f"{args.steps} steps of {args.sampler}, guidance {args.guidance:g}"
    print(f"{args.n} images, {how}, {torch.get_num_threads()} threads")
    print("turn   pixels: wall    cpu   latents and decoding: wall    cpu    ratio: wall    cpu")
    ratios = []
    for k in range(args.turns):
        wall, cpu = spent(lambda: draw(pixel))
        wall_latent, cpu_latent = spent(lambda: decode(model, draw(model)))
        ratios.append((wall / wall_latent, cpu / cpu_latent))
        seconds = f"{wall:7.2f} {cpu:6.2f}                 {wall_latent:9.2f} {cpu_latent:6.2f}"
        print(
            f"{k + 1:4}        {seconds}        {ratios[-1][0]:6.2f} {ratios[-1][1]:6.2f}",
            flush=True,
        )
    wall, cpu = (statistics.median(r) for r in zip(*ratios, strict=True))
    print(
        f"pixels take {wall:.2f} times as long as latents (median of turns; processor time {cpu:.2f})"
    )


if __name__ == "__main__":
    main()
