"""Every lesson as a learner meets it: opened in JupyterLab, run, every slider dragged, every player played."""
from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import LESSONS, NBS, ROOT, code, name_of
from interface import (
    NO_BROWSER, PATIENCE, Server, complaints, end_kernels, exercise_panel, exercise_player, find_browser,
    measure_speed, open_browser, open_notebook, run_all, serve, write_notebook,
)

from diffusion_course.player import play

expect = pytest.importorskip("playwright.sync_api").expect
pytestmark = [pytest.mark.browser, pytest.mark.skipif(find_browser() is None, reason=NO_BROWSER)]


@pytest.fixture(scope="module")
def notebooks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the notebooks, because JupyterLab writes to those it has open."""
    copy = tmp_path_factory.mktemp("lab") / "nbs"
    return Path(shutil.copytree(NBS, copy, ignore=shutil.ignore_patterns(".ipynb_checkpoints")))


@pytest.fixture(scope="module")
def server(notebooks: Path) -> Iterator[Server]:
    """One JupyterLab for all tests."""
    with serve(notebooks, notebooks.parent) as running: yield running


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """One browser for all tests."""
    with open_browser() as opened: yield opened


@pytest.fixture
def page(browser, server: Server, request: pytest.FixtureRequest) -> Iterator:
    """A fresh profile's page. It asks only the server, and leaves an image in out/ where a test fails."""
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    page = context.new_page()
    failed = request.session.testsfailed
    foreign = []

    def requested(r) -> None:
        if not r.url.startswith((server.url, "data:", "blob:")): foreign.append(r.url)

    page.on("request", requested)
    page.on("dialog", lambda dialog: dialog.accept())  # on leaving a notebook with changes
    yield page
    if request.session.testsfailed > failed:
        image = ROOT / "out" / (re.sub(r"\W+", "_", request.node.name).strip("_") + ".png")
        page.screenshot(path=image)
        print(f"See {image}")
    context.close()
    end_kernels(server)
    assert not foreign, f"asked of the network: {foreign}"


# What is seen without a kernel
STORED = '.jp-OutputArea-output img[src^="data:image"], .jp-OutputArea-output .dc-player canvas'


def panels_of(path: Path) -> int:
    """How many panels the cells of a notebook show, by its stored outputs: a call may stand in a function."""
    outputs = (o for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] for o in cell.get("outputs", []))
    return sum("".join(o.get("data", {}).get("text/plain", "")).startswith("panel of ") for o in outputs)


def players_of(path: Path) -> int:
    """How many players the stored outputs of a notebook hold, those in panels among them."""
    outputs = (o for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] for o in cell.get("outputs", []))
    return sum("".join(o.get("data", {}).get("text/html", "")).count('<div data-dc="') for o in outputs)


# Panels and players come into the page a little after the kernel is at rest.
COMPLETE = """([panels, players]) => {
  const count = (name) => document.querySelectorAll(name).length;
  return count('.dc-panel[aria-busy=false] .dc-controls .jupyter-widgets') >= panels
    && count('.dc-panel') >= panels && count('.dc-player canvas') >= players;
}"""


@pytest.mark.parametrize("path", LESSONS, ids=name_of)
def test_lesson(page, server: Server, path: Path) -> None:
    # Players wait to be started, as for readers who ask for little motion: together they take from the kernel
    # the processor time that it computes with.
    page.emulate_media(reduced_motion="reduce")
    open_notebook(page, server, path.name)
    page.wait_for_selector(STORED, state="attached")
    assert not page.locator(".dc-panel").count(), "a panel without a kernel behind it"
    assert not complaints(page), complaints(page)

    run_all(page)
    assert not complaints(page), complaints(page)
    made = [panels_of(path), players_of(path)]
    page.wait_for_function(COMPLETE, arg=made, timeout=PATIENCE)
    panels, players = page.query_selector_all(".dc-panel"), page.query_selector_all(".dc-player")
    assert len(panels) == made[0] >= sum("panel(" in source for source in code(path)) > 0, f"{made[0]} panels are made"
    assert len(players) >= made[1], f"{made[1]} players are stored, and there may be live ones"
    assert not page.locator(".dc-reset:not([disabled])").count(), "a control was moved by the page itself"
    for player in players: exercise_player(page, player)
    for panel in panels: exercise_panel(page, panel)
    assert not complaints(page), complaints(page)


SPOKEN = """import threading
from diffusion_course.style import figure
from diffusion_course.widgets import choice, panel, slider, toggle

go_on = threading.Event()

def draw(n, kind, churn, on):
    if n == 3: go_on.wait(120)
    if n == 4: raise ValueError("n is 4")
    fig, axes = figure(2)
    axes[0].set(title=f"n = {n}")
    return fig, f"n is {n}"

panel(draw, n=slider(0, 9, 1, help="How many."), kind=choice(["a", "b"]), churn=slider(0.0, 2.0, 1.0),
      on=toggle(label="score"), needs=dict(churn=lambda v: v["kind"] == "b"))
%%
def open_gate(_): go_on.set()
import ipywidgets
gate = ipywidgets.Checkbox(description="gate")
gate.add_class("gate").observe(open_gate, names="value")
gate
"""


