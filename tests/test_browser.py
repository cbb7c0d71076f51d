"""Every lesson as a learner meets it: opened in JupyterLab, run, every slider dragged, every player played."""
from __future__ import annotations

import ast
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import LESSONS, NBS, ROOT, code, name_of
from interface import (
    NO_BROWSER, Server, complaints, end_kernels, exercise_panel, exercise_player, find_browser,
    measure_speed, open_browser, open_notebook, run_all, serve,
)

from diffusion_course.player import play

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
    """How many panels the cells of a notebook make."""
    calls = (n.func for source in code(path) for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call))
    return sum(isinstance(f, ast.Name) and f.id == "panel" for f in calls)


@pytest.mark.parametrize("path", LESSONS, ids=name_of)
def test_lesson(page, server: Server, path: Path) -> None:
    open_notebook(page, server, path.name)
    page.wait_for_selector(STORED, state="attached")
    assert not page.locator(".dc-panel").count(), "a panel without a kernel behind it"
    page.wait_for_timeout(2000)  # JupyterLab asks its questions a little later
    assert not complaints(page), complaints(page)

    run_all(page)
    assert not complaints(page), complaints(page)
    panels, players = page.query_selector_all(".dc-panel"), page.query_selector_all(".dc-player")
    made = panels_of(path)
    assert made and len(panels) >= made, f"{len(panels)} panels are seen, and the cells make {made}"
    for player in players: exercise_player(page, player)
    for panel in panels: exercise_panel(page, panel)
    assert not complaints(page), complaints(page)


def test_a_player_never_runs_backwards(browser, tmp_path: Path) -> None:
    """A browser may stamp a frame earlier than the click that started it; the clock stays above its beginning."""
    scene = play(torch.linspace(-1, 1, 12).reshape(3, 2, 2))
    html = f"<!doctype html><meta charset='utf-8'><body>{scene.to_html()}"
    (tmp_path / "player.html").write_text(html, encoding="utf-8")
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
