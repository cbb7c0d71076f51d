"""Draw the pictures of README.md and CONTRIBUTING.md into docs/: `python tools/pictures.py`."""

from __future__ import annotations

import ast
import math
from functools import partial
from pathlib import Path

import torch
from matplotlib.patches import FancyBboxPatch

from diffusion_course.distributions import running_mixture
from diffusion_course.player import play
from diffusion_course.solvers import em_step, integrate, rk4_step
from diffusion_course.style import COLORS, INK, figure, png

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "diffusion_course"


def motions(path: Path) -> None:
    "The opening of lesson 2 as an animation."
    start, noise = torch.randn(300, 2, generator=torch.Generator().manual_seed(0)), torch.Generator().manual_seed(1)
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


def imports(module: Path) -> set[str]:
    "The modules of the package that a module imports."
    nodes = ast.walk(ast.parse(module.read_text(encoding="utf-8")))
    return {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level and node.module}


def rooms(path: Path) -> None:
    "Every module as a box, with an arrow to each module that it imports."
    modules = {p.stem: p for p in PACKAGE.glob("*.py") if p.stem[0] != "_"}
    checks = {f"checks.{p.stem}": p for p in (PACKAGE / "checks").glob("*.py") if p.stem[0] != "_"}
    toolbox = {p.stem for p in (ROOT / "nbs" / "toolbox").glob("*.ipynb")}
    uses = {name: imports(p) & set(modules) for name, p in (modules | checks).items()}
    depth = lambda name: max((1 + depth(other) for other in uses[name]), default=0)
    columns = {"lessons": (set(modules) - toolbox, COLORS["data"]), "solutions": (set(checks), COLORS["highlight"]), "toolbox": (toolbox, COLORS["exact"])}
    place: dict[str, tuple[float, float]] = {}
    fig, ax = figure(size=(9.6, 3.6))
    for left, (title, (names, color)) in zip((0, 2.3, 5.2), columns.items(), strict=True):
        for k, name in enumerate(sorted(names, key=lambda n: (depth(n), -sum(n in u for u in uses.values()), n))):
            row = depth(name) if title == "toolbox" else k
            place[name] = left + 1.95 * sum(y == row for x, y in place.values() if x >= left), row
            x, y = place[name]
            ax.add_patch(FancyBboxPatch((x, y), 1.75, 0.5, boxstyle="round,pad=0,rounding_size=0.1", fc=color, ec="none", alpha=0.16))
            ax.text(x + 0.875, y + 0.25, name, ha="center", va="center", fontsize=9, color=INK)
        ax.text(left, -0.35, f"{title}: nbs/{dict(lessons='NN_name', solutions='solutions', toolbox='toolbox')[title]}", color=color, fontsize=9)
    for name, (x, y) in place.items():
        for other in uses[name]:
            a, b = place[other]
            beside = x == a and x < 5  # a lesson on a lesson: an arc at their left
            if beside: start, end = (x, y + 0.25), (a, b + 0.25)
            elif x > 5: start, end = (x + 0.875, y), (a + 0.875, b + 0.5)
            else: start, end = (x + 1.75, y + 0.25), (a, b + 0.25)
            style = dict(arrowstyle="->", color="#9AA5B1", lw=1, shrinkA=1, shrinkB=1, connectionstyle=f"arc3,rad={0.5 * beside}")
            ax.annotate("", end, start, arrowprops=style)
    ax.set(xlim=(-1.6, 13), ylim=(-0.6, max(y for _, y in place.values()) + 0.7))
    ax.axis("off")
    path.write_bytes(png(fig))


if __name__ == "__main__":
    (ROOT / "docs").mkdir(exist_ok=True)
    motions(ROOT / "docs" / "motions.gif")
    rooms(ROOT / "docs" / "rooms.png")
