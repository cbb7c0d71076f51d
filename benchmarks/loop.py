"""What the sampling loop costs beside the network: `python benchmarks/loop.py`.

The network is a stack of convolutions, wide enough that one call takes 5 ms or more. It keeps the time that is spent inside it; the rest
of a run's time is the loop's own. `sample` and the loops that the documentation of diffusers shows are run in turn, `--repeats` times;
the table has the medians. (To time the bare calls in another run and subtract is hopeless: two runs of the same calls differ by more than
the loop costs.)
"""
from __future__ import annotations

import argparse
import statistics
import time
import warnings

import torch
from torch import nn
from tqdm import tqdm

from diffusion_course.ddpm import linear_betas
from diffusion_course.predictions import Denoiser
from diffusion_course.samplers import ddim, dpmpp_2m, euler, heun, sample, trailing_grid, uniform_grid
from diffusion_course.schedules import DDPM, Linear


class Network(nn.Module):
    """Convolutions on pictures (B, 3, 32, 32), blind to t: what is timed is the loop around them.

    With ReLU, because an activation with an exponential makes denormal numbers, slow ones, of inputs that one loop meets and another not."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
                                    nn.Conv2d(width, 3, 3, padding=1))

        self.spent = 0.0

    def forward(self, x, t):
        begin = time.perf_counter()
        y = 0.1 * self.layers(x)
        self.spent += time.perf_counter() - begin
        return y


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
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--threads", type=int, default=1, help="with more than one, what is measured is mostly how fast sleeping threads wake")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
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
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in loops}
    for turn in tqdm(range(args.repeats + 1), leave=False):
        for name, (calls, run) in loops.items():
            net.spent, begin = 0.0, time.perf_counter()
            run()
            total = time.perf_counter() - begin
            if turn: times[name].append((net.spent / calls, (total - net.spent) / calls))  # the first warms up
    print(f"{args.batch} pictures 3 x 32 x 32, {n} steps, {torch.get_num_threads()} threads, torch {torch.__version__}; medians of {args.repeats} turns\n")
    print("| loop | calls | ms a call, network | µs a call, loop | longer by |\n|---|---|---|---|---|")
    for name, (calls, _) in loops.items():
        inside, outside = (statistics.median(t[k] for t in times[name]) for k in (0, 1))
        print(f"| {name} | {calls} | {1e3 * inside:.2f} | {1e6 * outside:.0f} | {statistics.median(b / a for a, b in times[name]):.1%} |")


if __name__ == "__main__": main()
