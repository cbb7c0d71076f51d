"""How long an import takes, how large an installation is, and how soon a new one shows its first image.

Each import is a Python of its own, and they take turns. "Bare torch" is `import torch`; `dc.sample` is the import of
the course and the first use of a name that needs torch. Sizes are those of the environment's packages on disk that
the course asks for, with what these ask for. The first image is the whole way with packages at hand (nothing is
fetched): copy the checkout, make an environment that sees them, import, load, draw.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from configparser import ConfigParser
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from measuring import (
    ROOT,
    Cell,
    Spread,
    bars,
    described,
    goal,
    headline,
    ratios,
    scaled,
    spread,
    table,
    turns,
)

IMPORTS = {
    "python": "pass",
    "import diffusion_course": "import diffusion_course",
    "bare torch": "import torch",
    "dc.sample": "import diffusion_course as dc; dc.sample",
    "dc.load": "import diffusion_course as dc; dc.load",
    "torchcfm": "import torchcfm",
    "azula": "import azula.sample",
    "torchdiffeq": "import torchdiffeq",
    "diffusers, DDIMScheduler": "from diffusers import DDIMScheduler",
    "diffusers, UNet2DModel": "from diffusers import UNet2DModel",
}
FIRST = """
import diffusion_course as dc
model = dc.load("cifar10")
dc.generate(model, n=1, steps=10, guidance=2.0, y=3, seed=0)
"""


def run(code: str, python: str = sys.executable, **kwargs: Any) -> None:
    """A Python of its own."""
    subprocess.run(
        [python, "-c", code], check=True, capture_output=True, cwd=kwargs.pop("cwd", ROOT), **kwargs
    )


def runs_here(code: str) -> bool:
    """Whether what is imported is there."""
    return (
        subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT).returncode == 0
    )


def imports(repeats: int, most: int | None) -> dict[str, list[float]]:
    """Seconds of each import, Python's own start included."""
    there = {name: code for name, code in [*IMPORTS.items()][:most] if runs_here(code)}
    return turns(
        {name: lambda code=code: run(code) for name, code in there.items()}, repeats, "imports"
    )


def needed(requirements: Iterable[str]) -> dict[str, Distribution]:
    """The distributions that requirements ask for, directly or not, as far as they are installed."""
    found: dict[str, Distribution] = {}
    wanted = list(requirements)
    while wanted:
        text = wanted.pop()
        if "extra ==" in text or 'sys_platform == "win32"' in text:
            continue
        name = re.split(r"[\s;<>=!~\[(]", text, maxsplit=1)[0].lower().replace("_", "-")
        if name in found:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            continue
        wanted += found[name].requires or []
    return found


def size(d: Distribution) -> int:
    """Bytes on disk."""
    paths = (Path(str(d.locate_file(f))) for f in d.files or [])
    return sum(p.stat().st_size for p in paths if p.is_file())


def sizes() -> dict[str, tuple[int, int]]:
    """Packages and bytes of the course's own files, of its core, and of core and lab."""
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    cfg = config["DEFAULT"]
    own = sum(
        p.stat().st_size
        for p in (ROOT / "diffusion_course").rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    )
    core = needed(cfg["requirements"].split())
    torch = needed(["torch"])
    lab = needed([*cfg["requirements"].split(), *cfg["lab_requirements"].split()])
    found = {
        "the course itself, weights included": (1, own),
        "torch, with what it asks for": (len(torch), total(torch)),
        "core (`pip install .`)": (len(core) + 1, own + total(core)),
    }
    if "jupyterlab" in lab:
        found['core and lab (`pip install ".[lab]"`)'] = len(lab) + 1, own + total(lab)
    return found


def total(found: dict[str, Distribution]) -> int:
    return sum(map(size, found.values()))


