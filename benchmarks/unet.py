"""How fast a U-Net trains, beside diffusers' and TorchCFM's: `python benchmarks/unet.py`.

One step is forward, mean squared error, backward and AdamW on random images (3 x 32 x 32). Each of
the others is built twice: with about as many weights as ours, and with about as many multiply-adds,
so that our patch stem decides neither. And each is timed twice: as its own documentation trains it
(single precision, contiguous), and exactly as ours (bf16 autocast where the processor has it,
channels_last). All take turns; the table has medians, and ratios to ours of the same turn.
`--profile` shows where ours and theirs spend the time.

TorchCFM's U-Net is taken from the installed package (`pip install torchcfm`); where it's missing,
its rows are left out.
"""
from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import combinations_with_replacement, product

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from diffusion_course.training import PRESETS, runs_bf16
from diffusion_course.unet import UNet


def diffusers_net(widths: tuple[int, ...]) -> nn.Module:
    """The U-Net of diffusers' unconditional training example, with our labels, blocks and attention."""
    from diffusers import UNet2DModel

    levels = len(widths)
    attention = [k >= levels - 2 for k in range(levels)]
    return UNet2DModel(
        sample_size=32, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=widths,
        num_class_embeds=11, norm_num_groups=16, attention_head_dim=32,
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attention),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
    )


def torchcfm_net(width: int, blocks: int, multipliers: tuple[int, ...]) -> nn.Module:
    """TorchCFM's CIFAR-10 U-Net, with labels. Its widths are multiples of 32."""
    from torchcfm.models.unet.unet import UNetModelWrapper

    return UNetModelWrapper(
        dim=(3, 32, 32), num_channels=width, num_res_blocks=blocks, channel_mult=list(multipliers),
        num_heads=4, num_head_channels=32, attention_resolutions="8", dropout=0.0, class_cond=True,
        num_classes=11,
    )


def call(net: nn.Module, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The network's output, whichever library it is from."""
    if isinstance(net, UNet): return net(x, t, y)
    if "diffusers" in type(net).__module__: return net(x, 1000 * t, class_labels=y).sample
    return net(t, x, y=y)


def cost(net: nn.Module, batch: tuple[torch.Tensor, ...]) -> tuple[float, float]:
    """Millions of weights, and of multiply-adds for one image."""
    with FlopCounterMode(display=False) as counter, torch.no_grad(): call(net, *(a[:1] for a in batch))
    return sum(p.numel() for p in net.parameters()) / 1e6, counter.get_total_flops() / 2e6


def nearest(
    builds: list[Callable[[], nn.Module]], which: int, target: float, batch: tuple[torch.Tensor, ...],
) -> nn.Module:
    """The network whose weights (0) or multiply-adds (1) come nearest to the target."""
    def error(build: Callable[[], nn.Module]) -> float:
        # On the meta device nothing is computed, only counted.
        with torch.device("meta"): found = cost(build(), tuple(a.to("meta") for a in batch))[which]
        return abs(found / target - 1)
    return min(builds, key=error)()


def stepper(net: nn.Module, batch: tuple[torch.Tensor, ...], fast: bool) -> Callable[[], None]:
    """A function that makes one training step."""
    x, t, y = batch
    if fast:
        net = net.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-4, fused=fast)
    bf16 = fast and runs_bf16(x.device)

    def step() -> None:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16): out = call(net, x, t, y)
        loss = (out.float() - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return step


def main() -> None:
    """Time all networks and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    g = torch.Generator().manual_seed(0)
    x = torch.randn(args.batch, 3, 32, 32, generator=g)
    t = torch.rand(args.batch, generator=g)
    batch = x, t, torch.randint(10, (args.batch,), generator=g)
    ours = lambda: UNet(PRESETS["cifar10-small"].net)
    weights, adds = cost(ours(), batch)
    widths = product(range(16, 193, 16), range(32, 257, 32), range(32, 257, 32))
    rising = [w for w in widths if w[0] <= w[1] <= w[2] <= 4 * w[0]]
    builds = {"diffusers": [partial(diffusers_net, w) for w in rising]}
    try:
        import torchcfm  # noqa: F401
        shapes = [m for m in combinations_with_replacement(range(1, 7), 3) if m[2] <= 4 * m[0]]
        builds["TorchCFM"] = [partial(torchcfm_net, 32, 1, m) for m in shapes]
    except ImportError: print("TorchCFM isn't installed: its rows are left out\n")
    nets = {f"{name}, equal {what}": partial(nearest, b, k, (weights, adds)[k], batch)
            for name, b in builds.items() for k, what in enumerate(("weights", "multiply-adds"))}
    rows = {("ours", "fast"): ours()}
    for name, build in nets.items(): rows |= {(name, "as documented"): build(), (name, "fast"): build()}
    costs = {key: cost(net, batch) for key, net in rows.items()}
    steps = {key: stepper(net, batch, key[1] == "fast") for key, net in rows.items()}
    times: dict[tuple[str, str], list[float]] = {key: [] for key in rows}
    for turn in tqdm(range(args.repeats + 1), leave=False):
        for key, step in steps.items():
            begin = time.perf_counter()
            step()
            if turn: times[key].append(time.perf_counter() - begin)
    fast = "bf16" if runs_bf16(torch.device("cpu")) else "fp32"
    how = f"batch {args.batch}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"{how}; fast = {fast}, channels_last, fused AdamW\n")
    print("| network | trained | weights, M | multiply-adds, M | images/s | ours is faster by |")
    print("|---|---|---|---|---|---|")
    for key, seconds in times.items():
        ratio = statistics.median(a / b for a, b in zip(seconds, times["ours", "fast"], strict=True))
        speed = args.batch / statistics.median(seconds)
        millions, adds = costs[key]
        print(f"| {key[0]} | {key[1]} | {millions:.2f} | {adds:.0f} | {speed:.0f} | {ratio:.2f} |")
    if args.profile:
        for key in (k for k in rows if k[1] == "fast"):
            with torch.profiler.profile() as p: steps[key]()
            table = p.key_averages().table(sort_by="self_cpu_time_total", row_limit=8, max_name_column_width=40)
            print(f"\n{key[0]}\n{table}")


if __name__ == "__main__": main()
