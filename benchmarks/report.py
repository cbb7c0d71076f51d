"""Write `benchmarks/README.md` and its plots from the results: `python benchmarks/report.py`."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from measuring import ROOT, is_met, kind_of_processor

TOPICS = {  # in the order of the report
    "startup": "Start-up and size",
    "loop": "The sampling loop's own cost",
    "solving": "Evaluations to a given error",
    "plane": "Time to a given quality in the plane",
    "unet": "U-Nets",
    "speed": "Images per second, and lesson 15's panel",
    "scaling": "How cost grows",
    "toys": "Lesson 5: the toy sets",
    "couplings": "Lesson 11: couplings",
}
HEAD = """# Benchmarks

<!-- Written by benchmarks/report.py from benchmarks/results/*.json. Don't edit. -->

What the README claims, measured. `make bench` makes an environment of its own (`benchmarks/.venv`, from
[requirements.txt](requirements.txt)), measures every topic, ours and the other libraries' released packages in turns
in one process, and writes this page; `make bench ARGS="loop unet"` measures two topics and leaves the others as they
are, `make bench ARGS=--quick` only sees that everything runs.

A number is the median of its turns; the quartiles stand in brackets. A ratio is the median of the ratios of the same
turns, so that what else the machine did at the time is in both. How fast the interface answers in a browser is
measured by `python benchmarks/interface.py`, in the environment of the tests.
"""


def number(x: float) -> str:
    """Three figures, more where there are more before the point."""
    if not math.isfinite(x):
        return str(x)
    if x == 0 or (float(x).is_integer() and abs(x) < 1e15):
        return f"{x:,.0f}"
    if abs(x) < 1e-3:
        return f"{x:.1e}"
    places = max(0, 2 - math.floor(math.log10(abs(x))))
    text = f"{x:,.{places}f}"
    return text


def cell(value: Any) -> str:
    """A cell of a table."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        low, median, high = (number(value[k]) for k in ("low", "median", "high"))
        return median if low == high else f"{median} ({low} to {high})"
    return number(value)


def table(t: dict[str, Any]) -> str:
    """A table in Markdown."""
    rows = [
        t["columns"],
        ["---"] * len(t["columns"]),
        *([cell(v) for v in row] for row in t["rows"]),
    ]
    body = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    note = f"\n\n{t['note']}" if t["note"] else ""
    return f"**{t['title']}**\n\n{body}{note}"


def verdict(g: dict[str, Any]) -> str:
    """Met, or by how much a goal is missed."""
    if is_met(g):
        return "met"
    short = g["measured"] / g["limit"] if g["at_most"] else g["limit"] / g["measured"]
    return f"short by {100 * (short - 1):.0f} %" if g["limit"] and g["measured"] > 0 else "short"


def goals(found: list[dict[str, Any]], where: list[str] | None = None) -> str:
    """A table of goals."""
    rows = []
    reasons: list[str] = []
    for k, g in enumerate(found):
        unit = f" {g['unit']}" if g["unit"] else ""
        bound = f"{'at most' if g['at_most'] else 'at least'} {number(g['limit'])}{unit}"
        why = "" if is_met(g) else g["why"]
        if why and why not in reasons:
            reasons.append(why)
        why = why and f"({reasons.index(why) + 1})"
        row = [g["goal"], bound, f"{number(g['measured'])}{unit}", verdict(g), why]
        rows.append([where[k], *row] if where else row)
    columns = ["goal", "limit", "measured", "", "why"]
    columns = ["topic", *columns] if where else columns
    body = "\n".join(f"| {' | '.join(row)} |" for row in [columns, ["---"] * len(columns), *rows])
    return body + "".join(
        f"\n\n({k + 1}) {why[0].upper() + why[1:]}." for k, why in enumerate(reasons)
    )


def about(data: dict[str, Any]) -> str:
    """Where, when and with what a topic was measured."""
    a, m = data["about"], data["about"]["machine"]
    gpus = f"; {', '.join(m['gpus'])}" if m["gpus"] else ""
    quick = (
        " **With `--quick`: to see that it runs; the numbers mean little.**" if a["quick"] else ""
    )
    what = ", ".join(f"{name} {v}" for name, v in a["versions"].items())
    minutes = (
        f"{a['seconds'] / 60:.1f} minutes" if a["seconds"] >= 60 else f"{a['seconds']} seconds"
    )
    return (
        f"`{a['command']}` · {a['date']} · {minutes} · {m['processor']}, {m['cores']} cores,"
        f" {kind_of_processor(m)}, {m['instructions']}{gpus}, {m['threads']} threads, load before"
        f" {m['load_before']}.{quick} {what}."
    )


START, END = "<!-- measured -->", "<!-- end of measured -->"


def quoted(folder: Path) -> str:
    """The table that the project's README shows: numbers, on which kind of processor, and their commands."""
    rows = [["what", "measured", "processor", "command"], ["---"] * 4]
    for _, _, data in results(folder / "results"):
        a = data["about"]
        where = ", ".join(a["machine"]["gpus"]) or kind_of_processor(a["machine"])
        for h in data.get("headlines", ()):
            unit = f" {h['unit']}" if h["unit"] else ""
            value = h["value"]["median"] if isinstance(h["value"], dict) else h["value"]
            rows.append([h["what"], number(value) + unit, where, f"`{a['command']}`"])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def with_quoted(text: str, folder: Path) -> str:
    """The project's README with that table between its marks."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n{quoted(folder)}\n{END}{after}"


def results(folder: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Topic, label of the machine and data, in the order of the report."""
    for topic in TOPICS:
        for path in sorted(folder.glob(f"{topic}*.json"), key=lambda p: len(p.suffixes)):
            name, _, label = path.stem.partition(".")
            if name == topic:
                yield topic, label, json.loads(path.read_text(encoding="utf-8"))


def plot_name(topic: str, label: str, plot: dict[str, Any]) -> str:
    """The file of a plot."""
    return "-".join(part for part in (topic, plot["name"], label) if part) + ".png"


def text(folder: Path) -> str:
    """The report."""
    found = list(results(folder / "results"))
    parts = [HEAD]
    all_goals = [
        (f"[{topic}](#{anchor(topic, label)})", g)
        for topic, label, data in found
        for g in data["goals"]
    ]
    if all_goals:
        met = sum(is_met(g) for _, g in all_goals)
        parts += [
            f"## Goals\n\n{met} of {len(all_goals)} are met.\n",
            goals([g for _, g in all_goals], [where for where, _ in all_goals]) + "\n",
        ]
    for topic, label, data in found:
        parts.append(f"## {heading(topic, label)}\n\n{data['how']}\n\n{about(data)}\n")
        parts += [table(t) + "\n" for t in data["tables"]]
        parts += [f"![{p['title']}](plots/{plot_name(topic, label, p)})\n" for p in data["plots"]]
        parts += [f"{note}\n" for note in data.get("notes", ())]
    return "\n".join(parts).replace("\n\n\n", "\n\n")


def heading(topic: str, label: str) -> str:
    """A topic's title."""
    return TOPICS[topic] + (f" ({label})" if label else "")


def anchor(topic: str, label: str) -> str:
    """Where its section is, as GitHub and Sphinx name it."""
    kept = "".join(c for c in heading(topic, label).lower() if c.isalnum() or c in " -")
    return kept.replace(" ", "-")


def draw(plot: dict[str, Any], path: Path) -> None:
    """One plot, in the course's look."""
    from diffusion_course.style import COLORS, INK, LABELS, figure, legend, png

    if plot["kind"] == "bars":
        names = list(plot["values"])
        values = [
            v if isinstance(v, dict) else dict(median=v, low=v, high=v)
            for v in plot["values"].values()
        ]
        fig, ax = figure(size=(7, 0.7 + 0.24 * len(names)))
        middle = [v["median"] for v in values]
        error = [
            [v["median"] - v["low"] for v in values],
            [v["high"] - v["median"] for v in values],
        ]
        colors = [
            COLORS["learned"] if name.startswith("ours") else COLORS["noise"] for name in names
        ]
        ax.barh(
            names, middle, xerr=error, color=colors, height=0.65, ecolor=INK, error_kw=dict(lw=1)
        )
        if plot["mark"]:
            ax.axvline(plot["mark"], color=COLORS["exact"], lw=1.2, ls="--")
        ax.invert_yaxis()
        ax.set_xlabel(plot["label"])
    else:
        fig, ax = figure(size=(7, 4.2))
        ours = 0
        others = 0
        for name, line in plot["series"].items():
            mine = name.startswith("ours")
            color = LABELS[(ours if mine else others) % len(LABELS)]
            ours, others = ours + mine, others + (not mine)
            style = dict(ls="-", marker="o", lw=1.6) if mine else dict(ls="--", marker="s", lw=1.1)
            ax.plot(line["x"], line["y"], ms=4, color=color, label=name, **style)
        if "x" in plot["log"]:
            ax.set_xscale("log")
        if "y" in plot["log"]:
            ax.set_yscale("log")
        ax.set_xlabel(plot["labels"][0])
        ax.set_ylabel(plot["labels"][1])
        legend(ax)
    ax.set_title(plot["title"])
    path.write_bytes(png(fig))


def write(folder: Path) -> None:
    """README.md and plots/ in a folder that has results/."""
    plots = folder / "plots"
    plots.mkdir(parents=True, exist_ok=True)
    names = set()
    for topic, label, data in results(folder / "results"):
        for p in data["plots"]:
            names.add(plot_name(topic, label, p))
            draw(p, plots / plot_name(topic, label, p))
    for path in plots.glob("*.png"):
        if path.name not in names:
            path.unlink()
    (folder / "README.md").write_text(text(folder), encoding="utf-8")
    if folder != ROOT / "benchmarks":
        return
    readme = ROOT / "README.md"
    readme.write_text(with_quoted(readme.read_text(encoding="utf-8"), folder), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "benchmarks")
