"""Draw the figures of README.md and CONTRIBUTING.md into docs/: `python tools/draw_docs.py`."""
from __future__ import annotations

import ast
import math
import re
from functools import partial
from pathlib import Path

import torch
from matplotlib.patches import Rectangle

from diffusion_course.checkpoints import load
from diffusion_course.distributions import running_mixture
from diffusion_course.generation import generate
from diffusion_course.player import play
from diffusion_course.plots import save_grid
from diffusion_course.solvers import em_step, integrate, rk4_step
from diffusion_course.style import COLORS, FAINT, INK, figure, png

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "diffusion_course"


def motions(path: Path) -> None:
    "The opening of lesson 2 as an animation."
    start = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    noise = torch.Generator().manual_seed(1)
    turn = lambda x, t: 2 * math.pi * torch.stack([-x[:, 1], x[:, 0]], 1)
    climb = lambda x, t: 2.0 * running_mixture().score(x)
    walk = lambda step, n: torch.stack(list(integrate(step, start, torch.linspace(0, 1, n + 1))))
    panes = {
        "follow a field": walk(partial(rk4_step, turn), 40),
        "wander": walk(partial(em_step, lambda x, t: 0 * x, 1.0, generator=noise), 40),
        "climb and shake": walk(partial(em_step, climb, 2.0, generator=noise), 320)[::8],
    }
    density = lambda x: running_mixture().log_prob(x).exp()
    play(panes, density=[None, None, density], extent=3, tail=0.15).save(path, frames=40, width=700)


def samples(path: Path) -> None:
    "What the shipped CIFAR-10 model draws: a column a label."
    y = torch.arange(50) % 10
    x = generate(load("cifar10"), len(y), 20, "dpmpp_2m", 2.5, seed=0, batch=10, y=y)
    save_grid(x, path, ncols=10, scale=2)


def imports(module: Path) -> set[str]:
    "The modules of the package that a module imports."
    tree = ast.walk(ast.parse(module.read_text(encoding="utf-8")))
    inside = [node for node in tree if isinstance(node, ast.ImportFrom) and node.level]
    # `from .x import y` names a module, `from . import x` imports it
    return {name for node in inside for name in ([node.module] if node.module else [a.name for a in node.names])}


def rooms(path: Path) -> None:
    """Which module imports which, as a table: toolbox first, then lessons in their order, and last what
    the toolbox builds on lessons.

    Nothing is above the diagonal: nobody looks ahead.
    """
    modules = {p.stem: p for p in PACKAGE.glob("*.py") if p.stem[0] != "_"}
    toolbox = {p.stem for p in (ROOT / "nbs" / "toolbox").glob("*.ipynb")}
    uses = {name: imports(p) & set(modules) for name, p in modules.items()}
    toolbox = {name for name in toolbox if uses[name] <= toolbox}
    depth = lambda name: max((1 + depth(other) for other in uses[name]), default=0)
    lessons = (ROOT / "nbs").glob("[0-9][0-9]_*.ipynb")
    number = {re.search(r"default_exp (\w+)", p.read_text(encoding="utf-8"))[1]: p.name[:2] for p in lessons}
    order = sorted(toolbox, key=lambda n: (depth(n), n))
    order += sorted(set(modules) - toolbox, key=lambda n: number.get(n, "99"))
    at = {name: k for k, name in enumerate(order)}
    split = len(toolbox)
    fig, ax = figure(size=(7.6, 7.0))
    for start, stop, role in ((0, split, "exact"), (split, len(order), "data")):
        corner, side = (start - 0.5, start - 0.5), stop - start
        ax.add_patch(Rectangle(corner, side, side, fc=COLORS[role], ec="none", alpha=0.10))
    for name, others in uses.items():
        for other in others:
            ax.plot(at[other], at[name], "o", ms=6, color=COLORS["exact" if other in toolbox else "data"])
    ax.plot([-0.5, len(order) - 0.5], [-0.5, len(order) - 0.5], color=INK, lw=0.6)
    names = [f"{number[n]} {n}" if n in number else n for n in order]
    ax.set_xticks(range(len(order)), names, rotation=90, fontsize=8)
    ax.set_yticks(range(len(order)), names, fontsize=8)
    ax.xaxis.tick_top()
    ax.grid(color=FAINT, lw=0.5)
    ax.set(xlim=(-0.5, len(order) - 0.5), ylim=(len(order) - 0.5, -0.5), ylabel="this module imports …")
    path.write_bytes(png(fig))


if __name__ == "__main__":
    (ROOT / "docs").mkdir(exist_ok=True)
    motions(ROOT / "docs" / "motions.gif")
    samples(ROOT / "docs" / "samples.png")
    rooms(ROOT / "docs" / "rooms.png")
