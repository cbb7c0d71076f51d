"""Figures, panels and checks: what they show, and how they refuse."""

import io
import json
import math
import threading
import time
from functools import partial

import numpy as np
import pytest
import torch
from book import Book
from PIL import Image

from diffusion_course import checking
from diffusion_course.checking import Exercise, Mistake, check
from diffusion_course.files import whole_file
from diffusion_course.player import play
from diffusion_course.plots import (
    Film,
    compare,
    grid,
    mass_levels,
    save_grid,
    show_curves,
    show_density,
    show_field,
    show_histogram,
    show_images,
    show_paths,
    show_samples,
    slope,
    tile,
)
from diffusion_course.style import LABELS, color_of, figure, png, shrink
from diffusion_course.widgets import choice, panel, slider, toggle

normal = lambda x: (-x.square().sum(-1) / 2).exp() / (2 * math.pi)
points = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))


# ---- figures ----

@pytest.mark.parametrize(
    "draw",
    [
        lambda: show_samples(points),
        lambda: show_samples(points, torch.arange(200) % 3),
        lambda: show_density(normal),
        lambda: show_field(lambda x, t: -x),
        lambda: show_paths(torch.randn(5, 7, 2)),
        lambda: show_paths(torch.randn(5, 7)),
        lambda: show_paths(torch.randn(5, 7, 1), torch.linspace(0, 1, 5)),
        lambda: compare(normal, lambda x: normal(1.1 * x)),
        lambda: compare(lambda x, t: -x, lambda x, t: x, 0.5),
        lambda: show_images(torch.zeros(5, 3, 8, 8)),
        lambda: show_images(torch.zeros(1, 1, 8, 8), titles=["one"]),
        lambda: show_curves({"a": ([1, 2, 4], [1, 4, 16])}, slopes=True),
        lambda: show_histogram(torch.randn(100), lambda x: x * 0),
    ],
)
def test_every_figure_displays_itself(draw):
    data, size = draw()._repr_png_()
    picture = np.asarray(Image.open(io.BytesIO(data)).convert("L"))
    assert picture.std() > 3, "the picture is empty"
    assert size["width"] < picture.shape[1], "the picture is stored with fewer pixels than it is shown with"


def test_samples_are_drawn_in_the_colours_of_their_labels():
    fig = show_samples(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1]), size=400)
    pixels = {tuple(map(int, p)) for p in np.asarray(Image.open(io.BytesIO(png(fig)))).reshape(-1, 3)[::7]}
    for label in (0, 1):
        r, g, b = (int(LABELS[label][k : k + 2], 16) for k in (1, 3, 5))
        blended = tuple(round(0.7 * c + 0.3 * 255) for c in (r, g, b))
        assert any(max(abs(p - q) for p, q in zip(pixel, blended, strict=True)) <= 2 for pixel in pixels)


def test_level_sets_enclose_their_share_of_the_mass():
    values = normal(grid(6, 400)).reshape(400, 400).double().numpy()
    for share, level in zip((0.9, 0.5), mass_levels(values, (0.5, 0.9)), strict=True):
        assert level == pytest.approx(
            (1 - share) / (2 * math.pi), rel=0.01
        )  # for a Gaussian in the plane the level is the share left outside


def test_slope():
    h = torch.tensor([0.5, 0.25, 0.125])
    assert slope(h, 7 * h**3) == pytest.approx(3)
    for bad in (([1], [1]), ([1, 2], [1, 0]), ([1, 2], [1, math.nan]), ([1, 2, 3], [1, 2])):
        with pytest.raises(ValueError): slope(*bad)


def test_shrinking_keeps_the_picture():
    fig, ax = figure()
    show_density(normal, ax=ax)
    large = png(fig)
    a, b = (np.asarray(Image.open(io.BytesIO(d)).convert("RGB")).astype(int) for d in (large, shrink(large)))
    assert len(shrink(large)) < 0.6 * len(large) and np.abs(a - b).mean() < 1.5


def test_pictures_keep_their_colours():
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    shown = np.asarray(Image.open(io.BytesIO(show_images(x)._repr_png_()[0])))
    assert len(np.unique(shown.reshape(-1, 3), axis=0)) > 900