def test_what_a_panel_says_and_what_keys_do(page, server: Server, notebooks: Path) -> None:
    write_notebook(notebooks / "spoken.ipynb", SPOKEN)
    open_notebook(page, server, "spoken.ipynb")
    run_all(page)
    panel, text = page.locator(".dc-panel"), page.locator(".dc-panel .dc-text")
    n, churn = panel.get_by_role("slider", name="n", exact=True), panel.get_by_role("slider", name="churn")
    n.wait_for(timeout=PATIENCE)
    expect.set_options(timeout=PATIENCE)
    expect(n).to_have_attribute("aria-valuetext", "1")
    expect(n).to_have_accessible_description(re.compile("How many."))
    box = n.bounding_box()
    assert box["width"] >= 24 and box["height"] >= 24, box
    expect(panel.get_by_role("checkbox", name="score")).to_be_visible()
    expect(panel.get_by_role("img", name="figure: n = 1", exact=True)).to_be_visible()
    assert not page.locator(".dc-panel [title=null]").count()

    expect(churn).to_have_accessible_description(re.compile("no difference"))
    kinds = panel.get_by_role("group", name="kind").get_by_role("button")
    expect(kinds.nth(0)).to_have_attribute("aria-pressed", "true")
    kinds.nth(1).click()
    expect(kinds.nth(1)).to_have_attribute("aria-pressed", "true")
    panel.locator(".widget-label", has_text="kind").dblclick()
    expect(kinds.nth(0)).to_have_attribute("aria-pressed", "true")
    kinds.nth(1).dblclick()  # which chooses it twice
    expect(kinds.nth(1)).to_have_attribute("aria-pressed", "true")
    expect(churn).to_have_accessible_description(re.compile("0 is the ODE"))

    height = panel.bounding_box()["height"]
    n.press("ArrowRight")
    expect(text).to_have_text("n is 2")
    expect(panel).to_have_attribute("aria-busy", "false")
    n.press("ArrowRight")  # to what takes its time
    expect(panel).to_have_attribute("aria-busy", "true")
    expect(text).to_have_css("opacity", "0.45")
    page.locator(".gate input").click()
    expect(text).to_have_text("n is 3")
    expect(text).to_have_css("opacity", "1")
    n.press("ArrowRight")  # to an error
    expect(panel.get_by_role("alert")).to_have_text("ValueError: n is 4")
    expect(text).to_have_text("n is 3")
    expect(text).to_have_css("opacity", "0.45")
    assert abs(panel.bounding_box()["height"] - height) < 2, "the page jumps"
    n.dblclick()
    expect(n).to_have_attribute("aria-valuetext", "1")
    expect(text).to_have_text("n is 1")
    expect(text).to_have_css("opacity", "1")
    expect(panel.get_by_role("alert")).to_have_count(0)
    panel.get_by_role("button", name="reset").click()
    expect(kinds.nth(0)).to_have_attribute("aria-pressed", "true")
    expect(panel.get_by_role("button", name="reset")).to_be_disabled()


def test_keys_move_a_players_time(browser, tmp_path: Path) -> None:
    scene = play({"a": torch.linspace(-1, 1, 12).reshape(3, 2, 2)}, autoplay=False)
    text = f"<!doctype html><meta charset='utf-8'><body>{scene.to_html()}"
    (tmp_path / "keys.html").write_text(text, encoding="utf-8")
    page = browser.new_page(viewport={"width": 380, "height": 700})
    page.goto((tmp_path / "keys.html").as_uri())
    time = page.get_by_role("slider", name="time")
    moves = dict(ArrowRight="0.02", PageUp="0.12", ArrowDown="0.10", End="1.00", Home="0.00")
    for key, said in moves.items():
        time.press(key)
        expect(time).to_have_attribute("aria-valuetext", f"t = {said}")
    expect(page.get_by_role("img", name="a: 2 points that move from noise to data")).to_be_visible()
    bar, player = time.bounding_box(), page.locator(".dc-player").bounding_box()
    assert bar["width"] > 0.9 * (player["width"] - 24), "the bar has no row of its own"
    page.close()


def shown_player(browser, folder: Path, scene):
    """A page with a scene's player."""
    text = f"<!doctype html><meta charset='utf-8'><body>{scene.to_html()}"
    (folder / "player.html").write_text(text, encoding="utf-8")
    page = browser.new_page(viewport={"width": 900, "height": 700})
    page.goto((folder / "player.html").as_uri())
    page.locator("canvas").first.wait_for(timeout=PATIENCE)
    return page