def first_image(repeats: int) -> list[float]:
    """Seconds from a checkout to the first image: copied, environment made, course installed, one image drawn.

    The environment sees the packages of this one, so nothing is fetched: what the network takes is not in it.
    """
    seconds = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as tmp:
            begin = time.perf_counter()
            copy = Path(tmp) / "course"
            skip = shutil.ignore_patterns(
                ".git", ".venv", "out", "_site", "build", "nbs", "runs", "*.egg-info"
            )
            shutil.copytree(ROOT, copy, ignore=skip)
            subprocess.run(
                [sys.executable, "-m", "venv", "--without-pip", Path(tmp) / "env"], check=True
            )
            python = Path(tmp) / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"
            on_windows = Path(tmp) / "env" / "Lib" / "site-packages"
            packages = next(Path(tmp).glob("env/lib/python*/site-packages"), on_windows)
            here = [p for p in sys.path if p.endswith(("site-packages", "dist-packages"))]
            (packages / "course.pth").write_text("\n".join([str(copy), *here]), encoding="utf-8")
            run(FIRST, str(python), cwd=tmp)
            seconds.append(time.perf_counter() - begin)
    return seconds


def measure(quick: bool = False) -> dict[str, Any]:
    """Imports, sizes, and the first image."""
    times = imports(*((1, 4) if quick else (7, None)))
    bare = times["bare torch"]
    rows: list[list[Cell]] = [
        [name, scaled(spread(v), 1e3), ratios(v, bare)] for name, v in times.items()
    ]
    own: Spread = spread(
        [a - b for a, b in zip(times["import diffusion_course"], times["python"], strict=True)]
    )
    lab = (
        ROOT / ".venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    )  # of `make lab`, where there is one
    found = sizes()
    if lab.exists():
        code = (
            f"import sys, json; sys.path.insert(0, {str(ROOT / 'benchmarks')!r}); import startup; "
        )
        shown = subprocess.run(
            [lab, "-c", code + "print(json.dumps(startup.sizes()))"],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
        )
        if not shown.returncode:
            found = json.loads(shown.stdout)
    torch = found["torch, with what it asks for"][1]
    first = first_image(1 if quick else 3)
    tables = [
        table(
            "Imports, each in a Python of its own, whose start is the first row",
            ["import", "ms", "times bare torch"],
            rows,
        ),
        table(
            "Installed size",
            ["what", "packages", "MB", "times torch"],
            [[name, n, size / 1e6, size / torch] for name, (n, size) in found.items()],
            ""
            if len(found) == 4
            else "The lab's size is given where `make lab` has made its `.venv`.",
        ),
        table(
            "From a checkout to the first image (10 guided steps)",
            ["how", "seconds"],
            [["packages at hand: copy, environment, import, load, draw", spread(first)]],
        ),
    ]
    goals = [
        goal(
            "`import diffusion_course`",
            1e3 * own["median"],
            50,
            unit="ms",
            why="Python's own start is subtracted; what is left is the reading of one module",
        ),
        goal(
            "`dc.sample`, beside bare torch",
            ratios(times["dc.sample"], bare)["median"],
            1.3,
            unit="times",
            why="besides torch it imports what a model and a schedule need",
        ),
    ]
    plots = [
        bars(
            "imports",
            "Imports",
            {
                "ours, " + k if "dc" in k or "course" in k else k: scaled(spread(v), 1e3)
                for k, v in times.items()
            },
            "ms, Python's own start included",
        )
    ]
    heads = [
        headline("`import diffusion_course`", scaled(own, 1e3), "ms"),
        headline("`dc.sample` beside `import torch`", ratios(times["dc.sample"], bare), "times"),
        *(
            headline(f"installed: {name}", size / 1e6, "MB")
            for name, (_, size) in found.items()
            if "core" in name
        ),
        headline("from a checkout to the first image, packages at hand", spread(first), "s"),
    ]
    return dict(headlines=heads, how=described(__doc__), tables=tables, goals=goals, plots=plots)
