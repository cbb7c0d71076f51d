"""Panels that were computed ahead for the web edition: all there, of today's cells, small, and right."""
from __future__ import annotations

import base64
import io
import itertools
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import LESSONS, ROOT, code, name_of
from PIL import Image

sys.path.insert(0, str(ROOT / "tools"))

import panels_ahead as ahead  # noqa: E402

from diffusion_course.widgets import choice, slider, text, toggle  # noqa: E402

MEGABYTE = 2**20
WITH_PANELS = [path for path in LESSONS if (ahead.SITE / path.stem).exists()]


# ---- the stored files ----------------------------------------------------------------------------

@pytest.mark.parametrize("path", LESSONS, ids=name_of)
def test_every_panel_of_a_lesson_is_there_and_of_today(path: Path) -> None:
    called = sum(ahead.calls(source, "panel") for source in code(path))
    entries = ahead.index(path.stem)
    assert called == len(ahead.panel_cells(path)) == len(entries)
    stale = [cell for cell, entry in entries.items() if entry["hash"] != ahead.fingerprint(path, cell)]
    assert not stale, f"run `make panels ARGS={path.stem}`"
    files = {file.stem for file in (ahead.SITE / path.stem).glob("*.js")}
    assert files == set(entries)


@pytest.mark.parametrize("path", WITH_PANELS, ids=name_of)
def test_every_setting_has_its_parts(path: Path) -> None:
    for cell, entry in ahead.index(path.stem).items():
        held = ahead.read_script(path.stem, cell)
        starts = ",".join(str(control["start"]) for control in entry["controls"])
        assert starts == next(iter(held["results"]))
        assert len(held["results"]) == entry["settings"]
        for k, control in enumerate(entry["controls"]):
            reached = {int(setting.split(",")[k]) for setting in held["results"]}
            assert reached == set(range(len(control["values"]))), control["name"]
            assert len(control["shown"]) == len(control["values"]) >= 2
        for parts in held["results"].values():
            for kind, *rest in parts:
                assert kind in ("text", "image", "scene")
                if kind == "image": assert rest[0] < len(held["blobs"]) and min(rest[1:3]) > 0


@pytest.mark.parametrize("path", WITH_PANELS, ids=name_of)
def test_controls_that_make_no_difference_are_known(path: Path) -> None:
    sources = dict(ahead.cells(path))
    for cell, entry in ahead.index(path.stem).items():
        assert bool(entry["off"]) == ("needs=" in sources[cell])
        assert all(isinstance(control["help"], str) for control in entry["controls"])
        results = ahead.read_script(path.stem, cell)["results"]
        assert set(entry["off"]) <= set(results)
        for here, there in itertools.combinations(entry["off"], 2):
            moved = {k for k, (a, b) in enumerate(zip(here.split(","), there.split(","), strict=True)) if a != b}
            if moved <= {*entry["off"][here]} & {*entry["off"][there]}:
                # Lesson 15 says too how long it took.
                one, other = (re.sub(r"[\d.]+ s\b", "", json.dumps(results[key])) for key in (here, there))
                assert one == other


def test_help_and_needs_are_stored_as_the_panel_has_them() -> None:
    def draw(kind: str, churn: float, x: float) -> str: return kind + f" {churn}" * (kind == "b") + f" {x}"

    controls = dict(kind=choice(["a", "b"]), churn=slider(0.0, 1.0), x=slider(0, 1, help="Of no unit."))
    entry, held = ahead.compute(ahead.Recorded(draw, controls, needs=dict(churn=lambda v: v["kind"] == "b")), 40, 1.0)
    assert [c["help"] for c in entry["controls"]] == [
        "", "0 is the ODE; more adds noise on the way and removes it again.", "Of no unit."]
    assert entry["off"] == {key: [1] for key in held["results"] if key.startswith("0")} and entry["off"]