def test_learned_and_exact_share_a_scale():
    "Half of a density must look half as dark, and a field of double speed must have arrows of double length."
    shades = [image.get_clim() for ax in compare(lambda x: 0.5 * normal(x), normal).axes[:2] for image in ax.images]
    assert shades[0] == shades[1]
    lengths = [
        np.hypot(arrows.U, arrows.V).max()
        for ax in compare(lambda x, t: 2 * x, lambda x, t: x, 0.5).axes[:2]
        for arrows in ax.collections
    ]
    assert lengths[0] == pytest.approx(2 * lengths[1])


def test_histograms_show_all_values_in_their_true_share():
    ax = show_histogram(10 + 0.1 * torch.randn(1000, generator=torch.Generator().manual_seed(0))).axes[0]
    assert sum(bar.get_height() * bar.get_width() for bar in ax.patches) == pytest.approx(0.998, abs=0.003)
    ax = show_histogram(5 * torch.randn(10_000, generator=torch.Generator().manual_seed(0)), extent=(-5, 5)).axes[0]
    assert sum(bar.get_height() * bar.get_width() for bar in ax.patches) == pytest.approx(0.68, abs=0.02)
    show_histogram(torch.full((10,), 5.0))._repr_png_()


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: show_samples(torch.full((4, 2), math.nan)), "x holds 8 values that are NaN"),
        (lambda: show_field(lambda x, t: x, 5.0), "t is 5.0"),
        (lambda: show_density(lambda x: x), "the function returned shape"),
        (lambda: slope([1, 1], [1, 2]), "at least two different numbers"),
        (lambda: show_samples(torch.zeros(4, 3)), r"x has shape \(4, 3\)"),
        (lambda: show_samples(torch.zeros(0, 2)), r"x has shape \(0, 2\)"),
        (lambda: show_samples(points, torch.zeros(3)), "labels has shape"),
        (lambda: show_samples(points, color="leaned"), "unknown colour 'leaned'"),
        (lambda: show_field(lambda x, t: x[:, :1]), "the field returned shape"),
        (lambda: show_paths(torch.zeros(4, 5, 3)), "xs has shape"),
        (lambda: show_images(torch.zeros(3, 8, 8)), "x has shape"),
        (lambda: show_images(torch.zeros(2, 1, 8, 8), titles=["a"]), "1 titles for 2 pictures"),
        (lambda: color_of("nothing"), "expected one of noise, data"),
    ],
)
def test_bad_input_to_figures(call, said):
    with pytest.raises(ValueError, match=said): call()


def test_tiles_are_the_pictures_pixel_by_pixel(tmp_path):
    x = torch.linspace(-1, 1, 5 * 3 * 2 * 4).reshape(5, 3, 2, 4)
    sheet = torch.from_numpy(np.array(tile(x, 3, scale=2, gap=1)))
    assert sheet.shape == (2 * 4 + 1, 3 * 8 + 2, 3)
    for k in range(5):
        top, left = k // 3 * 5, k % 3 * 9
        assert torch.equal(
            sheet[top : top + 4 : 2, left : left + 8 : 2].permute(2, 0, 1),
            ((x[k] + 1) * 127.5).round().byte(),
        )
    assert (sheet[4] == 255).all() and (sheet[:, 8] == 255).all() and (sheet[5:, 18:] == 255).all()
    assert tile(9 * x[:, :1], 3).mode == "L" and np.array(tile(9 * x[-1:, :1])).max() == 255
    save_grid(x, tmp_path / "new" / "grid.png", 3)
    assert Image.open(tmp_path / "new" / "grid.png").size == (3 * 4 + 2, 2 * 2 + 1)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["grid.png"]


def test_a_film_plays_all_its_frames(tmp_path):
    frames = [Image.new("RGB", (8, 6), (40 * k, 0, 0)) for k in range(5)]
    film = Film(frames, seconds=1.0, pause=0.5)
    film.save(tmp_path / "a.gif")
    gif = Image.open(tmp_path / "a.gif")
    times = []
    for k in range(gif.n_frames):
        gif.seek(k)
        times.append(gif.info["duration"])
    assert gif.n_frames == 5 and gif.size == (8, 6) and gif.info["loop"] == 0 and times == [200] * 4 + [700]
    assert set(film._repr_mimebundle_()) == {"image/gif", "text/plain"}
    with pytest.raises(ValueError, match="no frames: expected one image or more"): Film([])


