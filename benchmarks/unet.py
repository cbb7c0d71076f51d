"""How fast a U-Net trains and samples, and what memory it takes, beside diffusers' and TorchCFM's.

A training step is forward, mean squared error, backward and AdamW on random images (3 x 32 x 32); a sampling step is
the network's call without gradients. Each of the others is built twice: with about as many weights as ours, and with
about as many multiply-adds, so that our patch stem decides neither. And each is timed twice: as its own documentation
trains it (single precision, contiguous), and exactly as ours (16-bit autocast where the device is quicker with it,
channels_last, fused AdamW). Nothing is compiled, for all. A GPU is used where there is one. Peak memory is that of a
process of its own which makes two training steps, less what it took before.

`python benchmarks/unet.py --profile` shows where ours and theirs spend the time.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import peers
import torch
from measuring import Cell, bars, described, goal, headline, per, ratios, table, turns
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from diffusion_course.training import PRESETS, runs_bf16
from diffusion_course.unet import UNet


def diffusers_net(widths: tuple[int, ...]) -> nn.Module:
    """The U-Net of diffusers' unconditional training example, with our labels, blocks and attention."""
    from diffusers import UNet2DModel

    levels = len(widths)
    attention = [k >= levels - 2 for k in range(levels)]
    return UNet2DModel(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=widths,
        num_class_embeds=11,
        norm_num_groups=16,
        attention_head_dim=32,
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attention),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
    )


def torchcfm_net(width: int, blocks: int, multipliers: tuple[int, ...]) -> nn.Module:
    """TorchCFM's CIFAR-10 U-Net, with labels. Its widths are multiples of 32."""
    return peers.load("torchcfm.models.unet.unet").UNetModelWrapper(
        dim=(3, 32, 32),
        num_channels=width,
        num_res_blocks=blocks,
        channel_mult=list(multipliers),
        num_heads=4,
        num_head_channels=32,
        attention_resolutions="8",
        dropout=0.0,
        class_cond=True,
        num_classes=11,
    )


def call(net: nn.Module, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The network's output, whichever library it is from."""
    if isinstance(net, UNet):
        return net(x, t, y)
    if "diffusers" in type(net).__module__:
        return net(x, 1000 * t, class_labels=y).sample
    return net(t, x, y=y)


def cost(net: nn.Module, batch: tuple[torch.Tensor, ...]) -> tuple[float, float]:
    """Millions of weights, and of multiply-adds for one image."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call(net, *(a[:1] for a in batch))
    return sum(p.numel() for p in net.parameters()) / 1e6, counter.get_total_flops() / 2e6


def stepper(net: nn.Module, batch: tuple[torch.Tensor, ...], fast: bool) -> Callable[[], None]:
    """A function that makes one training step."""
    x, t, y = batch
    if fast:
        net = net.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-4, fused=fast)
    bf16 = fast and runs_bf16(x.device)

    def step() -> None:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            out = call(net, x, t, y)
        loss = (out.float() - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def sampler(net: nn.Module, batch: tuple[torch.Tensor, ...], fast: bool) -> Callable[[], None]:
    """A function that calls the network once, as a sampling step does."""
    x, t, y = batch
    if fast:
        net = net.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
    bf16 = fast and runs_bf16(x.device)

    @torch.no_grad()
    def step() -> None:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            call(net, x, t, y)

    return step


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def batch_of(n: int, where: torch.device) -> tuple[torch.Tensor, ...]:
    """Random images, times and labels."""
    g = torch.Generator().manual_seed(0)
    x, t = torch.randn(n, 3, 32, 32, generator=g), torch.rand(n, generator=g)
    return tuple(a.to(where) for a in (x, t, torch.randint(10, (n,), generator=g)))


# As wide as brings them nearest to our 5.96 M weights, or 371 M multiply-adds, to 8 % or better.
EQUAL: dict[str, Callable[[], nn.Module]] = {
    "diffusers, equal weights": partial(diffusers_net, (64, 64, 192)),
    "diffusers, equal multiply-adds": partial(diffusers_net, (32, 64, 96)),
    "TorchCFM, equal weights": partial(torchcfm_net, 32, 1, (3, 4, 5)),
    "TorchCFM, equal multiply-adds": partial(torchcfm_net, 32, 1, (1, 2, 4)),
}


def ours() -> nn.Module:
    return UNet(PRESETS["cifar10-small"].net)


def networks() -> dict[str, Callable[[], nn.Module]]:
    """How each network is built: ours, and the others' of equal weights and of equal multiply-adds."""
    there = {
        "diffusers": peers.has("diffusers"),
        "TorchCFM": peers.has("torchcfm.models.unet.unet"),
    }
    return {"ours": ours} | {
        name: build for name, build in EQUAL.items() if there[name.partition(",")[0]]
    }


def peak_memory(build: Callable[[], nn.Module], n: int, fast: bool) -> float:
    """MB that two training steps take, beyond what the process had before. Called in a process of its own."""
    if torch.cuda.is_available():
        stepper(build().cuda(), batch_of(n, device()), fast)()
        return torch.cuda.max_memory_allocated() / 1e6
    import resource

    import psutil

    step = stepper(build(), batch_of(n, device()), fast)
    unit = 1e6 if sys.platform == "darwin" else 1e6 / 1024
    before = psutil.Process().memory_info().rss / 1e6
    step()
    step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit - before


def memory_of(name: str, n: int, fast: bool) -> float | None:
    """`peak_memory` in a process of its own; None where that is not known (Windows)."""
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import unet; "
        f"print(unet.peak_memory(unet.networks()[{name!r}], {n}, {fast}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8")
    return float(done.stdout.split()[-1]) if not done.returncode else None


