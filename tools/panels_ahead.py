"""Compute the panels of the lessons for the web edition: `python tools/panels_ahead.py [lesson ...]`.

A lesson's cells run in order, and each panel is drawn at the settings that `settings` chooses. What it shows goes to
site/panels/<lesson>/: index.json names the controls and their values, one script a panel holds the results. A panel
whose cell, and the cells that this one uses, have not changed is left alone. A line in the cell names settings that its
text asks for, which are then among those computed (controls that aren't named stay at their start):

    #| ahead: steps=3, solver='RK4'; steps=12
"""
from __future__ import annotations

import argparse
import ast
import base64
import hashlib
import io
import itertools
import json
import math
import os
import re
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ipywidgets as w
import matplotlib
import numpy as np
import torch
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from matplotlib.figure import Figure
from PIL import Image
from tqdm import tqdm

from diffusion_course import widgets
from diffusion_course.files import whole_file
from diffusion_course.player import Scene
from diffusion_course.plots import Film
from diffusion_course.style import png

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT / "nbs"
SITE = ROOT / "site" / "panels"
SETTINGS = 40  # at most, of a panel
SECONDS = 12.0  # of the processor for drawing, of a panel
ROOM = 600_000  # characters that the images and scenes of a panel may take, about
ITERATES = 33  # at most, of a scene
POINTS = 300  # at most, of a pane
CHOSEN = w.ToggleButtons, w.Dropdown, w.Combobox  # of a text without a kernel, one of its suggestions
Setting = tuple[int, ...]  # for each control the place of its value among those computed
Needs = Mapping[str, Callable[[dict[str, Any]], bool]]  # of a control, whether it makes a difference at some values


# ---- the lessons' cells --------------------------------------------------------------------------

def cells(notebook: Path) -> list[tuple[str, str]]:
    """The code cells of a notebook: their ids and sources."""
    nb = json.loads(notebook.read_text(encoding="utf-8"))
    return [(c["id"], "".join(c["source"])) for c in nb["cells"] if c["cell_type"] == "code"]


def panel_cells(notebook: Path) -> list[str]:
    """The ids of the cells that call `panel`, which a test counts too."""
    return [name for name, source in cells(notebook) if calls(source, "panel")]


def asked(source: str) -> list[dict[str, Any]]:
    """The settings that a cell's `#| ahead:` lines name: a choice by the name that is shown, numbers as numbers."""
    lines = re.findall(r"^#\| ahead:(.*)$", source, re.M)
    calls_ = [ast.parse(f"f({one.strip()})", mode="eval").body for line in lines for one in line.split(";")]
    return [{k.arg or "": ast.literal_eval(k.value) for k in call.keywords} for call in calls_
            if isinstance(call, ast.Call)]


def calls(source: str, name: str) -> int:
    """How often a cell calls a function of this name."""
    nodes = ast.walk(_tree(source))
    return sum(isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id == name for n in nodes)


def fingerprint(notebook: Path, cell: str) -> str:
    """A hash of a cell and of the earlier cells of the notebook that define names which it uses, and so on."""
    all_cells = cells(notebook)
    at = [name for name, _ in all_cells].index(cell)
    wanted, kept = _used(all_cells[at][1]), [all_cells[at][1]]
    for _, source in reversed(all_cells[:at]):
        if source.startswith("#| default_exp") or not wanted & _defined(source): continue
        wanted |= _used(source)
        kept.append(source)
    return hashlib.sha256("\n\n".join(kept).encode()).hexdigest()[:16]


def _tree(source: str) -> ast.Module:
    try: return ast.parse(source)
    except SyntaxError: return ast.parse(re.sub(r"^\s*[%!].*$", "", source, flags=re.M))


def _used(source: str) -> set[str]:
    nodes = ast.walk(_tree(source))
    return {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}


