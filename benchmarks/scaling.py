"""How cost grows with batch, steps, resolution and processes, and what larger images would take.

The shipped CIFAR-10 model draws; its U-Net, built for each size, trains on random images. An image's operations are
counted by PyTorch's FLOP counter: two for a multiply-add, and three times the forward pass for a training step. What
32 pixels take gives a rate of operations, which predicts 64 pixels, and that is measured too. Processes are those of
`accelerate launch`, which share the cores: each has the whole of them divided by their number.
"""

from __future__ import annotations

import csv
import dataclasses
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from measuring import (
    ROOT,
    Cell,
    described,
    goal,
    headline,
    lines,
    per,
    ratios,
    scaled,
    spread,
    table,
    turns,
)
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from diffusion_course.checkpoints import load
from diffusion_course.generation import generate
from diffusion_course.training import PRESETS, autocast
from diffusion_course.unet import UNet, UNetConfig

SMALL = PRESETS["cifar10-small"].net


def at_side(side: int) -> UNetConfig:
    """The shipped model's network for images of this size, with attention at the same levels."""
    return dataclasses.replace(SMALL, shape=(3, side, side), attention=(side // 4, side // 8))


GPU = 150e12  # operations a second that one GPU of today sustains in 16 bits: assumed, not measured
LARGER: dict[
    str, tuple[UNetConfig, float, str]
] = {  # network, millions of images seen, what carries it
    "CIFAR-10, 32 pixels, as shipped": (SMALL, 2, "`train cifar10-small`, as it is"),
    "CIFAR-10, 32 pixels, `cifar10-base`": (
        PRESETS["cifar10-base"].net,
        12,
        "`train cifar10-base`, as it is",
    ),
    "64 pixels, 100,000 images of your own": (
        at_side(64),
        10,
        "`train images --size 64` with this network (docs/larger.md)",
    ),
    "ImageNet at 64 pixels, 260 M weights": (
        dataclasses.replace(
            PRESETS["cifar10-base"].net,
            shape=(3, 64, 64),
            widths=(192, 384, 576, 768),
            blocks=3,
            attention=(8, 16),
            n_labels=1000,
        ),
        2000,
        "accelerate over 8 GPUs, webdataset",
    ),
    "256 pixels, latents of 32 x 32 x 4": (
        dataclasses.replace(
            PRESETS["cifar10-base"].net,
            shape=(4, 32, 32),
            widths=(192, 384, 768),
            blocks=3,
            attention=(8, 16),
            n_labels=1000,
        ),
        1000,
        "accelerate, latents written ahead, webdataset",
    ),
    "256 pixels, pixels themselves": (
        dataclasses.replace(
            PRESETS["cifar10-base"].net,
            shape=(3, 256, 256),
            widths=(256, 256, 512, 512, 1024, 1024),
            blocks=2,
            attention=(8, 16, 32),
            n_labels=1000,
        ),
        500,
        "accelerate with FSDP, webdataset",
    ),
}


def operations(config: UNetConfig) -> tuple[float, float]:
    """Weights, and operations of a forward pass for one image; nothing is computed."""
    with torch.device("meta"):
        net = UNet(config)
        x, t, y = torch.randn(1, *config.shape), torch.rand(1), torch.zeros(1, dtype=torch.long)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(x, t, y)
    return sum(p.numel() for p in net.parameters()), counter.get_total_flops()


def training_step(config: UNetConfig, n: int) -> Any:
    """A function that makes one training step of n random images, as `train` does."""
    net: nn.Module = UNet(config).to(memory_format=torch.channels_last)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, *config.shape, generator=g).contiguous(memory_format=torch.channels_last)
    t, y = torch.rand(n, generator=g), torch.zeros(n, dtype=torch.long)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-4, fused=True)

    def step() -> None:
        with autocast(x.device):
            out = net(x, t, y)
        optimizer.zero_grad()
        (out.float() - x).square().mean().backward()
        optimizer.step()

    return step


