"""JupyterLab in a headless browser: what the browser tests and `benchmarks/interface.py` share.

`python tests/interface.py --install` looks for a browser and fetches Playwright's where there is none.
"""
from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion_course.cli import lab_command, lab_environment

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ElementHandle, Page

ROOT = Path(__file__).resolve().parents[1]
TOKEN = "course"  # of servers that live for a test, on this machine only
NO_BROWSER = ("no Chromium or Chrome found: "
              "set CHROMIUM to one, or run `python -m playwright install chromium`")


def crowded() -> float:
    """How many programs share a processor: 1 to 8, and 1 where that isn't known (Windows)."""
    if not hasattr(os, "getloadavg"): return 1.0
    return min(max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)), 8.0)


PATIENCE = round(60_000 * crowded())  # milliseconds before what does not come is given up


# ---- the browser ---------------------------------------------------------------------------------

def find_browser() -> str | None:
    """An executable: $CHROMIUM, the system's Chromium or Chrome, or Playwright's own."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    system = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if system: return system
    try:
        from playwright.sync_api import sync_playwright
        with sync_playwright() as p: own = p.chromium.executable_path
    except Exception: return None
    return own if Path(own).exists() else None


def install_browser() -> str | None:
    """The browser there is, or Playwright's, fetched; None where neither can be had. Says which in one line."""
    if not find_browser():
        command = [sys.executable, "-m", "playwright", "install", "chromium"]
        subprocess.run(command, capture_output=True)
    path = find_browser()
    print(f"Browser tests use {path}." if path else f"Browser tests will be skipped: {NO_BROWSER}.")
    return path


@contextlib.contextmanager
def open_browser() -> Iterator[Browser]:
    """A headless browser that asks nothing of the network by itself."""
    from playwright.sync_api import sync_playwright

    flags = ["--disable-background-networking", "--disable-component-update", "--disable-sync",
             "--no-first-run"]
    if hasattr(os, "geteuid") and os.geteuid() == 0: flags.append("--no-sandbox")
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=find_browser(), args=flags)
        try: yield browser
        finally: browser.close()


# ---- the server ----------------------------------------------------------------------------------

@dataclass
class Server:
    """A JupyterLab that runs."""

    url: str
    process: subprocess.Popen
    log: Path


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def private(folder: Path) -> dict[str, str]:
    """An environment whose Jupyter keeps its settings, trust and logs in `folder`, apart from the user's."""
    names = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR",
             "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR")
    places = {name: str(folder / name.lower()) for name in names}
    return {**lab_environment(), **places, "JUPYTER_TOKEN": TOKEN}


def answers(url: str) -> bool:
    """Whether a server listens there."""
    try: return urllib.request.urlopen(f"{url}/api", timeout=5).status == 200
    except (urllib.error.URLError, ConnectionError, TimeoutError): return False


@contextlib.contextmanager
def running(command: list[str], port: int, folder: Path) -> Iterator[Server]:
    """The server that `command` starts on `port`, ended afterwards; `folder` takes its settings and log."""
    log = folder / "server.log"
    with log.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(command, env=private(folder), stdout=out, stderr=out, cwd=folder)
    server = Server(f"http://127.0.0.1:{port}", process, log)
    try:
        give_up = time.monotonic() + PATIENCE / 1000
        while not answers(server.url):
            if server.process.poll() is not None or time.monotonic() > give_up:
                text = log.read_text(encoding="utf-8", errors="replace")
                raise RuntimeError(f"JupyterLab did not start:\n{text}")
            time.sleep(0.1)
        yield server
    finally:
        server.process.terminate()
        try: server.process.wait(20)
        except subprocess.TimeoutExpired: server.process.kill()


@contextlib.contextmanager
def serve(notebooks: Path, folder: Path) -> Iterator[Server]:
    """JupyterLab on a folder of trusted notebooks, as `diffusion-course lab` starts it."""
    port = free_port()
    trust = ("import sys, pathlib; from diffusion_course.cli import trust; "
             "trust(pathlib.Path(sys.argv[1]))")
    subprocess.run([sys.executable, "-c", trust, str(notebooks)], env=private(folder), check=True)
    command = lab_command(notebooks, "", port, browser=False)
    with running(command, port, folder) as server: yield server


def ask(server: Server, path: str, method: str = "GET") -> bytes:
    """What the server's interface answers."""
    address = f"{server.url}/api/{path}?token={TOKEN}"
    request = urllib.request.Request(address, method=method)
    return urllib.request.urlopen(request, timeout=PATIENCE / 1000).read()


def end_kernels(server: Server) -> None:
    """Shut all kernels down: each holds up to a gigabyte, and may still compute."""
    for session in json.loads(ask(server, "sessions")): ask(server, f"sessions/{session['id']}", "DELETE")


