"""What the sampling loop costs beside the network: `python benchmarks/loop.py`.

The same network is called as often by itself, by `sample`, and by the loop that the documentation of diffusers shows. The network is a
stack of convolutions, wide enough that one call takes 5 ms or more here. The three are timed in turn, `--repeats` times; the table has the
median of the times of one call, and the median of the ratios to the bare calls of the same turn.
"""
from __future__ import annotations

import argparse
import statistics
import time
import warnings
from functools import partial

import torch
from torch import nn

from diffusion_course.ddpm import linear_betas
from diffusion_course.predictions import Denoiser
from diffusion_course.samplers import ddim, dpmpp_2m, euler, heun, sample, trailing_grid, uniform_grid
from diffusion_course.schedules import DDPM, Linear


class Network(nn.Module):
    """Convolutions on pictures (B, 3, 32, 32), blind to t: what is timed is the loop around them."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1), nn.SiLU(),
                                    nn.Conv2d(width, 3, 3, padding=1))

    def forward(self, x, t): return 0.1 * self.layers(x)


def seconds(run) -> float:
    """The time that a call takes."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def bare(net: nn.Module, x: torch.Tensor, calls: int) -> None:
    """The network alone, fed with what it gave, so that no call can be skipped."""
    t = torch.full((len(x),), 0.5)
    for _ in range(calls): x = net(x, t)


def with_diffusers(name: str, net: nn.Module, x: torch.Tensor, steps: int, **options) -> None:
    """The loop of its documentation: predict, step."""
    import diffusers

    scheduler = getattr(diffusers, name)(**options)
    scheduler.set_timesteps(steps)
    for i in scheduler.timesteps:
        x = scheduler.step(net(x, i.expand(len(x))), i, x).prev_sample


@torch.no_grad()
def main() -> None:
    """Time the loops and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--width", type=int, default=96)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    net, x = Network(args.width).eval(), torch.randn(args.batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    n, ddpm = args.steps, DDPM(linear_betas())
    flow, noise = Denoiser(net, Linear()), Denoiser(net, ddpm, "eps")
    spaced = dict(timestep_spacing="trailing", clip_sample=False)
    loops = {
        "sample, euler, linear path": (n, lambda: sample(flow, x, uniform_grid(n), euler())),
        "sample, heun, linear path": (2 * n, lambda: sample(flow, x, uniform_grid(n), heun())),
        "sample, ddim, DDPM": (n, lambda: sample(noise, x, trailing_grid(n, ddpm), ddim())),
        "sample, dpmpp_2m, DDPM": (n, lambda: sample(noise, x, trailing_grid(n, ddpm), dpmpp_2m())),
        "diffusers, FlowMatchEuler": (n, lambda: with_diffusers("FlowMatchEulerDiscreteScheduler", net, x, n)),
        "diffusers, DDIM": (n, lambda: with_diffusers("DDIMScheduler", net, x, n, **spaced)),
        "diffusers, DPM-Solver++(2M)": (n, lambda: with_diffusers("DPMSolverMultistepScheduler", net, x, n, timestep_spacing="trailing")),
    }
    for calls, run in loops.values(): run(), bare(net, x, calls)
    print(f"{args.batch} pictures 3 x 32 x 32, {n} steps, {torch.get_num_threads()} threads, torch {torch.__version__}; median of {args.repeats} turns\n")
    print("| loop | calls | ms a call, bare | ms a call, in the loop | longer by | loop alone, µs a call |\n|---|---|---|---|---|---|")
    for name, (calls, run) in loops.items():
        pairs = [(seconds(partial(bare, net, x, calls)), seconds(run)) for _ in range(args.repeats)]
        alone, inside = (statistics.median(p[k] for p in pairs) / calls for k in (0, 1))
        ratio = statistics.median(b / a for a, b in pairs) - 1
        print(f"| {name} | {calls} | {1e3 * alone:.2f} | {1e3 * inside:.2f} | {ratio:.1%} | {1e6 * ratio * alone:.0f} |")


if __name__ == "__main__": main()
