"""The web edition: whole, without a dead link, sufficient to itself, and alive in a browser, on a phone too."""
from __future__ import annotations

import base64
import functools
import http.server
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import torch
from PIL import Image
from conftest import LESSONS, NBS, NOTEBOOKS, ROOT, SOLUTIONS, checks, code, name_of, read
from interface import NO_BROWSER, PATIENCE, exercise_player, find_browser, open_browser

from diffusion_course.checkpoints import load
from diffusion_course.generation import generate, noise
from diffusion_course.player import play
from diffusion_course.predictions import Denoiser, latent_network

sys.path.insert(0, str(ROOT / "site"))

import panels_ahead  # noqa: E402
import sources  # noqa: E402

NEEDED = ("sphinx", "myst_nb", "furo", "mathjax")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
needed = pytest.mark.skipif(bool(MISSING), reason=f"the extra `site` lacks {', '.join(MISSING)}")
built = [pytest.mark.slow, needed]
no_browser = pytest.mark.skipif(find_browser() is None, reason=NO_BROWSER)
in_browser = [pytest.mark.browser, *built, no_browser]
MEGABYTE = 2**20


# ---- pages ---------------------------------------------------------------------------------------

@dataclass
class Page(HTMLParser):
    """What the tests want to know of a page.

    Attributes:
        path: its file.
        ids: its anchors.
        links: where its links lead.
        resources: what it loads: scripts, styles, images.
        scenes: how many the player finds.
        forward: the address of the next page.
    """

    path: Path
    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    resources: list[str] = field(default_factory=list)
    scenes: int = 0
    forward: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self.text = self.path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        at = {name: value or "" for name, value in attrs}
        self.ids |= {at[name] for name in ("id", "name") if name in at}
        self.scenes += at.get("class") == "dc-scene"
        if tag == "a" and "href" in at: self.links.append(at["href"])
        elif tag == "link" and at.get("rel") == "next": self.forward = at["href"]
        elif tag == "link" and at.get("rel") not in ("search", "prev", "canonical"):
            self.resources.append(at["href"])
        elif "src" in at: self.resources.append(at["src"])
        self.resources += [part.split()[0] for part in at.get("srcset", "").split(",") if part.strip()]
        self.resources += re.findall(r"url\([\"']?([^)\"']+)", at.get("style", ""))

    def at(self, address: str) -> Path:
        """The file that a relative address means."""
        path = unquote(urlsplit(address).path)
        return (self.path.parent / path).resolve() if path else self.path.resolve()