def _defined(source: str) -> set[str]:
    "Names that a cell binds outside functions; those of imports are the library's."
    names: set[str] = set()
    for statement in _tree(source).body:
        if isinstance(statement, (ast.FunctionDef, ast.ClassDef)): names.add(statement.name)
        else:
            nodes = ast.walk(statement)
            names |= {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return names


class Recorded:
    """What stands for a `Panel` while a lesson runs: it draws nothing by itself."""

    def __init__(self, draw: Any, controls: dict[str, w.Widget], asked: Sequence[dict[str, Any]] = (),
                 needs: Needs | None = None):
        self.draw = draw
        self.controls = controls
        self.needs = needs or {}
        self.asked = [{k: held(k, controls, v) for k, v in setting.items()} for setting in asked]


def panels(notebook: Path, wanted: set[str]) -> Iterator[tuple[str, Recorded]]:
    """Run a lesson up to its last panel; each panel wanted is handed over right after its cell has run."""
    shell = InteractiveShell.instance()
    shell.reset(new_session=True)
    matplotlib.use("agg")
    all_cells = cells(notebook)
    last = max(k for k, (name, _) in enumerate(all_cells) if name in wanted)
    usual = widgets.Panel
    here = Path.cwd()
    found: list[Recorded] = []

    def record(draw: Any, controls: dict[str, w.Widget], needs: Any = None) -> Recorded:
        found.append(Recorded(draw, controls, needs=needs))
        return found[-1]

    widgets.Panel = record  # type: ignore[assignment, misc]  # the lessons' `panel` makes what this says
    os.chdir(notebook.parent)
    try:
        for name, source in tqdm(all_cells[: last + 1], unit="cell", desc=notebook.stem, dynamic_ncols=True):
            found.clear()
            with capture_output(): result = shell.run_cell(source, store_history=False)
            error = result.error_before_exec or result.error_in_exec
            if error: raise RuntimeError(f"{notebook.stem}, cell {name}: {error!r}") from error
            if name in wanted:
                if len(found) != 1:
                    raise RuntimeError(f"{notebook.stem}, cell {name}: {len(found)} panels, expected one a cell")
                yield name, Recorded(found[0].draw, found[0].controls, asked(source), found[0].needs)
    finally:
        os.chdir(here)
        widgets.Panel = usual  # type: ignore[misc]


# ---- which settings are computed -----------------------------------------------------------------

def held(name: str, controls: dict[str, w.Widget], value: Any) -> Any:
    """What a control's `positions` call a value that the lesson's text names.

    Raises:
        RuntimeError: no control has this name, or this one can't stand there.
    """
    if name not in controls: raise RuntimeError(f"#| ahead: {name} is no control: expected one of {list(controls)}")
    control = controls[name]
    if isinstance(control, w.Checkbox): return bool(value)
    if isinstance(control, (*CHOSEN, w.SelectionSlider)):
        places = [k for k in range(len(control.options)) if value in (written(control, k), argument(control, k))]
        if not places: raise RuntimeError(f"#| ahead: {name}={value!r} is none of {control.options}")
        return places[0]
    lo, hi = (10**control.min, 10**control.max) if isinstance(control, w.FloatLogSlider) else (control.min, control.max)
    if not lo <= value <= hi: raise RuntimeError(f"#| ahead: {name}={value} lies outside of {lo} to {hi}")
    return value


def positions(control: w.Widget, count: int, asked: Sequence[Any] = ()) -> list[Any]:
    """About `count` values of a control in order, its ends, its start and those asked for among them; every value of
    a choice.

    Values are what the widget holds; of one with options, the places of these.
    """
    values = _spread(control, count)
    if isinstance(control, (w.Checkbox, *CHOSEN)): return values
    near: Callable[[Any], float] = math.log if isinstance(control, w.FloatLogSlider) else float
    kept = {values[0], values[-1], values[start_of(control, values)], *asked}
    for value in asked:
        if min(abs(near(value) - near(v)) for v in values) < 1e-9: continue
        inner = [v for v in values if v not in kept]
        if inner: values.remove(min(inner, key=lambda v: abs(near(v) - near(value))))
        values.append(value)
    return sorted(values)


def _spread(control: w.Widget, count: int) -> list[Any]:
    if isinstance(control, w.Checkbox): return [False, True]
    if isinstance(control, CHOSEN): return list(range(len(control.options)))
    if isinstance(control, w.SelectionSlider): lo, hi, step, start = 0, len(control.options) - 1, 1, control.index
    elif isinstance(control, w.FloatLogSlider):
        lo, hi, step, start = control.min, control.max, control.step, math.log10(control.value)
    else: lo, hi, step, start = control.min, control.max, control.step, control.value
    n = min(count, round((hi - lo) / step) + 1)
    places = {round(k * (hi - lo) / (n - 1) / step) for k in range(n)} if n > 1 else {0}
    at = (start - lo) / step
    inner = [p for p in places if 0 < p < round((hi - lo) / step)]
    if min(abs(p - at) for p in places) > 1e-6:  # the start takes the place of the nearest that is no end
        if inner: places.discard(min(inner, key=lambda p: abs(p - at)))
        places.add(at)
    values = [lo + step * p for p in sorted(places)]
    if isinstance(control, (w.SelectionSlider, w.IntSlider)): return [round(v) for v in values]
    if isinstance(control, w.FloatLogSlider):
        return [control.value if abs(v - start) < 1e-9 else float(f"{10**v:.3g}") for v in values]
    return [round(v, 10) for v in values]


def start_of(control: w.Widget, values: list[Any]) -> int:
    """The place, among the values computed, of the one that the control begins with."""
    if isinstance(control, w.Combobox): return control.options.index(control.value)
    indexed = isinstance(control, (w.ToggleButtons, w.Dropdown, w.SelectionSlider))
    now = control.index if indexed else control.value
    return min(range(len(values)), key=lambda k: abs(values[k] - now))


def argument(control: w.Widget, value: Any) -> Any:
    """What `draw` gets for one of the `positions` of a control."""
    if not isinstance(control, (*CHOSEN, w.SelectionSlider)): return value
    chosen = control.options[value]
    if isinstance(chosen, tuple): chosen = chosen[1]
    return chosen.value if isinstance(chosen, widgets._Option) else chosen


def written(control: w.Widget, value: Any) -> str:
    """A value as the panel shows it."""
    if isinstance(control, w.Checkbox): return "on" if value else "off"
    if isinstance(control, (*CHOSEN, w.SelectionSlider)):
        chosen = control.options[value]
        return str(chosen[0] if isinstance(chosen, tuple) else chosen) or "(nothing)"
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}"