def test_an_index_of_an_earlier_version_is_completed_without_drawing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = ("from diffusion_course.widgets import choice, panel, slider\n"
              "def draw(kind, x): raise RuntimeError('nothing is drawn')\n"
              "needs = dict(x=lambda v: v['kind'] == 'b')\n"
              "panel(draw, kind=choice(['a', 'b']), x=slider(0, 1, help='X.'), needs=needs)")
    path = tmp_path / "01_x.ipynb"
    path.write_text(json.dumps(dict(cells=[dict(id="c", cell_type="code", source=source)])), encoding="utf-8")
    monkeypatch.setattr(ahead, "SITE", tmp_path)
    named = [dict(name="kind", values=[0, 1]), dict(name="x", values=[0, 1])]
    ahead.write("01_x", dict(c=dict(hash=ahead.fingerprint(path, "c"), controls=named)))
    script = 'dcPanels.take("c", {"results":{"0,0":[],"1,1":[]}});\n'
    (tmp_path / "01_x" / "c.js").write_text(script, encoding="utf-8")
    ahead.refresh(path, again=False, seconds=1.0)
    entry = ahead.index("01_x")["c"]
    assert entry["off"] == {"0,0": [1]} and [c["help"] for c in entry["controls"]] == ["", "X."]
    assert (tmp_path / "01_x" / "c.js").read_text(encoding="utf-8") == script


def test_they_are_small() -> None:
    total = 0.0
    for path in WITH_PANELS:
        size = sum(f.stat().st_size for f in (ahead.SITE / path.stem).iterdir()) / MEGABYTE
        print(f"{path.stem:25} {size:5.2f} MB")
        assert size <= 4, path.stem
        total += size
    print(f"{'all':25} {total:5.2f} MB")
    assert total <= 30


