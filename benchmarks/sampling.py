"""How soon lesson 15's panel shows something, and when it is done: `python benchmarks/sampling.py`.

Eight guided images of the shipped CIFAR-10 model in 20 steps of DPM-Solver++(2M), each preview made
into a PNG as the panel does. On an idle machine.
"""

import io
import time

import torch

from diffusion_course.checkpoints import load
from diffusion_course.generation import previews
from diffusion_course.plots import tile


def once(model: torch.nn.Module, seed: int) -> tuple[float, float]:
    """Seconds until the first preview, and until the last."""
    start = time.perf_counter()
    shown = []
    for p in previews(model, 8, 20, "dpmpp_2m", 2.0, seed, y=3):
        tile(p.x1, 4, scale=3).save(io.BytesIO(), "png")
        shown.append(time.perf_counter() - start)
    return shown[0], shown[-1]


if __name__ == "__main__":
    model = load("cifar10")
    turns = [once(model, seed) for seed in range(6)][1:]  # the first one warms up
    first, last = (sorted(v)[len(v) // 2] for v in zip(*turns, strict=True))
    seconds = f"first preview {first:.3f} s, 8 images {last:.2f} s (medians of {len(turns)})"
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}: {seconds}")
