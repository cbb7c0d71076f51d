"""Panels: what draw gets, when it is called, and what is shown of what it returns."""
from __future__ import annotations

import io
import re
import threading
import time

import pytest
import torch
from helpers import normal
from PIL import Image

from diffusion_course.player import play
from diffusion_course.plots import Film, show_samples
from diffusion_course.widgets import choice, panel, slider, toggle

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


@pytest.mark.parametrize("bad", [
    lambda: slider(1, 0), lambda: slider(0, 1, 2), lambda: slider(0, 1, log=True), lambda: choice([]),
    lambda: choice({}), lambda: choice(["a"], "b"), lambda: choice({"a": 1}, "a"),
    lambda: choice([("a", 1), ("a", 2)]), lambda: choice({1: "x", "1": "y"}), lambda: panel(str),
    lambda: panel(str, n=3),
])
def test_bad_controls_are_refused(bad):
    with pytest.raises(ValueError, match="expected"): bad()


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
