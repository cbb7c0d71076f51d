"""Images per second of the shipped models at equal quality, and how soon lesson 15's panel answers.

Quality is what the shipped tables say (`latent.json`, `few_step.json`: Fréchet distance of 2,000 images to real ones,
in the course's own features): for each bound, every model takes the fewest steps whose distance is below it. All
draw the same number of images, decoding included, in turns. The panel draws eight guided images in 20 steps of
DPM-Solver++(2M) and makes each preview a PNG. "fp32" forces single precision, which is what a processor without
16-bit matrix units takes anyway: on one that has them it stands in for those that have not.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from measuring import (
    ROOT,
    Cell,
    bars,
    described,
    goal,
    headline,
    matrix_units,
    per,
    ratios,
    spread,
    table,
    turns,
)

from diffusion_course.checkpoints import load
from diffusion_course.generation import as_images, generate, previews
from diffusion_course.plots import tile
from diffusion_course.training import runs_bf16

BOUNDS = (1.6, 1.1, 0.9, 0.5)
SETTINGS = {  # model: sampler, guidance; a student's guidance is its teacher's, learned
    "cifar10": ("dpmpp_2m", 1.75),
    "cifar10-latent": ("dpmpp_2m", 3.5),
    "few-step": ("euler", 1.0),
}
PANEL = dict(steps=20, sampler="dpmpp_2m", guidance=2.0, y=3)


def distances() -> dict[str, dict[int, float]]:
    """Fréchet distance for each number of steps, of each model, from the shipped tables."""
    weights = ROOT / "diffusion_course" / "weights"
    read = lambda name: json.loads((weights / f"{name}.json").read_text(encoding="utf-8"))
    found: dict[str, dict[int, float]] = {name: {} for name in SETTINGS}
    for row in read("latent")["steps"]:
        found[row["model"]][row["steps"]] = row["frechet"]
    for row in read("few_step")["scores"]:
        if (row["model"], row["sampler"]) == ("reflow", "euler"):
            found["few-step"][row["steps"]] = row["frechet"]
    return found


def draw(model: torch.nn.Module, name: str, n: int, steps: int, precision: str) -> None:
    """Images of a shipped model, decoded."""
    sampler, guidance = SETTINGS[name]
    x = generate(
        model, n, steps, sampler, guidance, seed=0, precision=precision, y=torch.arange(n) % 10
    )
    as_images(model, x)


def panel(model: torch.nn.Module, precision: str, steps: int) -> tuple[float, float]:
    """Seconds until the first preview, and until the last."""
    begin = time.perf_counter()
    shown = []
    for p in previews(model, 8, **PANEL | dict(steps=steps, seed=0, precision=precision)):
        tile(p.x1, 4, scale=3).save(io.BytesIO(), "png")
        shown.append(time.perf_counter() - begin)
    return shown[0], shown[-1]


def shares(run: Callable[[], object]) -> list[list[Cell]]:
    """What takes the processor's time."""
    with torch.profiler.profile() as p:
        run()
    events = sorted(p.key_averages(), key=lambda e: -e.self_cpu_time_total)
    total = sum(e.self_cpu_time_total for e in events)
    return [
        [e.key.removeprefix("aten::"), 100 * e.self_cpu_time_total / total, e.count]
        for e in events[:6]
    ]


def measure(quick: bool = False) -> dict[str, Any]:
    """Images per second at equal quality, and the panel."""
    n, repeats, steps = (2, 1, 2) if quick else (16, 5, 20)
    kinds = {"fp32": "fp32"}
    if runs_bf16(torch.device("cpu")):
        kinds = {f"16 bits ({', '.join(matrix_units())})": "auto"} | kinds
    models = {name: load(name) for name in SETTINGS}
    by_steps = distances()
    rows: list[list[Cell]] = []
    values: dict[str, Any] = {}
    for kind, precision in kinds.items():
        fewest = {
            (name, bound): min((s for s, d in by_steps[name].items() if d <= bound), default=None)
            for name in models
            for bound in BOUNDS
        }
        wanted = sorted({(name, s) for (name, _), s in fewest.items() if s is not None})[
            : 4 if quick else None
        ]
        runs = {key: partial(draw, models[key[0]], key[0], n, key[1], precision) for key in wanted}
        times = turns(runs, repeats, f"speed, {kind}")
        for bound in BOUNDS:
            base = times.get(("cifar10", fewest["cifar10", bound] or 0))
            for name in models:
                key = name, fewest[name, bound] or 0
                if key not in times:
                    rows.append(
                        [
                            kind,
                            f"{bound:g}",
                            name,
                            "not reached" if not key[1] else key[1],
                            None,
                            None,
                        ]
                    )
                    continue
                rows.append(
                    [
                        kind,
                        f"{bound:g}",
                        name,
                        key[1],
                        per(n, times[key]),
                        ratios(base, times[key]) if base else None,
                    ]
                )
                values[f"{name}, Fréchet at most {bound:g}, {kind}"] = rows[-1][4]
    pixels = models["cifar10"]
    first_last = {
        kind: [panel(pixels, p, steps) for _ in range(repeats + 1)][1:] for kind, p in kinds.items()
    }
    waits: dict[str, tuple[dict, dict]] = {
        kind: (spread([a for a, _ in v]), spread([b for _, b in v]))
        for kind, v in first_last.items()
    }
    slow = waits["fp32"]
    goals = [
        goal(
            "eight guided images in 20 steps, fp32",
            slow[1]["median"],
            3.0,
            unit="s",
            why="the convolutions take nearly all of it: see what takes the time, below the panel's table",
        ),
    ]
    tables = [
        table(
            f"Images per second at equal quality, {n} images at a time",
            [
                "precision",
                "Fréchet distance at most",
                "model",
                "steps",
                "images/s",
                "times cifar10's",
            ],
            rows,
        ),
        table(
            f"Lesson 15's panel: eight images in {steps} guided steps",
            ["precision", "first preview, s", "all, s"],
            [[kind, a, b] for kind, (a, b) in waits.items()],
        ),
        table(
            "What takes the panel's time (fp32)",
            ["operation", "%", "calls"],
            shares(lambda: panel(models["cifar10"], "fp32", 2)),
        ),
    ]
    heads = [
        headline(f"lesson 15's panel: eight images in {steps} guided steps, {kind}", b, "s")
        for kind, (_, b) in waits.items()
    ]
    heads += [headline(f"its first preview, {kind}", a, "s") for kind, (a, _) in waits.items()]
    same = {
        name: next((row[4] for row in rows if row[:3] == ["fp32", "1.1", name]), None)
        for name in models
    }
    heads += [
        headline(f"images per second of `{name}` at a Fréchet distance of at most 1.1, fp32", v)
        for name, v in same.items()
        if v
    ]
    return dict(
        headlines=heads,
        how=described(__doc__),
        goals=goals,
        tables=tables,
        plots=[bars("quality", "Images per second at equal quality", values, "images a second")],
    )