# ---- panels ----

def settle(p, seconds=20):
    end = time.monotonic() + seconds
    while p._busy and time.monotonic() < end: time.sleep(0.005)
    assert not p._busy, "the panel never came to rest"


def test_the_newest_values_win_and_are_drawn_in_a_thread():
    seen, threads, gate = [], [], threading.Event()

    def draw(n):
        if n: gate.wait(10)
        seen.append(n)
        threads.append(threading.current_thread())
        return f"n = {n}"

    p = panel(draw, n=slider(0, 100))
    for n in range(1, 101): p.controls["n"].value = n
    gate.set()
    settle(p)
    assert p._pictures.children[0].value == "n = 100" and seen[-1] == 100
    assert len(seen) <= 4, f"{len(seen)} calls queued up"
    assert threading.main_thread() not in threads[1:]


def test_results_are_remembered():
    calls = []
    p = panel(lambda n: calls.append(n) or str(n), n=slider(0, 5))
    for n in (1, 0, 1, 0):
        p.controls["n"].value = n
        settle(p)
    assert calls == [0, 1]


def test_what_a_generator_yields_is_shown_as_it_comes():
    said, gate = [], threading.Event()

    def draw(n):
        for k in range(3):
            said.append((n, k))
            yield f"{n}: {k}"
            if n == 2: gate.wait(10)

    p = panel(draw, n=slider(0, 5))
    assert p._pictures.children[0].value == "0: 2" and "0: 2" in p.to_html()
    p.controls["n"].value = 2
    end = time.monotonic() + 10
    while p._pictures.children[0].value != "2: 0" and time.monotonic() < end: time.sleep(0.005)
    assert p._pictures.children[0].value == "2: 0", "the first preview waits for the others"
    p.controls["n"].value = 3
    gate.set()
    settle(p)
    assert (
        p._pictures.children[0].value == "3: 2" and (2, 2) not in said
    ), "a newer setting does not cut the old one short"
    said.clear()
    for n in (0, 3, 2):
        p.controls["n"].value = n
        settle(p)
    assert said == [(2, 0), (2, 1), (2, 2)], "whole results are remembered, and only those"


def test_a_generator_that_yields_nothing_or_fails_is_one_line():
    def draw(n):
        if n == 1: raise ValueError("no such thing")
        yield from ["begun"] if n else []
        if n == 2: raise ValueError("half-way")

    p = panel(draw, n=slider(0, 3, 3))
    for n, message in ((0, "draw returned nothing to show"), (1, "no such thing"), (2, "half-way")):
        p.controls["n"].value = n
        settle(p)
        assert message in p._message.value
    p.controls["n"].value = 3
    settle(p)
    assert not p._message.value


def test_images_and_films_in_a_panel():
    frames = [Image.new("RGB", (8, 6), (40 * k, 0, 0)) for k in range(3)]
    p = panel(lambda n: (frames[n], Film(frames)), n=slider(0, 2))
    image, film = p._pictures.children
    assert (image.format, film.format) == ("png", "gif") and Image.open(io.BytesIO(film.value)).n_frames == 3
    p.controls["n"].value = 2
    settle(p)
    assert Image.open(io.BytesIO(image.value)).getpixel((0, 0)) == (80, 0, 0)
    assert "data:image/gif;base64," in p.to_html() and "data:image/png;base64," in p.to_html()


def test_an_error_is_one_line_and_heals():
    p = panel(lambda n: f"{1 / n}", n=slider(0, 2, 1))
    p.controls["n"].value = 0
    settle(p)
    assert (
        "ZeroDivisionError: float division by zero" in p._message.value
        or "ZeroDivisionError: division by zero" in p._message.value
    )
    assert "Traceback" not in p._message.value and p._pictures.children[0].value == "1.0"
    p.controls["n"].value = 2
    settle(p)
    assert p._message.value == "" and p._pictures.children[0].value == "0.5"