def settings(
    controls: dict[str, w.Widget], limit: int, asked: Sequence[dict[str, Any]] = ()
) -> tuple[list[list[Any]], list[Setting]]:
    """The values of each control and the settings to compute, at most about `limit`, the start first.

    All combinations, where three or more positions a slider fit. Otherwise all of two controls, with the others at
    their start, and each of the others alone. Settings asked for are there in any case.
    """
    sliders = [not isinstance(c, (w.Checkbox, *CHOSEN)) for c in controls.values()]
    seeds = [name == "seed" for name in controls]

    def chosen(count: int) -> list[list[Any]]:
        return [positions(c, min(count, 3) if seed else count, list(dict.fromkeys(s[n] for s in asked if n in s)))
                for (n, c), seed in zip(controls.items(), seeds, strict=True)]

    def named(values: list[list[Any]], start: Setting) -> list[Setting]:
        place = lambda k, value: min(range(len(values[k])), key=lambda j: abs(values[k][j] - value))
        return [tuple(place(k, s[n]) if n in s else start[k] for k, n in enumerate(controls)) for s in asked]

    for count in (11, 9, 7, 6, 5, 4, 3) if any(sliders) else (2,):
        values = chosen(count)
        if math.prod(map(len, values)) <= limit:
            start = tuple(map(start_of, controls.values(), values))
            return values, [start, *(s for s in itertools.product(*(range(len(v)) for v in values)) if s != start)]
    for count in (7, 6, 5, 4, 3):
        values = chosen(count)
        start = tuple(map(start_of, controls.values(), values))
        lines = [_moved(start, {k: j}) for k, v in enumerate(values) for j in range(len(v))]
        if len(set(lines)) <= limit: break
    found = dict.fromkeys([start, *lines, *named(values, start)])
    pairs = sorted(itertools.combinations([k for k, seed in enumerate(seeds) if not seed], 2))
    for a, b in pairs:
        both = [_moved(start, {a: i, b: j}) for i in range(len(values[a])) for j in range(len(values[b]))]
        if len({*found, *both}) <= limit:
            found.update(dict.fromkeys(both))
    return values, list(found)