def outside(address: str) -> bool:
    """Whether an address names a host."""
    return bool(urlsplit(address).netloc) or urlsplit(address).scheme in ("http", "https", "file")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make site` does it; a warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "site",
               "-d", str(folder / "work"), ".", str(folder / "_site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", errors="replace")
    assert done.returncode == 0 and not done.stderr, done.stdout + done.stderr
    return folder / "_site"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    """All pages, by their paths from the root of the site."""
    found = {path.relative_to(site).as_posix(): Page(path) for path in sorted(site.rglob("*.html"))}
    assert len(found) > len(NOTEBOOKS)
    return found


# ---- before Sphinx -------------------------------------------------------------------------------

def stored(path: Path, leave: Iterable[str] = ()) -> Iterator[str]:
    """The HTML that a notebook stores, but in the cells with these ids."""
    for cell in read(path)["cells"]:
        if cell.get("id") in leave: continue
        for output in cell.get("outputs", []): yield "".join(output.get("data", {}).get("text/html", ""))


@pytest.mark.parametrize("path", LESSONS, ids=name_of)
def test_scenes_keep_their_data_and_leave_the_script(path: Path) -> None:
    before = "".join(stored(path))
    after = sources.scenes(before)
    started = re.findall(r'^boot\("([^"]+)", (.+), "([^"]*)"\);$', before, re.M)
    found = re.findall(r'<script [^>]*class="dc-scene" data-scene="([^"]+)">(.*?)</script>', after)
    expected = [(name, json.loads(meta), data) for name, meta, data in started]
    assert [(name, *json.loads(data)) for name, data in found] == expected
    assert "IntersectionObserver" not in after
    assert before.count("<script") == after.count("<script")


def test_figures_have_words() -> None:
    def figure(said: str) -> dict: return {"data": {"image/png": "", "text/plain": said}}

    cells = [{"cell_type": "markdown", "metadata": {}, "source": "## Two *steps* of $x$"},
             code_cell(figure("figure: loss against $t$"), figure("figure: a")),
             code_cell(figure("<Figure>")),
             code_cell({"data": {"text/html": '<img src="x"><img alt="b" src="y">'}}),
             code_cell({"data": {"text/plain": "1"}})]
    _, told, untold, written, number = sources._cells(ROOT, "nbs/x", cells, "")
    assert told["metadata"]["mystnb"]["image"]["alt"] == "figure: loss against t; figure: a"
    assert untold["metadata"]["mystnb"]["image"]["alt"] == "figure in the section Two steps of x"
    html_ = written["outputs"][0]["data"]["text/html"]
    assert html_ == '<img alt="figure in the section Two steps of x" src="x"><img alt="b" src="y">'
    assert not number["metadata"]


def code_cell(*outputs: dict) -> dict:
    return {"cell_type": "code", "metadata": {}, "source": "1", "outputs": list(outputs)}


def test_the_map_names_every_lesson() -> None:
    rows = [row for rows in sources.parts(read(NBS / "index.ipynb")["cells"]).values() for row in rows]
    assert [row[3] for row in rows] == [path.stem for path in LESSONS]


@pytest.mark.parametrize("written, on_the_site", [
    ("[a](07_samplers.ipynb#Three-choices)", "[a](07_samplers.ipynb#three-choices)"),
    ("[a](07.ipynb#DPM-Solver++(2M):-reuse) and (b)", "[a](07.ipynb#dpm-solver2m-reuse) and (b)"),
    ("[a](../5.ipynb#Is-it-done?), [b](#Bayes'-rule)", "[a](../5.ipynb#is-it-done), [b](#bayes-rule)"),
    ("[a](05.ipynb), [b](https://x.org/y#Part-A)", "[a](05.ipynb), [b](https://x.org/y#Part-A)"),
])
def test_links_to_headings_hold_on_the_site(written: str, on_the_site: str) -> None:
    assert sources.ANCHORED.sub(lambda m: m[1] + sources.slug(m[2]), written) == on_the_site


# ---- the site as files ---------------------------------------------------------------------------

@pytest.mark.parametrize("path", [pytest.param(p, marks=built, id=name_of(p)) for p in NOTEBOOKS])
def test_every_notebook_has_its_page(pages: dict[str, Page], path: Path) -> None:
    name = path.relative_to(ROOT).with_suffix(".html").as_posix()
    page = pages[name]
    panels = sources.computed(ROOT, path.stem) if path in LESSONS else {}
    assert page.scenes == sum(text.count('boot("') for text in stored(path, leave=panels))
    assert page.text.count('class="ahead"') == len(panels)
    assert "#| default_exp" not in page.text and "const REACH" not in page.text
    for leftover in ("run this cell", "run the cell again", "Shift+Enter") if path in LESSONS else ():
        assert leftover not in page.text, leftover
    assert sum("_static/players.js" in r for r in page.resources) == bool(page.scenes or panels)
    assert sum("_static/panels.js" in r for r in page.resources) == bool(panels)
    if path.stem == "index": return
    assert any(link.endswith(f"{path.stem}.ipynb") and not outside(link) for link in page.links)
    assert any("colab" in link for link in page.links)
    assert any("/edit/" in link for link in page.links)


class TestFiles:
    """All pages together."""

    pytestmark = built

    def test_lessons_follow_one_another(self, pages: dict[str, Page]) -> None:
        for path, following in pairwise([*LESSONS, NBS / "last_page.ipynb"]):
            page = pages[f"nbs/{path.stem}.html"]
            assert page.at(page.forward).stem == following.stem

    def test_no_link_is_dead(self, site: Path, pages: dict[str, Page]) -> None:
        by_file = {page.path.resolve(): page for page in pages.values()}
        dead = []
        for name, page in pages.items():
            for link in page.links + page.resources:
                if outside(link) or link.startswith(("data:", "mailto:")): continue
                target, anchor = page.at(link), unquote(urlsplit(link).fragment)
                there = target.exists() and target.is_relative_to(site.resolve())
                if there and anchor and target in by_file: there = anchor in by_file[target].ids
                if not there: dead.append(f"{name}: {link}")
        assert not dead, dead

    def test_nothing_comes_from_another_host(self, site: Path, pages: dict[str, Page]) -> None:
        foreign = [(name, r) for name, page in pages.items() for r in page.resources if outside(r)]
        for style in site.rglob("*.css"):
            text = style.read_text(encoding="utf-8")
            urls = re.findall(r"url\([\"']?([^)\"']+)", text)
            foreign += [(style.name, url) for url in urls if outside(url)]
            assert "@import" not in text, style
        assert not foreign

    def test_pages_are_light(self, site: Path, pages: dict[str, Page]) -> None:
        for name, page in pages.items():
            files = {page.at(r) for r in page.resources if not r.startswith("data:")}
            files |= set((site / "_static" / "panels" / page.path.stem).glob("*.js"))
            size = sum(f.stat().st_size for f in {page.path, *files}) / MEGABYTE
            if "/" not in name or page.scenes: print(f"{name:45} {size:5.2f} MB")
            assert size <= (1 if name == "index.html" else 6), name

    def test_former_names_lead_to_lessons(self, site: Path) -> None:
        former = {"21_few_step": "19_few_step", "19_inpainting": "20_inpainting", "20_cold": "21_cold"}
        for old, new in former.items():
            text = (site / "nbs" / f"{old}.html").read_text(encoding="utf-8")
            assert f"url={new}.html" in text and (site / "nbs" / f"{new}.html").exists()

    def test_names_and_cells_link_to_each_other(self, pages: dict[str, Page]) -> None:
        anchor = "build-samplers-class-trajectory"
        assert anchor in pages["nbs/07_samplers.html"].ids
        assert f"../../nbs/07_samplers.html#{anchor}" in pages["docs/reference/samplers.html"].links
        assert "../docs/reference/samplers.html#trajectory" in pages["nbs/07_samplers.html"].links
        modules = [path.stem for path in (ROOT / "docs" / "reference").glob("*.md")]
        names = sum(len(sources.documented(ROOT, module)) for module in modules)
        links = [link for module in modules for link in pages[f"docs/reference/{module}.html"].links]
        assert sum("#build-" in link for link in links) > 0.9 * names

    def test_exercises_lead_to_folded_solutions(self, pages: dict[str, Page]) -> None:
        for path in SOLUTIONS:
            page = pages[f"nbs/solutions/{path.name[:-6]}.html"]
            names = [name for source in code(NBS / path.name) for name, _ in checks(source)]
            solved = re.split(r"^## ", "\n".join(c["source"] for c in sources.read(path)), flags=re.M)[1:]
            folded = sum(bool(re.search(r'^check\("', text, re.M)) for text in solved)
            assert page.text.count('<details class="solution">') >= folded > 0, path.stem
            links = pages[f"nbs/{path.stem}.html"].links
            targets = {link.split("#")[1] for link in links if "#solution-" in link}
            assert targets and targets <= page.ids
            assert len(targets) == len(set(names)), path.stem


# ---- the site in a browser -----------------------------------------------------------------------

SAMPLE = ["index", "nbs/index", "nbs/01_distributions", "nbs/06_score_matching",
          "nbs/15_sampling_pictures", "nbs/last_page", "nbs/solutions/06_score_matching",
          "docs/reference/samplers", "docs/five-tasks", "site/play"]
PLAYING = "index", "nbs/01_distributions", "nbs/06_score_matching", "nbs/last_page", "site/play"  # of these pages
# Of the captions below panels, or else of any paragraph.
TEXT_AND_PAGE = """() => {
  const shade = (color) => {
    const [r, g, b] = color.match(/\\d+/g);
    return +r + +g + +b < 384 ? 'dark' : 'light';
  };
  const text = document.querySelector('.still') ?? document.querySelector('article p');
  return [shade(getComputedStyle(text.parentElement).color),
          shade(getComputedStyle(document.body).backgroundColor)];
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """One browser for all tests."""
    with open_browser() as opened: yield opened


@pytest.fixture
def visit(browser) -> Iterator:
    """Opens an address in a window of its own; notes errors, and requests to other places than `home`."""
    contexts = []

    def opened(address: str, home: str):
        context = browser.new_context(viewport={"width": 1280, "height": 800})
        contexts.append(context)
        page = context.new_page()
        page.complaints = []

        def said(message) -> None:
            if message.type in ("error", "warning"): page.complaints.append(message.text)

        def asked(route) -> None:
            if route.request.url.startswith(home): return route.continue_()
            page.complaints.append(route.request.url)
            route.abort()

        page.on("console", said)
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("requestfailed", lambda request: page.complaints.append(f"failed: {request.url}"))
        context.route("**/*", asked)
        page.goto(address)
        page.wait_for_function("!window.MathJax?.startup || document.querySelector('mjx-container')")
        return page

    yield opened
    for context in contexts: context.close()


def start_players(page) -> list:
    """Scroll to each scene, which starts it."""
    hosts = page.query_selector_all("[data-dc]")
    for host in hosts:
        if not host.is_visible(): continue
        host.scroll_into_view_if_needed()
        page.wait_for_function("host => host.querySelector('.dc-player canvas')", arg=host)
    return page.query_selector_all(".dc-player")


class TestBrowser:
    """A handful of pages, opened as files."""

    pytestmark = in_browser

    @pytest.mark.parametrize("name", SAMPLE)
    def test_a_page_opens_as_a_file(self, site: Path, visit, name: str) -> None:
        page = visit((site / f"{name}.html").as_uri(), site.as_uri())
        players = start_players(page)
        assert bool(players) == (name in PLAYING)
        assert not page.locator("mjx-merror").count()
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            expected = ["dark", "light"] if scheme == "light" else ["light", "dark"]
            assert page.evaluate(TEXT_AND_PAGE) == expected
            for width in (1280, 1250, 1100, 1000, 380):
                page.set_viewport_size({"width": width, "height": 800})
                fits = page.evaluate("document.documentElement.scrollWidth <= innerWidth")
                assert fits, f"wider than {width}"
        assert not page.complaints

    @pytest.mark.parametrize("name", ["index", "nbs/02_simulation"])
    def test_players_play(self, site: Path, visit, name: str) -> None:
        page = visit((site / f"{name}.html").as_uri(), site.as_uri())
        players = start_players(page)
        assert players
        for player in players[:3]: exercise_player(page, player)
        assert not page.complaints

    def test_search_finds_a_lesson_without_a_server(self, site: Path, visit) -> None:
        page = visit(f"{(site / 'search.html').as_uri()}?q=churn", site.as_uri())
        page.wait_for_selector("#search-results li a")
        found = page.locator("#search-results li a").evaluate_all("links => links.map(a => a.href)")
        assert any("06_score_matching" in link for link in found)
        assert not page.complaints

    def test_a_solution_opens_at_a_click(self, site: Path, visit) -> None:
        page = visit((site / "nbs/solutions/06_score_matching.html").as_uri(), site.as_uri())
        answer = page.locator("details.solution pre").first
        assert not answer.is_visible()
        page.locator("details.solution > summary").first.click()
        assert answer.is_visible()

    def test_it_works_below_a_path_of_a_server(self, site: Path, visit, tmp_path: Path) -> None:
        shutil.copytree(site, tmp_path / "course", ignore=shutil.ignore_patterns("_sources"))
        handler = functools.partial(Quiet, directory=str(tmp_path))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            home = f"http://127.0.0.1:{server.server_port}/course/"
            for name in ("index", "nbs/06_score_matching", "docs/reference/samplers"):
                page = visit(f"{home}{name}.html", home)
                start_players(page)
                assert not page.complaints
        finally: server.shutdown()


class TestPanels:
    """The sliders of pages, among results that were computed ahead."""

    pytestmark = in_browser
    # Kinds of parts: figures, scenes and text, images.
    NAMES = "01_distributions", "02_simulation", "07_samplers", "09_guidance", "12_pictures", "18_latent"
    SEEN = """root => root.querySelector('.ahead-parts').innerText + [...root.querySelectorAll('.ahead-parts img')]
      .map(i => i.src).join() + (root.querySelector('.dc-player')?.dataset.revision ?? '')"""
    READY = "root => root.dataset.setting && !root.hasAttribute('aria-busy')"
    AWAY = "([root, starts]) => root.dataset.setting !== starts && !root.hasAttribute('aria-busy')"
    BACK = "([root, starts]) => root.dataset.setting === starts && !root.hasAttribute('aria-busy')"
    # Controls are moved as a hand does it, by their events.
    MOVE = """c => {
      if (c.type === 'checkbox') return c.click();
      c.value = c.tagName === 'SELECT' ? (+c.value ? 0 : 1) : (+c.value === +c.max ? 0 : c.max);
      c.dispatchEvent(new Event(c.tagName === 'SELECT' ? 'change' : 'input'));
    }"""

    @pytest.mark.parametrize("name", NAMES)
    def test_every_control_changes_its_panel(self, site: Path, visit, name: str) -> None:
        page = visit((site / "nbs" / f"{name}.html").as_uri(), site.as_uri())
        entries = panels_ahead.index(name)
        found = page.query_selector_all(".ahead")
        assert len(found) == len(entries) > 0
        for root in found:
            root.scroll_into_view_if_needed()
            page.wait_for_function(self.READY, arg=root)
            controls = entries[root.get_attribute("data-panel")]["controls"]
            starts = ",".join(str(control["start"]) for control in controls)
            off = entries[root.get_attribute("data-panel")]["off"].get(starts, [])
            for k, control in enumerate(root.query_selector_all(".ahead-controls input, .ahead-controls select")):
                assert control.is_disabled() == (k in off)
                if k in off: continue
                before = root.evaluate(self.SEEN)
                control.evaluate(self.MOVE)
                page.wait_for_function(self.AWAY, arg=[root, starts])
                assert root.evaluate(self.SEEN) != before, control.get_attribute("id")
                assert control.get_attribute("id") and control.evaluate("c => c.labels.length") == 1
                root.query_selector(".ahead-reset").click()
                page.wait_for_function(self.BACK, arg=[root, starts])
        page.set_viewport_size({"width": 380, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert not page.complaints


def a_panel(folder: Path, name: str = "p1") -> str:
    """The address of a page with one panel: a text, an image and a player at 8 settings of 12. Its churn makes a
    difference with sampler B alone."""
    controls = [dict(name="sampler", label="sampler", help="", kind="choice", start=0, values=[0, 1], shown=["A", "B"]),
                dict(name="steps", label="steps", help="More are slower.", kind="slider", start=1, values=[1, 2, 4],
                     shown=["1", "2", "4"]),
                dict(name="churn", label="churn", help="", kind="slider", start=0, values=[0.0, 1.0], shown=["0", "1"])]
    # Sampler, steps, churn.
    stored = [(0, 1, 0), (0, 0, 0), (0, 2, 0), (0, 1, 1), (1, 0, 0), (1, 1, 0), (1, 2, 0), (1, 1, 1)]
    entry = dict(controls=controls, off={",".join(map(str, s)): [2] for s in stored if s[0] == 0})
    store = panels_ahead.Store()
    results = {}
    for sampler, steps, churn in stored:
        paths = torch.linspace(-1, 1 + 0.1 * steps, 12).reshape(3, 2, 2)
        parts = [f"{sampler} {steps} {churn}", Image.new("RGB", (60, 40), (80 * sampler, 80 * steps, 80 * churn)),
                 play({"a": paths, "b": -paths}, autoplay=False)]
        results[f"{sampler},{steps},{churn}"] = [panels_ahead.stored(part, store) for part in parts]
    held = dict(results=results, blobs=list(store.blobs))
    (folder / "p1.js").write_text(f"dcPanels.take('p1', {json.dumps(held)});", encoding="utf-8")
    (folder / "players.js").write_text(sources.players(ROOT), encoding="utf-8")
    static = ROOT / "site" / "static"
    style = (static / "course.css").read_text(encoding="utf-8")
    (folder / "page.html").write_text(
        f"<!doctype html><html lang=en><meta charset=utf-8><style>{style}</style>"
        f'<div style="height: 1500px"></div><div class=ahead id=panel-p1 data-panel=p1 data-source={name}.js>'
        f'<script type="application/json">{json.dumps(entry)}</script><div class=ahead-parts>still</div></div>'
        f'<script src=players.js></script><script>{(static / "panels.js").read_text(encoding="utf-8")}</script>',
        encoding="utf-8")
    return (folder / "page.html").as_uri()


class TestOnePanel:
    """What a panel of the web edition does, on a page of its own that needs no build."""

    pytestmark = [pytest.mark.browser, no_browser]  # noqa: RUF012

    @staticmethod
    def shows(page, setting: str) -> None:
        page.locator(".ahead").scroll_into_view_if_needed()
        page.wait_for_selector(f".ahead[data-setting='{setting}']:not([aria-busy])")

    def test_controls_without_effect_are_greyed(self, visit, tmp_path: Path) -> None:
        page = visit(a_panel(tmp_path), tmp_path.as_uri())
        self.shows(page, "0,1,0")
        churn, steps = page.get_by_role("slider", name="churn"), page.get_by_role("slider", name="steps")
        assert churn.is_disabled() and steps.is_enabled()
        off = "Makes no difference at these settings."
        assert page.locator(f"#{churn.get_attribute('aria-describedby')}").text_content() == off
        page.get_by_label("sampler").select_option("B")
        self.shows(page, "1,1,0")
        assert churn.is_enabled() and not churn.get_attribute("aria-describedby")
        churn.press("ArrowRight")
        self.shows(page, "1,1,1")
        steps.press("ArrowRight")  # which was not computed with this churn
        self.shows(page, "1,2,0")
        assert "churn moved too" in page.inner_text(".ahead-note")
        assert not page.complaints

    def test_what_makes_no_difference_is_not_said_to_move(self, visit, tmp_path: Path) -> None:
        page = visit(a_panel(tmp_path), tmp_path.as_uri())
        page.get_by_label("sampler").select_option("B")
        page.get_by_role("slider", name="churn").press("ArrowRight")
        self.shows(page, "1,1,1")
        page.get_by_label("sampler").select_option("A")
        self.shows(page, "0,1,1")
        page.get_by_role("slider", name="steps").press("ArrowRight")
        self.shows(page, "0,2,0")
        assert page.inner_text(".ahead-note") == ""

    def test_marks_help_and_names_that_reset(self, visit, tmp_path: Path) -> None:
        page = visit(a_panel(tmp_path), tmp_path.as_uri())
        self.shows(page, "0,1,0")
        steps = page.get_by_role("slider", name="steps")
        mark, track = page.locator(".ahead-default").first.bounding_box(), steps.bounding_box()
        assert mark["x"] + mark["width"] / 2 == pytest.approx(track["x"] + track["width"] / 2, abs=1)
        help_ = page.locator(f"#{steps.get_attribute('aria-describedby')}")
        assert help_.text_content() == "More are slower." and not help_.is_visible()
        page.locator("label", has_text="steps").hover()
        assert help_.is_visible()
        page.get_by_label("sampler").select_option("B")
        self.shows(page, "1,1,0")
        page.locator("label", has_text="sampler").dblclick()
        self.shows(page, "0,1,0")
        assert not page.complaints

    def test_the_address_says_what_is_shown(self, visit, tmp_path: Path) -> None:
        address = a_panel(tmp_path)
        page = visit(address, tmp_path.as_uri())
        page.get_by_label("sampler").select_option("B")
        page.get_by_role("slider", name="steps").press("ArrowRight")
        page.wait_for_function("location.search.includes('p1.steps')")
        assert page.url == f"{address}?p1.sampler=B&p1.steps=4#panel-p1"
        there = visit(page.url, tmp_path.as_uri())
        there.wait_for_selector(".ahead[data-setting='1,2,0']")
        assert there.evaluate("scrollY") > 500  # the reader sees the panel that the link is about
        assert there.get_by_label("sampler").input_value() == "1"
        there.get_by_role("button", name="Reset").click()
        there.wait_for_function("!location.search && !location.hash")
        for unknown in ("p1.steps=3", "p1.pace=2", "p2.steps=4", "p1.sampler="):
            page.goto(f"{address}?{unknown}")
            self.shows(page, "0,1,0")
        page.goto(f"{address}?p1.sampler=B&p1.steps=4&p1.churn=1")  # not computed: one near it
        page.locator(".ahead").scroll_into_view_if_needed()
        page.wait_for_selector(".ahead[data-setting^='1,']")
        assert "Computed ahead" in page.inner_text(".ahead-note")
        assert not page.complaints

    def test_an_error_is_told_and_dims_what_is_seen(self, visit, tmp_path: Path) -> None:
        page = visit(a_panel(tmp_path, "gone"), tmp_path.as_uri())
        page.locator(".ahead").scroll_into_view_if_needed()
        alert = page.get_by_role("alert")
        page.wait_for_selector(".ahead-old")
        assert "gone.js could not be loaded" in alert.text_content()
        assert page.locator(".ahead-parts").evaluate("p => getComputedStyle(p).opacity") == "0.45"
        page.get_by_label("sampler").select_option("B")  # it is still told, and what comes later is shown
        page.wait_for_selector(".ahead-old:not([aria-busy])")
        (tmp_path / "p1.js").rename(tmp_path / "gone.js")
        page.get_by_label("sampler").select_option("A")
        self.shows(page, "0,1,0")
        assert alert.text_content() == "" and not page.locator(".ahead-old").count()

    def test_a_result_can_be_kept_beside_the_next(self, visit, tmp_path: Path) -> None:
        page = visit(a_panel(tmp_path), tmp_path.as_uri())
        self.shows(page, "0,1,0")
        page.get_by_role("button", name="Keep").click()
        page.get_by_label("sampler").select_option("B")
        self.shows(page, "1,1,0")
        kept, shown = page.locator(".ahead-kept"), page.locator(".ahead-parts").first
        assert "0 1 0" in kept.inner_text() and "1 1 0" in shown.inner_text()
        assert "Kept: sampler = A, steps = 2 Close" in kept.inner_text() and "t = 0.00" in kept.inner_text()
        assert kept.locator("img").count() == 3 and not kept.locator("canvas, .dc-bar").count()
        assert kept.locator("img").last.get_attribute("alt").startswith("b: 2 points")
        page.set_viewport_size({"width": 380, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.get_by_role("button", name="Close").click()
        assert not kept.is_visible() and not page.complaints


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files and says nothing."""

    def log_message(self, *args: object) -> None: pass


# ---- images drawn in the page --------------------------------------------------------------------

ASK = """async ([base, questions]) => {
  const worker = new Worker(base + "_static/live/worker.js"), answers = [];
  let id = 0;
  const ask = (question, id) => new Promise((resolve, reject) => {
    const noise = Uint8Array.from(atob(question.noise), (c) => c.charCodeAt(0)), previews = [];
    worker.onmessage = ({ data }) => {
      if (data.type === "failed") reject(data.why);
      if (data.type === "picture") previews.push(data.step);
      if (data.type !== "done") return;
      const { ms, shares, x, images, rgba } = data;
      resolve({ ms, shares, previews, x: [...x], images: [...images], rgba: [...rgba] });
    };
    worker.postMessage({ ...question, id, noise: new Float32Array(noise.buffer), keepNumbers: true });
  });
  for (const question of questions) {
    // warm, until another worker takes its share where there is a processor for it
    for (let again = 100; again--;) {
      const { shares } = await ask({ ...question, steps: 1 }, ++id);
      if (shares > 1 || navigator.hardwareConcurrency < 2) break;
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
    const plain = [];
    for (let again = 3; again--;) plain.push((await ask({ ...question, previews: 1 }, ++id)).ms);
    answers.push({ ...await ask(question, ++id), plain: Math.min(...plain) });
  }
  worker.terminate();
  return answers;
}"""


@pytest.fixture(scope="module")
def served(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The site's address on a server; skips where the build could not have pages draw."""
    if not (site / "_static/live/ort.mjs").exists():
        pytest.skip("the site was built without ONNX Runtime Web, or without the package onnx")
    folder = tmp_path_factory.mktemp("served")
    (folder / "course").symlink_to(site, target_is_directory=True)
    handler = functools.partial(Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/course/"
    server.shutdown()


def wait_for(page, state: str) -> None:
    """Until the sampler of the front page is in this state; at once where it has failed."""
    state_is = "state => [state, 'failed'].includes(document.querySelector('.draw').dataset.state)"
    page.wait_for_function(state_is, arg=state, timeout=PATIENCE)
    assert page.locator(".draw").get_attribute("data-state") == state, page.inner_text(".draw .status")


ACCESS = ["index.html", "site/play.html", "nbs/06_score_matching.html", "nbs/23_your_own.html",
          "nbs/solutions/06_score_matching.html", "nbs/glossary.html", "docs/reference/samplers.html"]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", ACCESS)
class TestAccess:
    """axe-core, the rules that Lighthouse uses too, finds no serious fault."""

    pytestmark = in_browser

    def test_no_serious_fault(self, site: Path, visit, name: str, theme: str) -> None:
        axe = pytest.importorskip("axe_playwright_python", reason="the extra `dev` lacks axe-playwright-python")
        page = visit((site / name).as_uri(), site.as_uri())
        page.emulate_media(color_scheme=theme)
        page.evaluate("window.MathJax ? MathJax.startup.promise.then(() => null) : null")
        page.evaluate((Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
        found = page.evaluate("async () => (await axe.run({ resultTypes: ['violations'] })).violations")
        serious = [f"{v['id']}: {v['help']}: {[n['html'][:150] for n in v['nodes'][:3]]}"
                   for v in found if v["impact"] in ("serious", "critical")]
        assert not serious, "\n".join(serious)


class TestDrawing:
    """The page computes what Python computes, and the front page lets one ask for it."""

    pytestmark = in_browser

    def test_a_page_draws_what_python_draws(self, served: str, visit) -> None:
        cases: list[tuple[str, int, str, float, int]] = [
            ("few-step", 2, "euler", 1.0, 8), ("cifar10-latent", 5, "dpmpp_2m", 3.0, 8),
            ("cifar10-latent", 4, "ddim", 0.0, 2), ("cifar10", 2, "euler", 2.0, 2),
        ]
        expected, seconds, questions = [], [], []
        for name, steps, sampler, w, n in cases:
            model, labels = load(name), list(range(n))
            tries = []
            for _ in range(3):
                begin = time.perf_counter()
                x = generate(model, n, steps, sampler, w, seed=7, y=torch.tensor(labels), precision="fp32")
                images = decoded(model, x)
                tries.append(time.perf_counter() - begin)
            expected.append((x, images))
            seconds.append(min(tries))
            x0 = base64.b64encode(noise(model, n, seed=7).numpy().tobytes()).decode()
            question = dict(model=name, steps=steps, sampler=sampler, guidance=w, labels=labels)
            questions.append(question | dict(noise=x0, seed=0))
        page = visit(f"{served}index.html", served)
        found = page.evaluate(ASK, [served, questions])
        answers = zip(cases, expected, found, seconds, strict=True)
        for (name, steps, _, _, n), (x, images), answer, torchs in answers:
            mine, streaming = answer["plain"] / 1000, answer["ms"] / 1000
            print(f"{name}, {steps} steps, {n} images: {mine:.2f} s in {answer['shares']} workers of the page,"
                  f" {mine / torchs:.1f} times torch's time in {torch.get_num_threads()} threads;"
                  f" with a picture after each step {streaming:.2f} s")
            assert answer["previews"] == list(range(1, steps))
            torch.testing.assert_close(torch.tensor(answer["x"]), x.flatten(), atol=1e-4, rtol=0)
            assert (torch.tensor(answer["images"]) - images.flatten()).abs().max() < 2 / 255
            pixels = torch.tensor(answer["rgba"]).reshape(n, 32, 32, 4)[..., :3].permute(0, 3, 1, 2)
            assert (pixels - to_bytes(images)).abs().max() <= 2
        assert not page.complaints

    def test_the_front_page_draws(self, served: str, visit) -> None:
        page = visit(f"{served}index.html", served)
        asked: list[str] = []
        # further workers load the scripts again, out of the browser's cache
        large = re.compile(r"/live/.*\.(onnx|gz|noise)")
        page.on("request", lambda request: large.search(request.url) and asked.append(request.url))
        wait_for(page, "ready")
        page.click(".go")
        wait_for(page, "done")
        drawn = page.evaluate(PIXELS)
        assert len({tuple(image) for image in drawn}) == 10 and not asked_again(asked)
        student = load("few-step")
        x = generate(student, 10, 2, "euler", seed=0, y=torch.arange(10), precision="fp32")
        images = decoded(student, x)
        assert (torch.tensor(drawn) - to_bytes(images).flatten(1)).abs().max() <= 2
        label = page.locator(".draw canvas").nth(3).get_attribute("aria-label")
        assert label == "cat, drawn with seed 0"
        fetched = len(asked)
        page.get_by_label("Class").select_option("frog")  # draws at once, and fetches nothing
        page.wait_for_function("document.querySelector('.draw canvas').ariaLabel.startsWith('frog, drawn')")
        assert len(asked) == fetched and page.evaluate(PIXELS) != drawn
        page.get_by_label("Model").select_option("latent flow")
        assert page.locator(".draw .go").inner_text() == "Draw (fetches 4 MB once)"
        page.locator(".draw .go").press("Enter")
        wait_for(page, "done")
        assert "20 evaluations" in page.inner_text(".draw .status")
        page.get_by_label("Guidance").press("Home")  # to 0, where one evaluation a step is enough
        page.wait_for_function("document.querySelector('.draw .status').innerText.includes('10 evaluations')")
        asked.clear()
        page.reload()
        wait_for(page, "ready")
        page.click(".go")
        wait_for(page, "done")
        assert not asked  # the second visit finds all of it in the browser's store
        assert not page.complaints

    def test_a_file_says_that_it_needs_a_server(self, site: Path, served: str, visit) -> None:
        page = visit((site / "index.html").as_uri(), site.as_uri())
        wait_for(page, "unable")
        assert "needs a server" in page.inner_text(".draw .status")
        assert page.locator(".draw .go").is_disabled()

    def test_a_browser_without_webassembly_is_told_so(self, served: str, visit) -> None:
        page = visit(f"{served}index.html", served)
        page.add_init_script("delete window.WebAssembly")
        page.reload()
        wait_for(page, "unable")
        assert "WebAssembly" in page.inner_text(".draw .status")


class TestPlay:
    """The page that computes in the plane, and its table of images."""

    pytestmark = in_browser

    def test_points_follow_a_centre(self, site: Path, visit) -> None:
        page = visit((site / "site/play.html").as_uri(), site.as_uri())
        exact, learned = points_after(page, 0)
        assert len(exact) == len(learned) == 500
        centre = page.locator(".plane .centres button").nth(2)
        for _ in range(5): centre.press("ArrowRight")
        page.wait_for_function("document.querySelector('.centres').children[2].ariaLabel.includes('at 1.80')")
        moved, same = points_after(page, 1)
        assert torch.equal(same, learned)  # the network stays with what it learned
        pulled = moved[:, 0] - exact[:, 0]
        assert (pulled > 0.3).float().mean() > 0.1 and pulled.abs().median() < 0.1
        box = centre.bounding_box()
        assert box and min(box["width"], box["height"]) >= 24
        page.mouse.move(box["x"] + 14, box["y"] + 14)
        page.mouse.down()
        page.mouse.move(box["x"] + 14, box["y"] + 74, steps=3)
        page.mouse.up()
        page.wait_for_function("/, -?0\\.[0-5]/.test(document.querySelector('.centres').children[2].ariaLabel)")
        page.get_by_role("button", name="Put the centres back").click()
        page.wait_for_function("document.querySelector('.centres').children[2].ariaLabel.includes('at 1.30, 0.70')")
        assert not page.complaints

    def test_controls_without_effect_are_greyed(self, site: Path, visit) -> None:
        page = visit((site / "site/play.html").as_uri(), site.as_uri())
        points_after(page, 0)
        plane = page.locator(".plane")
        churn, guidance = (plane.locator(f"[name={name}]") for name in ("churn", "guidance"))
        assert churn.is_disabled() and guidance.is_disabled()
        plane.locator("[name=sampler]").select_option("Euler-Maruyama")
        plane.locator("[name=label]").select_option("1")
        page.wait_for_function("!document.querySelector('.plane [name=guidance]').disabled")
        assert churn.is_enabled()
        plane.locator("[name=path]").select_option("cosine")  # which the network has not learned
        page.wait_for_function("document.querySelectorAll('.plane .dc-canvas').length === 1")
        assert not page.complaints

    def test_the_address_says_what_is_shown(self, site: Path, visit) -> None:
        home = (site / "site/play.html").as_uri()
        page = visit(home, site.as_uri())
        points_after(page, 0)
        plane = page.locator(".plane")
        plane.locator("[name=label]").select_option("1")
        plane.locator("[name=guidance]").fill("3")
        plane.locator(".centres button").nth(2).press("ArrowRight")
        page.wait_for_function("location.search.includes('centres')")
        assert page.url.startswith(f"{home}?plane.label=1&plane.guidance=3&plane.centres=")
        there = visit(f"{page.url}&columns.label=3&plane.steps=99&plane.path=", site.as_uri())
        shown = points_after(there, 0)
        page.wait_for_function("document.querySelector('.centres').children[2].ariaLabel.includes('at 1.40, 0.70')")
        # Centres have two decimals in the address.
        torch.testing.assert_close(shown, points_after(page, 0), atol=1e-3, rtol=0)
        assert "at 1.40, 0.70" in there.locator(".centres button").nth(2).get_attribute("aria-label")
        assert there.locator(".columns [name=label]").input_value() == "3"
        assert there.locator(".plane [name=path]").input_value() == "linear"
        legend = there.locator(".plane .dc-legend")
        assert legend.inner_text().split("\n") == ["exact", "density at this time", "learned"]
        there.locator(".plane [name=behind]").select_option("field")
        there.wait_for_function("document.querySelector('.plane .dc-legend').innerText.includes('velocity')")
        assert not page.complaints and not there.complaints

    def test_more_steps_begin_with_the_same_noise(self, served: str, visit) -> None:
        page = visit(f"{served}site/play.html", served)
        page.locator(".columns .go").click()
        done = "['done', 'failed'].includes(document.querySelector('.columns').dataset.state)"
        page.wait_for_function(done, timeout=PATIENCE)
        drawn = torch.tensor(page.evaluate(PIXELS.replace(".draw canvas", ".columns canvas"))).reshape(4, 6, -1)
        model = load("cifar10-latent")
        for column, steps in ((0, 1), (3, 8)):
            y = torch.full((4,), 7)
            x = generate(model, 4, steps, "euler", 2.0, seed=0, y=y, precision="fp32")
            assert (drawn[:, column] - to_bytes(decoded(model, x)).flatten(1)).abs().max() <= 2
        assert not page.complaints


def points_after(page, revision: int) -> torch.Tensor:
    """(panes, points, 2) where the last drawing of the plane ended, after this many others."""
    page.wait_for_function("n => Number(document.querySelector('.plane').dataset.revision) > n", arg=revision)
    found = page.evaluate("document.querySelector('.plane').points.map((x) => [...x])")
    return torch.tensor(found).reshape(len(found), -1, 2)


PIXELS = """() => [...document.querySelectorAll(".draw canvas")].map((canvas) => {
  const copy = Object.assign(document.createElement("canvas"), { width: 32, height: 32 });
  const context = copy.getContext("2d", { willReadFrequently: true });
  context.drawImage(canvas, 0, 0);
  const { data } = context.getImageData(0, 0, 32, 32);
  return [0, 1, 2].flatMap((c) => Array.from({ length: 1024 }, (_, p) => data[4 * p + c]));
})"""


def asked_again(addresses: list[str]) -> list[str]:
    """Addresses that were asked for twice."""
    return [address for address in addresses if addresses.count(address) > 1]


def decoded(model: Denoiser, x: torch.Tensor) -> torch.Tensor:
    """The images of samples in single precision, as in pages: `as_images` may take 16 bits."""
    net = latent_network(model)
    if net is None: return x
    vae = net.vae()
    with torch.no_grad(): return vae.decode(vae.from_unit(x))


def to_bytes(images: torch.Tensor) -> torch.Tensor:
    """Images in [-1, 1] as numbers from 0 to 255."""
    return (127.5 * (images + 1)).clamp(0, 255).round().int()