def test_an_error_at_the_start_shows_in_the_stored_output_too():
    assert "ZeroDivisionError" in panel(lambda n: f"{1 / n}", n=slider(0, 2)).to_html()


def test_a_scene_is_replaced_in_the_same_player():
    p = panel(lambda n: (play(torch.zeros(3, n, 2)), "text"), n=slider(1, 9))
    player = p._pictures.children[0]
    p.controls["n"].value = 7
    settle(p)
    assert p._pictures.children[0] is player and "7 points" in repr(player.scene)


def test_what_is_stored_needs_no_kernel_and_no_network():
    p = panel(
        lambda n, kind, on: (show_samples(points[: 10 * n]), "hello"),
        n=slider(1, 9, 3),
        kind=choice(["a", "b"]),
        on=toggle(True),
    )
    bundle = p._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert (
        "data:image/png;base64" in bundle["text/html"]
        and "hello" in bundle["text/html"]
        and "http" not in bundle["text/html"]
    )
    assert "n = 3" in bundle["text/html"] and "kind = a" in bundle["text/html"]


def test_values_that_cannot_be_hashed():
    p = panel(lambda a: repr(a), a=choice([("list", [1, 2]), ("one", 1), ("name", "x")]))
    shown = []
    for k in (0, 1, 2):
        p.controls["a"].index = k
        settle(p)
        shown.append(p._pictures.children[0].value)
    assert shown == ["[1, 2]", "1", "'x'"]


def test_other_views_replace_the_old_ones_and_close_them():
    p = panel(lambda n: "text" if n else show_samples(points), n=slider(0, 1))
    old = p._pictures.children[0]
    p.controls["n"].value = 1
    settle(p)
    assert p._pictures.children[0].value == "text" and old.comm is None


def test_a_panel_survives_an_exit_and_an_empty_result():
    def draw(n):
        if n == 1: raise SystemExit("no")
        return () if n == 2 else f"{n}"
    p = panel(draw, n=slider(0, 3))
    for n, said in [(1, "SystemExit"), (2, "nothing to show"), (3, "")]:
        p.controls["n"].value = n
        settle(p)
        assert said in p._message.value
    assert p._pictures.children[0].value == "3"


def test_the_stored_caption_belongs_to_the_stored_picture():
    p = panel(lambda n: f"drawn {n}", n=slider(1, 9))
    p.controls["n"].value = 4
    settle(p)
    assert "drawn 1" in p.to_html() and "n = 1" in p.to_html()


def test_sliders():
    assert slider(0, 5).value == 0 and slider(0, 5).step == 1
    assert slider(0.1, 20.0, 4.0).step == pytest.approx(0.1)
    whole = slider(20, 20_000, 500, log=True)
    assert whole.value == 500 and whole.options[0] == ("20", 20) and whole.options[-1] == ("20,000", 20_000)
    assert slider(0.01, 1.0, 0.1, log=True).value == pytest.approx(0.1)
    for bad in (
        lambda: slider(1, 0),
        lambda: slider(0, 1, 2),
        lambda: slider(0, 1, log=True),
        lambda: choice([]),
        lambda: choice(["a"], "b"),
        lambda: panel(str),
        lambda: panel(str, n=3),
    ):
        with pytest.raises(ValueError, match="expected"): bad()


# ---- checks ----

@pytest.fixture
def square(monkeypatch):
    "An exercise made up for the test: x squared, in double precision."
    cases = lambda: [
        (torch.tensor([1.0, 2.0, -3.0], dtype=torch.float64),),
        (torch.tensor([0.1], dtype=torch.float64),),
    ]
    made = Exercise(
        lambda x: x * x,
        cases,
        (
            Mistake(lambda x: 2 * x, "You doubled."),
            Mistake(lambda x: x / 0, "You divided by zero."),
        ),
        "Well squared.",
    )
    monkeypatch.setattr(checking, "exercise", lambda name: made)
    return lambda f: check("made.up", f)


def test_stubs_are_not_attempted(square):
    def dots(x): ...
    def documented(x):
        "What to do."
        ...
    def passed(x): pass
    def refused(x): raise NotImplementedError
    def none(x): return None
    for stub in (dots, documented, passed, refused, none, lambda x: ..., partial(dots), torch.no_grad()(dots)):
        assert square(stub).status == "not attempted", stub