def _moved(setting: Setting, change: dict[int, int]) -> Setting:
    return tuple(change.get(k, v) for k, v in enumerate(setting))


# ---- what is stored of a result ------------------------------------------------------------------

class Store:
    """Bytes that many results share, each kept once."""

    def __init__(self) -> None:
        self.blobs: dict[str, int] = {}

    def put(self, data: bytes) -> int:
        """The number of these bytes."""
        return self.blobs.setdefault(base64.b64encode(data).decode(), len(self.blobs))


def final(result: Any) -> tuple[Any, ...]:
    """The parts that a draw ends with."""
    if isinstance(result, Iterator):
        for item in result: last = item
        result = last
    return tuple(result) if isinstance(result, (tuple, list)) else (result,)


def stored(item: Any, store: Store) -> list[Any]:
    """A part as JSON whose bytes are in the store."""
    if isinstance(item, str): return ["text", item]
    if isinstance(item, Scene): return ["scene", repr(item), scene(item, store)]
    if isinstance(item, Film): return ["image", store.put(item.gif), *item.size, "gif"]
    if isinstance(item, Figure):
        width, height = (round(96 * side) for side in item.get_size_inches())
        image = Image.open(io.BytesIO(png(item)))
        return ["image", store.put(figure_bytes(image)), width, height, "webp"]
    if isinstance(item, Image.Image): return ["image", store.put(webp(item)), *item.size, "webp"]
    raise TypeError(f"draw returned {type(item).__name__}: expected a figure, a scene, an image, a film or a string")


def figure_bytes(image: Image.Image) -> bytes:
    """The smaller of two WebP files of a figure at no more than 144 dots an inch: 64 colours, or a photograph's way."""
    flat = image.quantize(64, dither=Image.Dither.NONE).convert("RGB")
    buffer = io.BytesIO()
    flat.save(buffer, "webp", lossless=True, quality=40, method=2)
    return min(buffer.getvalue(), webp(image, 70), key=len)


def webp(image: Image.Image, quality: int = 80) -> bytes:
    """The bytes of a WebP file."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "webp", quality=quality, method=4)
    return buffer.getvalue()


def scene(item: Scene, store: Store) -> dict[str, Any]:
    """A scene's description; each array in it is a number of the store."""
    for pane in item.panes:
        every = math.ceil((len(pane.ts) - 1) / (ITERATES - 1)) or 1
        kept = sorted({*range(0, len(pane.ts), every), len(pane.ts) - 1})
        pane.ts, pane.q = pane.ts[kept], pane.q[kept][:, :POINTS]
        pane.ids = None if pane.ids is None else pane.ids[:POINTS]
    meta, data = item.pack()
    for pane in meta["panes"]:
        for name in ("paths", "ids", "density", "field", "targets"):
            at = pane[name]
            if at is None: continue
            kind = np.dtype(at["type"])
            size = math.prod(at["shape"]) * kind.itemsize
            array = np.frombuffer(data[at["at"]: at["at"] + size], kind).reshape(at["shape"])
            if name == "paths":  # 12 bits are a fifth of a pixel; steps in time are small numbers
                coarse = np.rint(array.astype(np.int32) / 16).clip(-2048, 2047).astype("<i2")
                steps = np.diff(coarse, axis=0, prepend=np.zeros_like(coarse[:1])).astype("<i2")
                array = steps.reshape(-1).view(np.uint8).reshape(-1, 2).T
            pane[name] = dict(type=at["type"], shape=at["shape"], blob=store.put(zlib.compress(array.tobytes(), 9)))
    return meta