# ---- a notebook ----------------------------------------------------------------------------------

def open_notebook(page: Page, server: Server, path: str) -> None:
    """Open a notebook and wait for its kernel: the page shows an idle one before there is any."""
    page.goto(f"{server.url}/lab/tree/{path}?reset&token={TOKEN}")
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=PATIENCE)
    give_up = time.monotonic() + PATIENCE / 1000
    while not any(s["path"].endswith(path) and s["kernel"]["connections"] and s["kernel"]["execution_state"] == "idle"
                  for s in json.loads(ask(server, "sessions"))):
        assert time.monotonic() < give_up, f"no kernel for {path}"
        page.wait_for_timeout(100)
    page.wait_for_selector('.jp-Notebook-ExecutionIndicator[data-status="idle"]', timeout=PATIENCE)


def run_all(page: Page, timeout: float = 10 * PATIENCE) -> None:
    """Run > Run All Cells, and wait until no cell is waiting and the kernel is idle, or a cell has failed.

    JupyterLab leaves the text of cells out of sight unrendered, so prompts are read by `textContent`.
    """
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.locator('li[data-command="runmenu:run-all"]').click()
    page.wait_for_function(
        """() => {
          const prompts = [...document.querySelectorAll('.jp-Notebook .jp-CodeCell .jp-InputPrompt')];
          const texts = prompts.map(p => p.textContent);
          const kernel = document.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status;
          return document.querySelector('[data-mime-type="application/vnd.jupyter.error"]') ||
            (kernel === 'idle' && texts.some(t => /\\[\\d+\\]/.test(t)) && !texts.some(t => t.includes('*')));
        }""", timeout=timeout)


def complaints(page: Page) -> list[str]:
    """Errors and warnings under the cells, and dialogs and notices over them."""
    places = ('[data-mime-type="application/vnd.jupyter.error"]',
              '[data-mime-type="application/vnd.jupyter.stderr"]', ".jp-Dialog", ".Toastify__toast")
    return [text.strip()[-1500:] for text in page.locator(", ".join(places)).all_inner_texts()]


# Images are compared by their pixels: the address of one that was sent anew changes even where it
# looks the same.
# A player is looked at, paused, at several times, because at t = 0 nothing may differ.
PIXELS = """async (root) => {
  const hash = (s) => {
    let h = 5381;
    for (let i = 0; i < s.length; i++) h = (h * 33 ^ s.charCodeAt(i)) >>> 0;
    return h;
  };
  const seen = [];
  for (const img of root.querySelectorAll('.dc-picture')) {
    const image = img.tagName === 'IMG' ? img : img.querySelector('img');
    const canvas = document.createElement('canvas');
    try { await image.decode(); } catch { return 'loading'; }
    canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
    canvas.getContext('2d').drawImage(image, 0, 0);
    seen.push(hash(canvas.toDataURL()));
  }
  for (const player of root.matches('.dc-player') ? [root] : root.querySelectorAll('.dc-player')) {
    if (player.dataset.playing === 'true') player.querySelector('.dc-play').click();
    const scrub = player.querySelector('.dc-scrub');
    for (const at of [250, 600, 1000]) {
      scrub.value = at; scrub.dispatchEvent(new Event('input'));
      for (const canvas of player.querySelectorAll('canvas')) seen.push(hash(canvas.toDataURL()));
    }
  }
  for (const text of root.querySelectorAll('.dc-text')) seen.push(hash(text.innerText));
  return seen.join();
}"""


def pixels(element: ElementHandle) -> str:
    """What a panel or a player shows, as a short text to compare."""
    return element.evaluate(PIXELS)


def settle(panel: ElementHandle, before: str, patience: float = 2 * PATIENCE / 1000) -> bool:
    """Wait until the panel shows something other than `before` and is at rest; False where it never is.

    At rest: it draws nothing more, and two looks see the same. A slow draw leaves what an earlier value showed on
    the page for long, so looks alone would be deceived."""
    last = before
    give_up = time.monotonic() + patience
    while time.monotonic() < give_up:
        time.sleep(0.15)
        busy, shown = panel.evaluate("p => p.classList.contains('dc-busy')"), pixels(panel)
        if not busy and shown == last and shown not in (before, "loading"): return True
        last = shown
    return False


def drag(page: Page, control: ElementHandle, to: float, moves: int = 6) -> None:
    """Drag a slider's handle to a fraction of its length, by mouse."""
    control.query_selector(".noUi-handle").scroll_into_view_if_needed()
    handle, track = boxes(control)
    y = handle["y"] + handle["height"] / 2
    page.mouse.move(handle["x"] + handle["width"] / 2, y)
    page.mouse.down()
    page.mouse.move(track["x"] + to * track["width"], y, steps=moves)
    page.mouse.up()