def test_a_guard_is_not_a_stub(square):
    def guarded(x):
        if x is None: raise NotImplementedError
        return x * x
    assert square(guarded)


def test_right_answers_pass_in_any_guise(square):
    for right in (
        lambda x: x**2,
        lambda x: (x**2).float(),
        lambda x: (x**2).numpy(),
        lambda x: [float(v) ** 2 for v in x],
    ):
        report = square(right)
        assert report and report.message == "solved. Well squared."
        assert "✓" in repr(report) and "✓" in report._repr_html_()


def test_wrong_answers_get_their_hint_or_the_first_difference(square):
    assert square(lambda x: x + x).message == "You doubled."
    assert square(lambda x: x * math.inf).message == "You divided by zero."
    for wrong, said in [
        (lambda x: x**3, "the first one at index [1] is 8, expected 4"),
        (lambda x: x[:1], "it returned shape (1,), expected (3,)"),
        (lambda x: "x", "it returned str"),
        (lambda x: (x, x), "it returned 2 values"),
        (lambda x: x * math.nan, "is nan, expected 1"),
        (lambda x: [x, x], "it returned 2 values"),
        (lambda x: x + 1j, "it returned complex numbers, expected real ones"),
        (lambda x: [1.0, 2.0], "it returned shape (2,), expected (3,)"),
    ]:
        report = square(wrong)
        assert report.status == "not yet" and said in report.message, report


def test_crashes_and_lost_returns_are_named(square):
    def forgot(x): x * x
    def broken(x): return x.squared()
    def changed(x):
        x *= x
        return x
    assert "None" in square(forgot).message and "return" in square(forgot).message
    assert "AttributeError" in square(broken).message and "x.squared()" in square(broken).message
    assert "in place" in square(changed).message
    assert not any(map(square, (forgot, broken, changed)))


def test_reports_escape_what_learners_write(square):
    def tag(x): raise ValueError("<script>alert(1)</script>")
    assert "<script>" not in square(tag)._repr_html_()


def test_unknown_exercises_are_named():
    with pytest.raises(ValueError, match="starts with one of distributions"): check("nothing.here", abs)
    with pytest.raises(ValueError, match="distributions has distributions.gaussian_log_prob"):
        check("distributions.nothing", abs)
    with pytest.raises(ValueError, match="expected a function"): check("distributions.label_score", 3)
    with pytest.raises(ValueError, match="the name of an exercise is function"):
        check(lambda x: x, "distributions.label_score")


# ---- the tools' tables ---------------------------------------------------------------------------------------------

def test_a_book_measures_each_row_once_and_survives_a_stop(tmp_path):
    path, calls = tmp_path / "b.json", []

    def measure(value):
        calls.append(value)
        if value == 3: raise KeyboardInterrupt
        return dict(found=2 * value)
    about = dict(quick=False, model="a")
    for _ in range(2):
        b = Book(path, about, anew=("model",))
        assert [b.row("t", dict(k=k), measure, k)["found"] for k in (1, 2)] == [2, 4]
    with pytest.raises(KeyboardInterrupt): b.row("t", dict(k=3), measure, 3)
    assert calls == [1, 2, 3] and [r["k"] for r in json.loads(path.read_text())["t"]] == [1, 2]
    assert Book(path, about | dict(model="b")).row("t", dict(k=1), measure, 1)["found"] == 2 and len(calls) == 3
    Book(path, about | dict(model="b"), anew=("model",)).row("t", dict(k=1), measure, 1)
    assert calls == [1, 2, 3, 1] and len(json.loads(path.read_text())["t"]) == 1
    with pytest.raises(SystemExit, match="expected another --out"): Book(path, dict(quick=True))


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "f.txt"
    with whole_file(path) as fresh:
        fresh.write_text("old")
        assert not path.exists()
    with pytest.raises(ZeroDivisionError), whole_file(path) as fresh:
        fresh.write_text("ne")
        raise ZeroDivisionError
    assert path.read_text() == "old" and [p.name for p in path.parent.iterdir()] == ["f.txt"]
