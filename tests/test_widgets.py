"""Panels: what draw gets, when it is called, and what is shown of what it returns."""
from __future__ import annotations

import base64
import gc
import io
import re
import sys
import threading
import time
import tracemalloc
from math import log10

import ipywidgets
import pytest
import torch
from helpers import normal
from PIL import Image

from diffusion_course import style
from diffusion_course.player import play
from diffusion_course.plots import Film, show_samples
from diffusion_course.style import figure
from diffusion_course.widgets import choice, panel, slider, text, toggle

POINTS = normal(200, 2, dtype=torch.float32)


def wait_for(condition, seconds=60):
    """Wait until something is true; the limit is only there so that a failing test ends."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end: time.sleep(0.005)
    assert condition(), "it never came to pass"


def settle(p): wait_for(lambda: not p._busy)


def move(p, name, value):
    """Give a control another value, and wait until the panel is at rest."""
    p.controls[name].value = value
    settle(p)


def shown(p, k=0):
    """What the k-th view of a panel shows."""
    return p._views.children[k].value


def test_the_newest_values_win_and_are_drawn_in_a_thread():
    seen, threads, gate = [], [], threading.Event()

    def draw(n):
        if n: gate.wait(60)
        seen.append(n)
        threads.append(threading.current_thread())
        return f"n = {n}"

    p = panel(draw, n=slider(0, 100))
    for n in range(1, 101): p.controls["n"].value = n
    gate.set()
    settle(p)
    assert shown(p) == "n = 100" and seen[-1] == 100
    assert len(seen) <= 4, f"{len(seen)} calls queued up"
    assert threading.main_thread() not in threads[1:]


def test_results_are_remembered():
    calls = []

    def draw(n):
        calls.append(n)
        return str(n)

    p = panel(draw, n=slider(0, 5))
    for n in (1, 0, 1, 0): move(p, "n", n)
    assert calls == [0, 1]


def test_what_a_generator_yields_is_shown_as_it_comes():
    drawn, gate = [], threading.Event()

    def draw(n):
        for k in range(3):
            drawn.append((n, k))
            yield f"{n}: {k}"
            if n == 2: gate.wait(60)

    p = panel(draw, n=slider(0, 5))
    assert shown(p) == "0: 2" and "0: 2" in p.to_html()
    p.controls["n"].value = 2
    wait_for(lambda: shown(p) == "2: 0")  # the first preview does not wait for the others
    p.controls["n"].value = 3
    gate.set()
    settle(p)
    assert shown(p) == "3: 2"
    assert (2, 2) not in drawn, "a newer setting does not cut the old one short"
    drawn.clear()
    for n in (0, 3, 2): move(p, "n", n)
    assert drawn == [(2, 0), (2, 1), (2, 2)], "whole results are remembered, and only those"


def test_a_generator_that_yields_nothing_or_fails_is_one_line():
    def draw(n):
        if n == 1: raise ValueError("no such thing")
        yield from ["begun"] if n else []
        if n == 2: raise ValueError("half-way")

    p = panel(draw, n=slider(0, 3, 3))
    for n, message in ((0, "draw returned nothing to show"), (1, "no such thing"), (2, "half-way")):
        move(p, "n", n)
        assert message in p._message.value
    move(p, "n", 3)
    assert not p._message.value


def test_images_and_films_in_a_panel():
    frames = [Image.new("RGB", (8, 6), (40 * k, 0, 0)) for k in range(3)]
    p = panel(lambda n: (frames[n], Film(frames)), n=slider(0, 2))
    image, film = p._views.children
    assert (image.format, film.format) == ("png", "gif")
    assert Image.open(io.BytesIO(film.value)).n_frames == 3
    move(p, "n", 2)
    assert Image.open(io.BytesIO(image.value)).getpixel((0, 0)) == (80, 0, 0)
    for kind in ("gif", "png"): assert f"data:image/{kind};base64," in p.to_html()


def test_an_error_is_one_line_and_heals():
    p = panel(lambda n: f"{1 / n}", n=slider(0, 2, 1))
    move(p, "n", 0)
    assert re.search("ZeroDivisionError: (float )?division by zero", p._message.value)
    assert "Traceback" not in p._message.value and shown(p) == "1.0"
    move(p, "n", 2)
    assert p._message.value == "" and shown(p) == "0.5"


def test_an_error_at_the_start_shows_in_the_stored_output_too():
    assert "ZeroDivisionError" in panel(lambda n: f"{1 / n}", n=slider(0, 2)).to_html()


def test_a_scene_is_replaced_in_the_same_player():
    p = panel(lambda n: (play(torch.zeros(3, n, 2)), "text"), n=slider(1, 9))
    player = p._views.children[0]
    move(p, "n", 7)
    assert p._views.children[0] is player and "7 points" in repr(player.scene)


def test_what_is_stored_needs_no_kernel_and_no_network():
    p = panel(lambda n, kind, on: (show_samples(POINTS[: 10 * n]), "hello"),
              n=slider(1, 9, 3), kind=choice(["a", "b"]), on=toggle(True))
    bundle = p._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    page = bundle["text/html"]
    assert "data:image/png;base64" in page and "hello" in page and "http" not in page
    assert "n = 3" in page and "kind = a" in page


def test_values_that_cannot_be_hashed():
    p = panel(lambda a: repr(a), a=choice([("list", [1, 2]), ("one", 1), ("name", "x")]))
    drawn = []
    for k in (0, 1, 2):
        p.controls["a"].index = k
        settle(p)
        drawn.append(shown(p))
    assert drawn == ["[1, 2]", "1", "'x'"]


def test_other_views_replace_the_old_ones_and_close_them():
    p = panel(lambda n: "text" if n else show_samples(POINTS), n=slider(0, 1))
    old = p._views.children[0]
    move(p, "n", 1)
    assert shown(p) == "text" and old.comm is None


def test_a_panel_survives_an_exit_and_an_empty_result():
    def draw(n):
        if n == 1: raise SystemExit("no")
        return () if n == 2 else f"{n}"
    p = panel(draw, n=slider(0, 3))
    for n, message in [(1, "SystemExit"), (2, "nothing to show"), (3, "")]:
        move(p, "n", n)
        assert message in p._message.value
    assert shown(p) == "3"


def test_the_stored_caption_belongs_to_the_stored_image():
    p = panel(lambda n: f"drawn {n}", n=slider(1, 9))
    move(p, "n", 4)
    assert "drawn 1" in p.to_html() and "n = 1" in p.to_html()


def test_sliders():
    assert slider(0, 5).value == 0 and slider(0, 5).step == 1
    assert slider(0.1, 20.0, 4.0).step == pytest.approx(0.1)
    whole = slider(20, 20_000, 500, log=True)
    assert whole.value == 500
    assert (whole.options[0], whole.options[-1]) == (("20", 20), ("20,000", 20_000))
    assert slider(0.01, 1.0, 0.1, log=True).value == pytest.approx(0.1)
    assert slider(0.0, 1.0, 0.25).step == slider(0.0, 1.0).step == 0.01
    for control, start in ((slider(0.0, 1.0, 1 / 3), 1 / 3), (slider(0.05, 10.0, 1.044, log=True), log10(1.044))):
        steps = (start - control.min) / control.step  # else a page would move it
        assert steps == pytest.approx(round(steps)) and 20 < steps < 50


@pytest.mark.parametrize("bad", [
    lambda: slider(1, 0), lambda: slider(0, 1, 2), lambda: slider(0, 1, log=True), lambda: choice([]),
    lambda: choice({}), lambda: choice(["a"], "b"), lambda: choice({"a": 1}, "a"),
    lambda: choice([("a", 1), ("a", 2)]), lambda: choice({1: "x", "1": "y"}), lambda: panel(str),
    lambda: panel(str, n=3), lambda: text("a", [1, 2]),
])
def test_bad_controls_are_refused(bad):
    with pytest.raises(ValueError, match="expected"): bad()


def test_a_text_counts_when_it_is_complete_and_offers_suggestions():
    def draw(words):
        if "cat" in words: raise ValueError("no cats")
        return f"{len(words)} letters"

    p = panel(draw, words=text("two", ["three", "two", "four"], help="some words"))
    control = p.controls["words"]
    assert control.options == ("two", "three", "four") and not control.continuous_update
    assert shown(p) == "3 letters" and "words = two" in p.to_html()
    move(p, "words", "anything else")
    assert shown(p) == "13 letters"
    move(p, "words", "a cat")
    assert "no cats" in p._message.value and shown(p) == "13 letters"
    p.reset()
    assert control.value == "two"


# ---- choices -------------------------------------------------------------------------------------

def test_a_choice_between_labels_hands_their_values_to_draw():
    p = panel(lambda churn: f"churn {churn}", churn=choice({"ODE": 0.0, "SDE": 1.0, "wild": 9.5}, 1.0))
    assert p.values == {"churn": 1.0} and shown(p) == "churn 1.0"
    assert p.controls["churn"].label == "SDE" and "churn = SDE" in p.to_html()
    move(p, "churn", 9.5)
    assert shown(p) == "churn 9.5" and p.controls["churn"].label == "wild"


TENSOR = torch.tensor([1.0, 2.0])


@pytest.mark.parametrize("values", [
    [None, 3], [3, None], [1, True, 1.0], [TENSOR, TENSOR + 1, TENSOR.clone()], [TENSOR.numpy(), None],
    [[1], [2]], [str, len], [(1, 2), (3, 4)], [float("nan"), 0.0],
], ids=repr)
@pytest.mark.parametrize("long", [False, True], ids=["buttons", "list"])
def test_values_of_any_type_reach_draw(values, long):
    """In the browser an option is chosen by its index; what draw gets is the value itself."""
    received = []

    def draw(v):
        received.append(v)
        return "drawn"

    names = [f"{'a long name of ' * 4 * long}{k}" for k in range(len(values))]
    p = panel(draw, v=choice(dict(zip(names, values, strict=True))))
    for k in [*range(1, len(values)), 0]:
        p.controls["v"].index = k
        settle(p)
        assert p.values["v"] is values[k] and p.controls["v"].label == names[k]
    assert not p._message.value
    assert len(received) == len(values)
    assert all(a is b for a, b in zip(received, values, strict=True))


def test_a_panel_says_that_it_is_busy() -> None:
    """The page must be able to tell a finished draw from one that is still to come."""
    begun, go_on = threading.Event(), threading.Event()

    def draw(x: float) -> str:
        if x == 2:
            begun.set()
            assert go_on.wait(10)
        return f"x is {x}"

    p = panel(draw, x=slider(0, 4, 1))
    assert "dc-busy" not in p.widget._dom_classes
    p.controls["x"].value = 2
    assert begun.wait(10) and "dc-busy" in p.widget._dom_classes
    go_on.set()
    wait_for(lambda: "dc-busy" not in p.widget._dom_classes)


# ---- what a panel says of itself -----------------------------------------------------------------

def drawn_with_gate(drawn: list):
    """A draw that waits at n = 1 until its gate opens, and the gate."""
    gate, begun = threading.Event(), threading.Event()

    def draw(n):
        if n == 1:
            begun.set()
            assert gate.wait(60)
        drawn.append(n)
        return f"n = {n}"

    return draw, begun, gate


def test_what_is_known_is_shown_at_once_while_another_draw_is_under_way():
    drawn = []
    draw, begun, gate = drawn_with_gate(drawn)
    p = panel(draw, n=slider(0, 5))
    p.controls["n"].value = 1
    assert begun.wait(60)
    p.controls["n"].value = 0
    assert shown(p) == "n = 0" and p._busy
    assert not {"dc-busy", "dc-old"} & set(p.widget._dom_classes)
    gate.set()
    settle(p)
    assert shown(p) == "n = 0" and drawn == [0, 1], "a draw that is out of date took the place of a newer one"


def test_an_old_result_is_marked_until_a_new_one_is_there():
    gate = threading.Event()

    def draw(n):
        if n == 2: raise ValueError("two")
        yield f"{n}: first"
        if n: assert gate.wait(60)
        yield f"{n}: last"

    p = panel(draw, n=slider(0, 3))
    p.controls["n"].value = 1
    wait_for(lambda: shown(p) == "1: first" and "dc-old" not in p.widget._dom_classes)
    assert "dc-busy" in p.widget._dom_classes, "previews are of the newest values, and more are to come"
    gate.set()
    settle(p)
    move(p, "n", 2)
    assert "dc-old" in p.widget._dom_classes and 'role="alert"' in p._message.value
    move(p, "n", 0)
    assert not {"dc-busy", "dc-old"} & set(p.widget._dom_classes)


def contrast(a: str, b: str) -> float:
    """Of two colours #rrggbb, as WCAG 2.2 defines it."""
    def luminance(color):
        parts = [int(color[k: k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_an_error_is_readable_on_any_page():
    p = panel(lambda n: f"{1 / n}", n=slider(0, 2))
    ink, plate = re.search(r'role="alert" style="color:(#\w+);background:(#\w+)', p._message.value).groups()
    assert contrast(ink, plate) >= 4.5


def test_selected_buttons_differ_from_the_others_in_both_themes():
    css = panel(str, n=slider(0, 2))._frame._esm
    for theme in (r"\.dc-panel \{ (.*?)\}", r'theme="dark"\] \.dc-panel \{(.*?)\}'):
        colors = dict(re.findall(r"--dc-([\w-]+): (#\w+)", re.search(theme, css, re.S)[1]))
        colors = {name: c if len(c) == 7 else "#" + "".join(2 * d for d in c[1:]) for name, c in colors.items()}
        assert contrast(colors["blue"], colors["plate"]) >= 3
        assert contrast(colors["on-blue"], colors["blue"]) >= 4.5
        assert contrast(colors["ink"], colors["plate"]) >= 4.5


def test_controls_that_make_no_difference_are_greyed_and_not_drawn_for():
    drawn = []

    def draw(sampler, churn):
        drawn.append((sampler, churn))
        return f"{sampler} {churn}"

    p = panel(draw, needs=dict(churn=lambda v: v["sampler"] == "SDE"),
              sampler=choice(["ODE", "SDE"]), churn=slider(0.0, 2.0, 1.0))
    churn = p.controls["churn"]
    assert churn.disabled and p._frame.off == ["churn"] and "churn" not in p.to_html()
    move(p, "churn", 2.0)
    assert drawn == [("ODE", 1.0)], "drawn again for a value that makes no difference"
    move(p, "sampler", "SDE")
    assert not churn.disabled and p._frame.off == [] and drawn[-1] == ("SDE", 2.0)
    move(p, "churn", 0.5)
    assert shown(p) == "SDE 0.5"
    with pytest.raises(ValueError, match=r"needs names \['chrun'\]: expected some of \['churn'\]"):
        panel(str, needs=dict(chrun=bool), churn=slider(0, 2))


def test_reset_brings_all_first_values_back_with_one_draw():
    drawn = []
    p = panel(lambda **v: drawn.append(v) or "drawn", n=slider(1, 9, 3), x=slider(0.1, 10, 1.0, log=True),
              kind=choice(["a", "b"], "b"), on=toggle(True), k=slider(10, 1000, 50, log=True))
    begin = p.values
    assert p._reset.disabled
    for name, value in dict(n=5, x=2.0, kind="a", on=False, k=100).items(): move(p, name, value)
    assert not p._reset.disabled and len(drawn) == 6
    p._reset.click()
    settle(p)
    assert p.values == begin and p._reset.disabled and len(drawn) == 6  # it is remembered
    p.controls["x"].value = 1.0000000000000002  # as pages round
    settle(p)
    assert p._reset.disabled and len(drawn) == 6
    for name, value in dict(n=5, x=2.0).items(): move(p, name, value)
    p._frame._handle_custom_msg({"reset": 0}, [])  # as the page sends for a double-click
    settle(p)
    assert p.values == {**begin, "x": 2.0}
    p._frame._handle_custom_msg({"reset": 7}, [])
    assert p.values == {**begin, "x": 2.0}


def test_names_help_and_marks_reach_the_page():
    p = panel(lambda **v: "", t=slider(0.0, 1.0, 0.25), x_up=slider(-1, 1, help="Upwards."),
              steps=slider(1, 100, 10, log=True), r=slider(0.01, 100.0, 1.0, log=True),
              sampler=choice(["Euler", "Heun"], label="solver", help="How a step is made."))
    t, x_up, steps, r, sampler = p._frame.controls
    assert t == dict(key="t", name="time t", help="0 is noise, 1 is data.", mark=0.25)
    assert (x_up["name"], x_up["help"], x_up["mark"]) == ("x up", "Upwards.", 0.0)
    numbers = [n for _, n in p.controls["steps"].options]
    assert steps["mark"] == numbers.index(10) / (len(numbers) - 1) and r["mark"] == pytest.approx(0.5)
    assert (sampler["name"], sampler["help"], sampler["mark"]) == ("solver", "How a step is made.", None)
    assert "time t = 0.25" in p.to_html()
    assert all(c.tooltip is not None for c in p.controls.values())  # which the page would write as "null"


def test_images_have_words_and_a_still():
    def draw(n):
        fig, axes = figure(2)
        for ax, title in zip(axes, ("left", "right"), strict=True): ax.set_title(f"{title} {n}")
        return fig, Image.new("RGB", (8, 6))

    p = panel(draw, n=slider(1, 3))
    assert p._frame.alts == ["figure: left 1, right 1", "figure: left 1, right 1 (part 2)", "image"]
    move(p, "n", 2)
    assert p._frame.alts[0] == "figure: left 2, right 2"
    bundle = p._repr_mimebundle_()
    assert bundle["text/html"].count("<img alt=") == 3
    still = Image.open(io.BytesIO(base64.b64decode(bundle["image/png"])))
    assert still.format == "PNG" and still.width == 2 * 3.2 * 120 + 8
    assert "image/png" not in panel(str, n=slider(0, 2))._repr_mimebundle_()


def test_wide_figures_are_cut_where_nothing_lies_across():
    fig, axes = figure(4, size=(1.3, 2))
    whole = style.png(fig)
    pieces = style.side_by_side(fig)
    assert len(pieces) == 2, "narrow plots stay together"
    together = Image.new("RGB", (sum(p.width for p in pieces), pieces[0].height))
    left = 0
    for piece in pieces:
        together.paste(piece, (left, 0))
        left += piece.width
    assert together.tobytes() == Image.open(io.BytesIO(whole)).tobytes()
    fig.suptitle("a title that lies across the plots, from one end to the other")
    assert len(style.side_by_side(fig)) == 1
    fig, axes = figure(2)
    fig.colorbar(axes[1].imshow(POINTS[:9].numpy(), aspect="auto"))
    assert len(style.side_by_side(fig)) == 2
    assert len(style.side_by_side(figure()[0])) == 1


def test_panels_draw_where_they_stand_in_colab(monkeypatch):
    threads = []
    p = panel(lambda n: threads.append(threading.current_thread()) or f"n = {n}", n=slider(0, 5))
    monkeypatch.setitem(sys.modules, "google.colab", sys)
    p.controls["n"].value = 3
    assert shown(p) == "n = 3" and not p._busy and set(threads) == {threading.main_thread()}
    assert "dc-busy" not in p.widget._dom_classes


def test_a_thousand_moves_leave_memory_as_it_was():
    def draw(n, kind):
        if kind == "scene": return play(torch.full((3, 5, 2), n / 1000))
        return Image.new("RGB", (32, 32), (n % 256, n // 256, 0)), f"n = {n}"

    p = panel(draw, n=slider(0, 1200), kind=choice(["image", "scene"]))

    def moves(numbers):
        for n in numbers:
            if n % 100 in (0, 20): move(p, "kind", "image" if n % 100 else "scene")
            move(p, "n", n)

    def held():
        gc.collect()
        return tracemalloc.get_traced_memory()[0], len(ipywidgets.widgets.widget._instances)

    moves(range(1, 201))  # until as many results are remembered as there may be
    tracemalloc.start()
    try:
        before, widgets = held()
        moves(range(201, 1201))
        after, widgets_then = held()
    finally: tracemalloc.stop()
    assert widgets_then == widgets
    assert after - before < 300_000, f"{after - before:,} bytes more after a thousand moves"