def measure(quick: bool = False) -> dict[str, Any]:
    """Training, sampling and memory of all networks."""
    where = device()
    n, repeats = (
        (8, 1) if quick else (512 if where.type == "cuda" else 128 if runs_bf16(where) else 32, 5)
    )
    batch = batch_of(n, where)
    builds = networks()
    keys = [("ours", True)] + [
        (name, fast) for name in builds if name != "ours" for fast in (False, True)
    ]
    nets = {key: builds[key[0]]().to(where) for key in keys}
    train = turns(
        {key: stepper(net, batch, key[1]) for key, net in nets.items()}, repeats, "unet, training"
    )
    draw = turns(
        {key: sampler(net, batch, key[1]) for key, net in nets.items()}, repeats, "unet, sampling"
    )
    memory = {key: memory_of(key[0], n, key[1]) for key in (keys[:1] if quick else keys)}
    fast = "bf16" if runs_bf16(where) else "fp32"
    mine = "ours", True
    rows: list[list[Cell]] = []
    for key in keys:
        weights, adds = cost(nets[key], batch)
        rows.append(
            [
                key[0],
                f"as ours ({fast})" if key[1] else "as documented",
                weights,
                adds,
                per(n, train[key]),
                ratios(train[key], train[mine]),
                per(n, draw[key]),
                ratios(draw[key], draw[mine]),
                memory.get(key),
            ]
        )
    columns = [
        "network",
        "run",
        "weights, M",
        "multiply-adds, M",
        "trained images/s",
        "ours is faster by",
        "images/s of a sampling step",
        "ours is faster by",
        "memory, MB",
    ]
    goals = []
    for key in keys[1:]:
        limit = 1.2 if key[1] else 1.5
        how = "in the same precision and format" if key[1] else "as documented"
        for what, times in (("training", train), ("sampling", draw)):
            goals.append(
                goal(
                    f"{what}, {key[0]}, {how}",
                    ratios(times[key], times[mine])["median"],
                    limit,
                    False,
                    "times as fast",
                    WHY,
                )
            )
    heads = [
        headline(
            f"training, beside the U-Net of {name}, {'same precision' if fast_ else 'as documented'}",
            ratios(train[name, fast_], train[mine]),
            "times as fast",
        )
        for name, fast_ in keys[1:]
    ]
    values = {
        f"{name}{'' if name == 'ours' else ', as ours' if same else ', as documented'}": per(
            n, times
        )
        for (name, same), times in train.items()
    }
    return dict(
        headlines=heads,
        how=described(__doc__),
        goals=goals,
        plots=[bars("training", "Training throughput", values, "images a second")],
        tables=[table(f"On the {where.type}, batches of {n}", columns, rows)],
    )


WHY = (
    "convolutions take about two thirds of a training step in every one of them, and one library computes them at"
    " the same rate, so that with as many multiply-adds only the other third can differ (`python benchmarks/unet.py"
    " --profile`); where ours has more weights, its optimizer has more to do too"
)


def profile() -> None:
    """Where the networks spend a training step, as ours."""
    batch = batch_of(128, device())
    for name, build in networks().items():
        step = stepper(build().to(device()), batch, True)
        step()
        with torch.profiler.profile() as p:
            step()
        shown = p.key_averages().table(
            sort_by="self_cpu_time_total", row_limit=8, max_name_column_width=40
        )
        print(name, shown, sep="\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--profile", action="store_true", required=True)
    parser.parse_args()
    profile()