def compute(panel: Recorded, limit: int = SETTINGS, seconds: float = SECONDS) -> tuple[dict[str, Any], dict[str, Any]]:
    """A panel's entry in the index, without id and hash, and what its script holds."""
    store, results, texts = Store(), {}, {}
    begin = time.process_time()  # which doesn't depend on what else the machine is doing
    first = _drawn(panel, {name: _start(c) for name, c in panel.controls.items()})
    once = max(time.process_time() - begin, 1e-3)
    trial = Store()
    for item in first: stored(item, trial)
    size = sum(map(len, trial.blobs)) + 1
    values, chosen = settings(panel.controls, max(8, min(limit, int(seconds / once), ROOM // size)), panel.asked)
    for setting in tqdm(chosen, unit="setting", leave=False, dynamic_ncols=True):
        # The first one too: a figure that is rendered twice has another layout.
        parts = _drawn(panel, _chosen(panel, values, setting))
        results[",".join(map(str, setting))] = [
            texts.setdefault(json.dumps(part), part) for part in (stored(item, store) for item in parts)]
    controls = []
    for (name, control), v, k in zip(panel.controls.items(), values, chosen[0], strict=True):
        kind = ("toggle" if isinstance(control, w.Checkbox) else
                "choice" if isinstance(control, CHOSEN) else "slider")
        controls.append(dict(name=name, label=widgets._name(control, name), help=widgets._help(control, name),
                             kind=kind, start=k, values=v, shown=[written(control, value) for value in v]))
    full = len(chosen) == math.prod(map(len, values))
    entry = dict(controls=controls, settings=len(chosen), full=full, off=unused(panel, values, chosen))
    return entry, dict(results=results, blobs=list(store.blobs))


def unused(panel: Recorded, values: Sequence[list[Any]], chosen: Sequence[Setting]) -> dict[str, list[int]]:
    """For each of some settings the places of the controls that make no difference there; settings without any are
    left out."""
    found = {}
    for setting in chosen:
        at = _chosen(panel, values, setting)
        off = [k for k, name in enumerate(panel.controls) if name in panel.needs and not panel.needs[name](at)]
        if off: found[",".join(map(str, setting))] = off
    return found


def _chosen(panel: Recorded, values: Sequence[list[Any]], setting: Setting) -> dict[str, Any]:
    "What `draw` gets at a setting."
    return {n: argument(c, v[k]) for (n, c), v, k in zip(panel.controls.items(), values, setting, strict=True)}


def _start(control: w.Widget) -> Any:
    return control.value.value if isinstance(control.value, widgets._Option) else control.value


def _drawn(panel: Recorded, values: dict[str, Any]) -> tuple[Any, ...]:
    with capture_output(): return final(panel.draw(**values))


# ---- the files -----------------------------------------------------------------------------------

def index(lesson: str) -> dict[str, Any]:
    """What is stored of a lesson: the id of a cell -> its panel's entry."""
    path = SITE / lesson / "index.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def read_script(lesson: str, cell: str) -> dict[str, Any]:
    """What the script of a panel holds: the results of its settings, and the bytes that these share."""
    text = (SITE / lesson / f"{cell}.js").read_text(encoding="utf-8")
    begin, end = f"dcPanels.take({json.dumps(cell)}, ", ");\n"
    if not (text.startswith(begin) and text.endswith(end)):
        raise ValueError(f"{lesson}/{cell}.js begins with {text[:40]!r}: expected {begin}…{end}")
    return json.loads(text[len(begin): -len(end)])


def write(lesson: str, entries: dict[str, Any]) -> None:
    """Write a lesson's index."""
    (SITE / lesson).mkdir(parents=True, exist_ok=True)
    with whole_file(SITE / lesson / "index.json") as part:
        part.write_text(json.dumps(entries, separators=(",", ":"), ensure_ascii=False) + "\n", encoding="utf-8")


def refresh(notebook: Path, again: bool, seconds: float) -> None:
    """Compute a lesson's panels that are missing or stale; each is written as soon as it is done."""
    order = panel_cells(notebook)
    entries = {name: entry for name, entry in index(notebook.stem).items() if name in order}
    for file in (SITE / notebook.stem).glob("*.js"):
        if file.stem not in order: file.unlink()
    prints = {name: fingerprint(notebook, name) for name in order}
    fresh = {name for name in entries if entries[name]["hash"] == prints[name] and not again}
    if describe(notebook, {name: entries[name] for name in order if name in fresh}):
        write(notebook.stem, {name: entries[name] for name in order if name in entries})
    if set(order) == fresh: return
    for name, panel in panels(notebook, set(order) - fresh):
        torch.manual_seed(0)
        begin = time.perf_counter()
        entry, held = compute(panel, seconds=seconds)
        script = f"dcPanels.take({json.dumps(name)}, {json.dumps(held, separators=(',', ':'))});\n"
        (SITE / notebook.stem).mkdir(parents=True, exist_ok=True)
        with whole_file(SITE / notebook.stem / f"{name}.js") as part: part.write_text(script, encoding="utf-8")
        entries[name] = dict(hash=prints[name], **entry)
        write(notebook.stem, {key: entries[key] for key in order if key in entries})
        tqdm.write(f"{notebook.stem} {name}: {entry['settings']} settings, {len(script) / 1024:.0f} KB, "
                   f"{time.perf_counter() - begin:.0f} s")


def describe(notebook: Path, entries: dict[str, Any]) -> bool:
    """Add to entries what earlier versions left out and needs no drawing: the help of controls, and where they make
    no difference. Returns whether anything was missing."""
    lacking = {name: entry for name, entry in entries.items() if "off" not in entry}
    sources = dict(cells(notebook))
    own = {name for name in lacking if re.search(r"\b(needs|help)=", sources[name])}  # else known without the lesson
    ran = dict(panels(notebook, own)) if own else {}
    for name, entry in lacking.items():
        for control in entry["controls"]:
            stands = ran[name].controls[control["name"]] if name in ran else w.Text()
            control["help"] = widgets._help(stands, control["name"])
        stored = [tuple(map(int, key.split(","))) for key in read_script(notebook.stem, name)["results"]]
        values = [control["values"] for control in entry["controls"]]
        entry["off"] = unused(ran[name], values, stored) if name in ran else {}
    return bool(lacking)


def lessons() -> list[Path]:
    """The lessons that have panels."""
    return [path for path in sorted(NBS.glob("[0-9]*.ipynb")) if panel_cells(path)]


def main(argv: list[str] | None = None) -> int:
    """Compute the panels of the lessons named (default: all); 1 where a lesson failed."""
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("lessons", nargs="*", help="as 01_distributions; default: all")
    args.add_argument("--again", action="store_true", help="also panels that have not changed")
    args.add_argument("--seconds", type=float, default=SECONDS, help="of drawing, of a panel (default: %(default)s)")
    args = args.parse_args(argv)
    paths = [NBS / f"{Path(name).stem}.ipynb" for name in args.lessons] or lessons()
    failed = 0
    for path in paths:
        try: refresh(path, args.again, args.seconds)
        except RuntimeError as error:
            failed = 1
            tqdm.write(f"FAILED  {error}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
