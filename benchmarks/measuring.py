"""What the topics share: turns taken by ours and theirs, medians with quartiles, tables, goals, the machine."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    "torch",
    "diffusers",
    "torchcfm",
    "azula",
    "smalldiffusion",
    "k-diffusion",
    "flow_matching",
    "torchdiffeq",
    "torchsde",
    "POT",
    "accelerate",
    "numpy",
    "scipy",
)

Spread = dict[str, float]  # median, low and high: the quartiles
Cell = str | int | float | Spread | None
Run = Callable[[], object]


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles."""
    values = sorted(float(v) for v in values)
    if len(values) == 1:
        return dict(median=values[0], low=values[0], high=values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return dict(median=median, low=low, high=high)


def ratios(above: Sequence[float], below: Sequence[float]) -> Spread:
    """Of the same turns: what else the machine did then is in both."""
    return spread([a / b for a, b in zip(above, below, strict=True)])


def scaled(values: Spread, by: float) -> Spread:
    """In another unit."""
    return {name: by * v for name, v in values.items()}


def per(number: float, seconds: Sequence[float]) -> Spread:
    """How many a second."""
    return spread([number / s for s in seconds])


def turns(
    runs: dict[str, Run], repeats: int, what: str = "", warm: bool = True
) -> dict[str, list[float]]:
    """The seconds of each run, which take turns: A B C, C B A, A B C ... A first turn only warms up.

    A run that returns a float has measured itself.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    first = 0 if warm else 1
    for turn in tqdm(range(first, repeats + 1), what, leave=False):
        order = list(runs.items())
        for name, run in order if turn % 2 else reversed(order):
            wait()
            begin = time.perf_counter()
            own = run()
            wait()
            if turn:
                times[name].append(own if isinstance(own, float) else time.perf_counter() - begin)
    return times


def wait() -> None:
    """Until a GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], note: str = ""
) -> dict[str, Any]:
    """A table of the report."""
    for row in rows:
        assert len(row) == len(columns), (title, row)
    return dict(title=title, columns=list(columns), rows=[list(row) for row in rows], note=note)


def goal(
    text: str,
    measured: float,
    limit: float,
    at_most: bool = True,
    unit: str = "",
    why: str = "",
) -> dict[str, Any]:
    """A goal beside what was measured; `why` is shown where it falls short."""
    return dict(goal=text, measured=measured, limit=limit, at_most=at_most, unit=unit, why=why)


def headline(what: str, value: Cell, unit: str = "") -> dict[str, Any]:
    """A number that the project's README quotes."""
    return dict(what=what, value=value, unit=unit)


def is_met(g: dict[str, Any]) -> bool:
    """Whether what was measured keeps to a goal's limit."""
    return g["measured"] <= g["limit"] if g["at_most"] else g["measured"] >= g["limit"]


def bars(
    name: str, title: str, values: dict[str, Cell], label: str, mark: float | None = None
) -> dict[str, Any]:
    """A plot of the report: a bar for each name."""
    return dict(name=name, kind="bars", title=title, values=values, label=label, mark=mark)


def lines(
    name: str,
    title: str,
    series: dict[str, tuple[Sequence[float], Sequence[float]]],
    labels: tuple[str, str],
    log: str = "xy",
) -> dict[str, Any]:
    """A plot of the report: a curve for each name."""
    data = {k: dict(x=list(x), y=list(y)) for k, (x, y) in series.items()}
    return dict(name=name, kind="lines", title=title, series=data, labels=list(labels), log=log)


def described(doc: str | None) -> str:
    """How a topic measures: the second paragraph of its module's docstring."""
    return " ".join((doc or "").split("\n\n")[1].split())


def matrix_units() -> list[str]:
    """The processor's units for 16-bit matrix products, as far as PyTorch tells."""
    known = {"AMX": "_is_amx_tile_supported", "AVX512-BF16": "_is_avx512_bf16_supported"}
    return [
        name for name, ask in known.items() if ask in vars(torch.cpu) and vars(torch.cpu)[ask]()
    ]


def kind_of_processor(machine: dict[str, Any]) -> str:
    """In words, for tables and headings."""
    units = machine["matrix_units"]
    return (
        f"with 16-bit matrix units ({', '.join(units)})" if units else "without 16-bit matrix units"
    )


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = [
            line
            for line in info.read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ]
        if found:
            name = found[0].partition(":")[2].strip()
    gpus = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    return dict(
        processor=name,
        cores=cores,
        threads=torch.get_num_threads(),
        system=platform.system(),
        instructions=torch.backends.cpu.get_cpu_capability(),
        matrix_units=matrix_units(),
        gpus=gpus,
        load_before=load,
    )


def versions() -> dict[str, str]:
    """Of Python and what is measured."""
    found = dict(Python=platform.python_version())
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            pass
    return found