def boxes(control: ElementHandle) -> tuple[dict, dict]:
    """Where a slider's handle and its track are."""
    handle, track = (control.query_selector(name) for name in (".noUi-handle", ".noUi-target"))
    return handle.bounding_box(), track.bounding_box()


def ways(page: Page, control: ElementHandle) -> list[Callable[[], object]]:
    """Moves that each give a control another value, the ends of a slider among them."""
    if control.query_selector(".noUi-handle"):
        handle, track = boxes(control)
        near_end = handle["x"] + handle["width"] / 2 > track["x"] + track["width"] / 2
        fractions = (0.2, 1, 0) if near_end else (0.8, 0, 1)
        return [partial(drag, page, control, fraction) for fraction in fractions]
    select = control.query_selector("select")
    if select:
        others = "s => [...s.options].map((o, k) => k).filter(k => k !== s.selectedIndex)"
        return [partial(select.select_option, index=k) for k in select.evaluate(others)]
    buttons = control.query_selector_all("button")
    idle = [b for b in buttons if "mod-active" not in b.get_attribute("class")]
    if idle: return [b.click for b in idle]
    box = control.query_selector("input[type=checkbox]")
    if box: return [box.click]
    field = control.query_selector("input[list], input[type=text]")
    if field:
        others = "f => [...(f.list?.options ?? [])].map(o => o.value).filter(v => v !== f.value)"
        return [partial(write, field, text) for text in field.evaluate(others)[:2]]
    raise AssertionError(f"a control the tests do not know: {control.inner_text()!r}")


def write(field: ElementHandle, text: str) -> None:
    """Type another text and press Enter."""
    field.fill(text)
    field.press("Enter")


def exercise_panel(page: Page, panel: ElementHandle) -> None:
    """Move every control of a panel and see what it shows change each time, without a message.

    A greyed control is moved as soon as another one's move makes it matter."""
    panel.scroll_into_view_if_needed()
    waiting = panel.query_selector_all(".dc-controls > *")
    assert waiting, "a panel without controls"

    def exercise(control: ElementHandle) -> None:
        waiting.remove(control)
        name = (control.inner_text().strip().splitlines() or ["?"])[0]
        for k, move in enumerate(ways(page, control)):
            before = pixels(panel)
            move()
            assert settle(panel, before), f"move {k + 1} of {name!r} changed no image"
            message = panel.query_selector(".dc-message").inner_text().strip()
            assert not message, f"move {k + 1} of {name!r}: {message}"
            for other in [c for c in waiting if was_greyed[c] and not greyed(c)]: exercise(other)

    was_greyed = {control: greyed(control) for control in waiting}
    while ready := [c for c in waiting if not greyed(c)]: exercise(ready[0])
    names = [control.inner_text() for control in waiting]
    assert not names, f"greyed at all settings: {names}"


def greyed(control: ElementHandle) -> bool:
    """Whether a control makes no difference at the present settings."""
    return "dc-off" in control.get_attribute("class")


def exercise_player(page: Page, player: ElementHandle) -> None:
    """Play, pause and scrub a player."""
    player.scroll_into_view_if_needed()
    def draws() -> int: return int(player.get_attribute("data-draws") or 0)

    def look() -> tuple[str, ...]:
        return tuple(player.evaluate("p => [...p.querySelectorAll('canvas')].map(c => c.toDataURL())"))

    button = player.query_selector(".dc-play")
    if player.get_attribute("data-playing") == "true": button.click()
    scrub = player.query_selector(".dc-scrub")

    def scrub_to(fraction: float) -> None:
        box = scrub.bounding_box()
        # An element's own click waits until the page above it has stopped growing.
        scrub.click(position={"x": fraction * box["width"], "y": box["height"] / 2})

    shown = []
    for fraction in (0.05, 0.5, 0.95):
        scrub_to(fraction)
        shown.append(look())
    assert len(set(shown)) == len(shown), "scrubbing changed no image"
    scrub_to(0.05)
    start = draws()
    first = look()[0]
    button.click()
    more = "([p, n]) => +p.dataset.draws > n + 5"
    page.wait_for_function(more, arg=[player, start], timeout=PATIENCE)
    assert look()[0] != first, "playing moved nothing"
    button.click()
    start = draws()
    page.evaluate("""async () => {
      for (let frame = 0; frame < 20; frame++) await new Promise(requestAnimationFrame);
    }""")
    assert draws() == start, "a paused player goes on drawing"


# ---- how fast ------------------------------------------------------------------------------------