def test_a_player_goes_from_one_iterate_to_the_next(browser, tmp_path: Path) -> None:
    x = torch.linspace(-1, 1, 12).reshape(3, 2, 2)
    scene = play({"a": x, "b": x}, ts=[torch.tensor([0, 0.3, 1]), torch.tensor([0, 0.5, 1])], autoplay=False)
    page = shown_player(browser, tmp_path, scene)
    player, time = page.locator(".dc-player"), page.get_by_role("slider", name="time")
    player.focus()
    said_at_each = "0.30", "0.50", "1.00", "1.00", "0.50", "0.30", "0.00", "0.00"
    for key, said in zip("....,,,,", said_at_each, strict=True):
        page.keyboard.press(key)
        expect(time).to_have_attribute("aria-valuetext", f"t = {said}")
    time.press("PageUp")
    page.get_by_role("button", name="one iterate on").click()
    expect(time).to_have_attribute("aria-valuetext", "t = 0.30")
    page.get_by_role("button", name="play", exact=True).click()
    page.get_by_role("button", name="one iterate back").click()
    expect(player).to_have_attribute("data-playing", "false")
    page.close()


def test_a_point_under_the_pointer_is_ringed_in_every_pane(browser, tmp_path: Path) -> None:
    x = torch.tensor([[[-0.5, 0.5], [0.5, -0.5]]] * 2)
    more = torch.zeros(2, 3, 2)
    page = shown_player(browser, tmp_path, play({"a": x, "b": -x, "c": more}, extent=1, autoplay=False, tail=0))
    looks = "[...document.querySelectorAll('canvas')].map((c) => c.toDataURL())"
    before, player = page.evaluate(looks), page.locator(".dc-player")
    canvas = page.locator("canvas").first.bounding_box()
    page.mouse.move(canvas["x"] + 0.75 * canvas["width"] + 4, canvas["y"] + 0.75 * canvas["height"])
    expect(player).to_have_attribute("data-ringed", "1")
    assert [a != b for a, b in zip(page.evaluate(looks), before, strict=True)] == [True, True, False]
    dark = """([k, x, y]) => { const c = document.querySelectorAll('canvas')[k], r = c.width / c.clientWidth;
      const [red, green, blue] = c.getContext('2d').getImageData(x * c.width + 8 * r, y * c.height, 1, 1).data;
      return red + green + blue < 200; }"""
    assert page.evaluate(dark, [0, 0.75, 0.75]) and page.evaluate(dark, [1, 0.25, 0.25])
    assert not page.evaluate(dark, [1, 0.75, 0.75])
    page.mouse.move(canvas["x"] + 0.5 * canvas["width"], canvas["y"] + 0.5 * canvas["height"])  # near none
    expect(player).to_have_attribute("data-ringed", "")
    assert page.evaluate(looks) == before
    page.close()


def test_a_player_plays_in_a_frame_of_its_own(browser, tmp_path: Path) -> None:
    """As Colab and VS Code show outputs: in a frame that may run scripts, and reaches no page, file or host."""
    scene = play({"a": torch.linspace(-1, 1, 12).reshape(3, 2, 2)}, autoplay=False)
    frame = html.escape(f"<!doctype html><meta charset='utf-8'><body>{scene.to_html()}")
    text = f'<!doctype html><body><iframe sandbox="allow-scripts" width="700" height="700" srcdoc="{frame}"></iframe>'
    (tmp_path / "frame.html").write_text(text, encoding="utf-8")
    page, asked, errors = browser.new_page(), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((tmp_path / "frame.html").as_uri())
    player = page.frame_locator("iframe").locator(".dc-player")
    player.locator("canvas").first.wait_for(timeout=PATIENCE)
    before = player.get_attribute("data-draws")
    player.locator(".dc-play").click()
    expect(player).not_to_have_attribute("data-draws", before, timeout=PATIENCE)
    page.close()
    assert [url for url in asked if not url.startswith(("file:", "about:", "data:", "blob:"))] == []
    assert errors == []


def test_a_player_never_runs_backwards(browser, tmp_path: Path) -> None:
    """A browser may stamp a frame earlier than the click that started it; the clock stays above its beginning."""
    scene = play(torch.linspace(-1, 1, 12).reshape(3, 2, 2))
    text = f"<!doctype html><meta charset='utf-8'><body>{scene.to_html()}"
    (tmp_path / "player.html").write_text(text, encoding="utf-8")
    page = browser.new_page()
    page.add_init_script("""
        window.seen = [];
        window.requestAnimationFrame = draw => setTimeout(() => {
            draw(performance.now() - 500);
            window.seen.push(document.querySelector('.dc-clock')?.textContent ?? '');
        }, 10);""")
    page.goto((tmp_path / "player.html").as_uri())
    page.wait_for_function("() => new Set(window.seen).size > 5")  # it plays
    clocks = page.evaluate("window.seen")
    page.close()
    assert not [c for c in clocks if "-" in c or "−" in c], clocks


def test_speed(page, server: Server, notebooks: Path, capsys: pytest.CaptureFixture) -> None:
    table = measure_speed(page, server, notebooks)
    with capsys.disabled(): print(f"\n{table}")