def test_the_first_panels_show_what_draw_gives() -> None:
    path = LESSONS[0]
    cell = ahead.panel_cells(path)[0]
    entry, held = ahead.index(path.stem)[cell], ahead.read_script(path.stem, cell)
    (_, panel), = ahead.panels(path, {cell})
    for setting in list(held["results"])[:: len(held["results"]) // 2][:3]:
        places = list(map(int, setting.split(",")))
        chosen = {name: ahead.argument(control, stored["values"][k]) for (name, control), stored, k
                  in zip(panel.controls.items(), entry["controls"], places, strict=True)}
        figure, = ahead.final(panel.draw(**chosen))
        (kind, blob, _, _, _), = held["results"][setting]
        assert kind == "image"
        kept = Image.open(io.BytesIO(base64.b64decode(held["blobs"][blob]))).convert("RGB")
        drawn = Image.open(io.BytesIO(ahead.png(figure))).convert("RGB")
        assert kept.size == drawn.size
        error = np.abs(np.asarray(kept, float) - np.asarray(drawn, float)).mean()
        other = held["results"][next(s for s in held["results"] if s != setting)]
        other = Image.open(io.BytesIO(base64.b64decode(held["blobs"][other[0][1]]))).convert("RGB")
        assert error < 3 < 1 + np.abs(np.asarray(other, float) - np.asarray(drawn, float)).mean()


# ---- which settings ------------------------------------------------------------------------------

def test_a_slider_keeps_its_ends_and_its_start() -> None:
    words = text("b", ["a", "", "b"])
    assert ahead.positions(words, 2) == [0, 1, 2] and ahead.start_of(words, [0, 1, 2]) == 0
    assert [ahead.argument(words, k) for k in range(3)] == ["b", "a", ""]
    assert [ahead.written(words, k) for k in range(3)] == ["b", "a", "(nothing)"]
    assert ahead.positions(slider(0, 9), 4) == [0, 3, 6, 9]
    assert ahead.positions(slider(1, 3, 2), 7) == [1, 2, 3]
    values = ahead.positions(slider(0.0, 1.5, 0.2), 5)
    assert values[0] == 0 and values[-1] == 1.5 and 0.2 in values and len(values) == 5
    powers = slider(20, 20_000, 500, log=True)
    shown = [ahead.written(powers, v) for v in ahead.positions(powers, 5)]
    assert shown[0] == "20" and shown[-1] == "20,000" and "500" in shown


def test_all_combinations_where_they_fit_else_lines_through_the_start() -> None:
    controls = dict(name=choice(["a", "b", "c"], "b"), on=toggle(), x=slider(0.0, 1.0, 0.5))
    values, chosen = ahead.settings(controls, 60)
    assert len(chosen) == len(set(chosen)) == np.prod([len(v) for v in values]) <= 60
    assert [v[k] for v, k in zip(values, chosen[0], strict=True)] == [1, False, 0.5]
    many = {f"x{k}": slider(0.0, 1.0, 0.5) for k in range(5)}
    values, chosen = ahead.settings(many, 40)
    assert len(chosen) <= 40
    for k, v in enumerate(values): assert {s[k] for s in chosen} == set(range(len(v)))


def test_a_change_above_a_panel_makes_it_stale(tmp_path: Path) -> None:
    def saved(*sources: str) -> Path:
        cells = [dict(id=f"c{k}", cell_type="code", source=s) for k, s in enumerate(sources)]
        path = tmp_path / "x.ipynb"
        path.write_text(json.dumps(dict(cells=cells)), encoding="utf-8")
        return path

    panel = "def look(k): return f(k)\npanel(look, k=slider(0, 3))"
    one = ahead.fingerprint(saved("a = 1", "def f(k): return k + a", "b = 2", panel), "c3")
    assert one == ahead.fingerprint(saved("a = 1", "def f(k): return k + a", "b = 3", panel), "c3")
    assert one != ahead.fingerprint(saved("a = 2", "def f(k): return k + a", "b = 2", panel), "c3")
    assert one != ahead.fingerprint(saved("a = 1", "def f(k): return k - a", "b = 2", panel), "c3")


def test_settings_that_the_text_asks_for_are_computed() -> None:
    source = "#| ahead: x=0.33, kind='b'; n=200\n#| ahead: on=True\npanel(draw)"
    asked = ahead.asked(source)
    assert asked == [dict(x=0.33, kind="b"), dict(n=200), dict(on=True)] and ahead.asked("panel(draw)") == []
    controls = dict(x=slider(0.0, 1.0, 0.5), n=slider(20, 20_000, 500, log=True), on=toggle(),
                    kind=choice(dict(a=object(), b=object())), y=slider(0.1, 10.0, 1.0, log=True))
    wanted = ahead.Recorded(None, controls, asked).asked
    values, chosen = ahead.settings(controls, 40, wanted)
    shown = [{name: ahead.written(control, v[k]) for (name, control), v, k in
              zip(controls.items(), values, setting, strict=True)} for setting in chosen]
    at_start = dict(x="0.5", n="500", on="off", kind="a", y="1")
    assert shown[0] == at_start
    for setting in (dict(x="0.33", kind="b"), dict(n="200"), dict(on="on")): assert at_start | setting in shown
    assert {0.0, 1.0, 0.5, 0.33} <= set(values[0]) and values[0] == sorted(values[0])
    assert len(values[0]) <= 7 and len(chosen) <= 43
    for wrong in (dict(z=1), dict(x=2.0), dict(kind="c"), dict(n=7)):
        with pytest.raises(RuntimeError, match="#| ahead"): ahead.Recorded(None, controls, [wrong])


def stands_at(control: dict, k: int, value: object = None) -> bool:
    """Whether the k-th stored value of a control is this one; None: where the control begins."""
    shown = control["shown"][k]
    if value is None: return k == control["start"]
    if isinstance(value, bool): return shown == ("on" if value else "off")
    if isinstance(value, str): return shown == value
    return float(shown.replace(",", "")) == pytest.approx(value, rel=1e-3)


@pytest.mark.parametrize("path", WITH_PANELS, ids=name_of)
def test_what_a_cell_asks_for_is_stored(path: Path) -> None:
    entries = ahead.index(path.stem)
    for cell, source in ahead.cells(path):
        for setting in ahead.asked(source):
            controls = entries[cell]["controls"]
            stored = [list(map(int, places.split(","))) for places in ahead.read_script(path.stem, cell)["results"]]
            assert any(all(stands_at(control, k, setting.get(control["name"])) for control, k
                           in zip(controls, places, strict=True)) for places in stored), f"{cell}: {setting}"