SPEED = """import torch
from diffusion_course.player import play
from diffusion_course.plots import show_samples
from diffusion_course.widgets import panel, slider

def paths(angle, n=500, steps=50):
    "Euler steps of a whirl around the origin."
    x = torch.randn(n, 2, generator=torch.Generator().manual_seed(0))
    xs, turn = [x], torch.tensor([[-1.0, angle], [-angle, -1.0]])
    for _ in range(steps): xs.append(xs[-1] + xs[-1] @ turn / steps)
    return torch.stack(xs)
%%
panel(lambda angle: play(paths(angle), extent=3, autoplay=False), angle=slider(0.0, 6.0, step=0.01))
%%
panel(lambda angle: show_samples(paths(angle)[-1]), angle=slider(0.0, 6.0, step=0.01))
%%
play(paths(3.0, n=2000), extent=3)
"""


def write_notebook(path: Path, source: str) -> None:
    """A notebook of code cells, which `source` separates by lines of %%."""
    import nbformat
    cells = [nbformat.v4.new_code_cell(c.strip()) for c in source.split("\n%%\n")]
    kernel = {"name": "python3", "display_name": "python3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)


# From the event that moves the slider to the frame after the new image is in the page.
WATCH = """(panel) => {
  window.dcMoved = null; window.dcTimes = [];
  const done = () => {
    if (window.dcMoved === null) return;
    const t0 = window.dcMoved;
    window.dcMoved = null;
    requestAnimationFrame(() => window.dcTimes.push(performance.now() - t0));
  };
  document.addEventListener('pointermove', () => { window.dcMoved ??= performance.now(); }, true);
  const player = panel.querySelector('.dc-player'), img = panel.querySelector('.dc-picture');
  const revised = { attributes: true, attributeFilter: ['data-revision'] };
  if (player) new MutationObserver(done).observe(player, revised);
  else (img.tagName === 'IMG' ? img : img.querySelector('img')).addEventListener('load', done);
}"""


def latencies(page: Page, panel: ElementHandle, moves: int = 60) -> list[float]:
    """Milliseconds from each of many moves of a panel's first slider to its new image."""
    panel.scroll_into_view_if_needed()
    control = panel.query_selector(".dc-controls > *")
    before = pixels(panel)
    drag(page, control, 0.02)
    assert settle(panel, before), "moving the slider changed no image"
    handle, track = boxes(control)
    y = handle["y"] + handle["height"] / 2
    page.mouse.move(handle["x"] + handle["width"] / 2, y)
    page.mouse.down()
    panel.evaluate(WATCH)
    for k in range(moves):
        page.mouse.move(track["x"] + track["width"] * (0.05 + 0.9 * k / moves), y)
        page.wait_for_function("k => window.dcTimes.length > k", arg=k, timeout=PATIENCE)
        page.wait_for_timeout(30)
    page.mouse.up()
    return page.evaluate("window.dcTimes")


def frames_per_second(page: Page, player: ElementHandle, seconds: float = 3) -> float:
    """How often a playing player draws."""
    player.scroll_into_view_if_needed()
    if player.get_attribute("data-playing") != "true": player.query_selector(".dc-play").click()
    count = """async ([p, s]) => {
      const a = +p.dataset.draws, t = performance.now();
      await new Promise(r => setTimeout(r, 1000 * s));
      return 1000 * (p.dataset.draws - a) / (performance.now() - t);
    }"""
    return page.evaluate(count, [player, seconds])


def measure_speed(page: Page, server: Server, notebooks: Path) -> str:
    """A table: slider to new image, and the player's frames per second."""
    write_notebook(notebooks / "speed.ipynb", SPEED)
    open_notebook(page, server, "speed.ipynb")
    run_all(page)
    page.wait_for_selector(".dc-panel .dc-player canvas", timeout=PATIENCE)
    page.wait_for_selector(".dc-panel .dc-picture", timeout=PATIENCE)
    assert not complaints(page), complaints(page)
    rows = []
    names = ("player, 500 points, 50 steps", "figure, 500 points")
    for name, panel in zip(names, page.query_selector_all(".dc-panel"), strict=True):
        ms = sorted(latencies(page, panel))
        median, late = ms[len(ms) // 2], ms[int(0.95 * len(ms))]
        rows.append(f"slider to new {name:29} median {median:4.0f} ms   "
                    f"95th percentile {late:4.0f} ms   ({len(ms)} moves)")
    fps = frames_per_second(page, page.query_selector_all(".dc-player")[-1])
    rows.append(f"player, 2,000 points, 50 steps: {fps:.0f} frames a second")
    return "\n".join(rows)


if __name__ == "__main__":
    if "--install" in sys.argv: install_browser()
    else: print(find_browser() or NO_BROWSER)