def with_processes(k: int, images: int) -> float:
    """Images a second of `train digits` in k processes, from the second half of its metrics."""
    threads = max(1, torch.get_num_threads() // k)
    env = dict(
        os.environ, OMP_NUM_THREADS=str(threads), PYTHONPATH=str(ROOT), CUDA_VISIBLE_DEVICES=""
    )
    with tempfile.TemporaryDirectory() as tmp:
        launch = [
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            "--num_machines",
            "1",
            "--mixed_precision",
            "no",
            "--dynamo_backend",
            "no",
            "--num_processes",
            str(k),
        ]
        # With --cpu in place of --multi_gpu it would start one process, whatever number it is told.
        launch += ["--multi_gpu", "--main_process_port", "0"] if k > 1 else ["--cpu"]
        train = [
            "-m",
            "diffusion_course.cli",
            "train",
            "digits",
            "--folder",
            f"{tmp}/run",
            "--images",
            str(images),
            "--log_every",
            str(images // 4),
        ]
        subprocess.run(
            [*launch, *train], env=env, cwd=tmp, check=True, capture_output=True
        )
        with (Path(tmp) / "run" / "metrics.csv").open(encoding="utf-8") as f:
            rows = list(csv.DictReader(f))
    half = rows[len(rows) // 2 :]
    return sum(float(r["images_per_second"]) for r in half) / len(half)


def measure(quick: bool = False) -> dict[str, Any]:
    """Batch, steps, resolution, processes, and what larger images would take."""
    repeats = 1 if quick else 5
    model = load("cifar10")
    batches = (1, 2) if quick else (1, 2, 4, 8, 16, 32)
    times = turns(
        {n: lambda n=n: generate(model, n, 2, "euler", 2.0, seed=0, y=0) for n in batches},
        repeats,
        "batch",
    )
    by_batch: list[list[Cell]] = [
        [n, scaled(spread(v), 500), per(2 * n, v)] for n, v in times.items()
    ]
    counts = (1, 2) if quick else (1, 2, 4, 8, 16)
    steps = turns(
        {n: lambda n=n: generate(model, 4, n, "euler", 2.0, seed=0, y=0) for n in counts},
        repeats,
        "steps",
    )
    by_steps: list[list[Cell]] = [
        [n, spread(v), scaled(ratios(v, steps[1]), 1 / n)] for n, v in steps.items()
    ]

    sides = (16, 32) if quick else (16, 32, 48, 64)
    n = 2 if quick else 16
    configs = {side: at_side(side) for side in sides}
    counted = {side: operations(c) for side, c in configs.items()}
    train = turns({side: training_step(c, n) for side, c in configs.items()}, repeats, "resolution")
    rate = spread([3 * n * counted[32][1] / s for s in train[32]])
    by_side: list[list[Cell]] = []
    for side, seconds in train.items():
        needed = 3 * n * counted[side][1]
        predicted = [s * counted[side][1] / counted[32][1] for s in train[32]]
        by_side.append(
            [
                side,
                counted[side][1] / 1e9,
                spread(seconds),
                spread([1e-9 * needed / s for s in seconds]),
                spread(predicted),
                ratios(seconds, predicted),
            ]
        )
    error = ratios(train[sides[-1]], train[32])["median"] / (counted[sides[-1]][1] / counted[32][1])

    images = 2560 if quick else 12_800
    processes = {k: [with_processes(k, images) for _ in range(1 if quick else 2)] for k in (1, 2)}
    by_process: list[list[Cell]] = [
        [k, max(1, torch.get_num_threads() // k), spread(v), ratios(v, processes[1])]
        for k, v in processes.items()
    ]
    larger: list[list[Cell]] = []
    for name, (config, millions, engine) in LARGER.items():
        weights, forward = operations(config)
        total = 3 * forward * millions * 1e6
        larger.append(
            [
                name,
                weights / 1e6,
                forward / 2e9,
                millions,
                f"{total:.1e}",
                duration(total / rate["median"]),
                duration(total / GPU),
                engine,
            ]
        )
    tables = [
        table(
            "Batch: a guided step of the shipped model",
            ["images", "ms a step", "images x steps/s"],
            by_batch,
        ),
        table(
            "Steps: four images", ["steps", "seconds", "a step, times that of one step"], by_steps
        ),
        table(
            f"Resolution: a training step of {n} images, the shipped model's U-Net",
            [
                "pixels",
                "operations an image, G",
                "seconds",
                "G operations/s",
                "predicted from 32 pixels, s",
                "measured, times predicted",
            ],
            by_side,
        ),
        table(
            "Processes of accelerate, `train digits`",
            ["processes", "threads each", "images/s", "times one process"],
            by_process,
        ),
        table(
            "What larger images would take",
            [
                "what",
                "weights, M",
                "multiply-adds an image, G",
                "million images",
                "operations in all",
                f"this machine, at {rate['median'] / 1e9:.0f} G/s",
                f"one GPU, at {GPU / 1e12:.0f} T/s (assumed)",
                "what carries it",
            ],
            larger,
            "The millions of images are of the size that published runs take. [docs/larger.md](../docs/larger.md) says"
            " what each line needs beside time.",
        ),
    ]
    goals = [
        goal(
            f"what 32 pixels take predicts {sides[-1]} pixels, within 30 %",
            abs(error - 1),
            0.3,
            why="caches hold less of a larger image",
        )
    ]
    plots = [
        lines(
            "batch",
            "Images and steps a second",
            {"ours, cifar10": (list(times), [per(2 * k, v)["median"] for k, v in times.items()])},
            ("images at a time", "images x steps a second"),
            "x",
        ),
        lines(
            "resolution",
            "A training step",
            {
                "ours, measured": (sides, [spread(train[s])["median"] for s in sides]),
                "predicted from 32 pixels": (
                    sides,
                    [3 * n * counted[s][1] / rate["median"] for s in sides],
                ),
            },
            ("pixels along a side", f"seconds for {n} images"),
        ),
    ]
    images_all = PRESETS["digits"].images
    heads = [
        headline(
            "`train digits`, from its images a second",
            spread([images_all / v for v in processes[1]]),
            "s",
        )
    ]
    return dict(headlines=heads, how=described(__doc__), goals=goals, tables=tables, plots=plots)


def duration(seconds: float) -> str:
    """In the largest unit that leaves one or more."""
    for unit, size in (("years", 365 * 86400), ("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:.0f} seconds"
