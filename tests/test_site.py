"""The web edition: whole, without a dead link, sufficient to itself, and alive in a browser, on a phone too."""
from __future__ import annotations

import functools
import http.server
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from conftest import LESSONS, NBS, NOTEBOOKS, ROOT, SOLUTIONS, checks, code, name_of, read
from interface import NO_BROWSER, exercise_player, find_browser, open_browser

sys.path.insert(0, str(ROOT / "site"))

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
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
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


def test_the_map_names_every_lesson() -> None:
    rows = [row for rows in sources.parts(read(NBS / "index.ipynb")["cells"]).values() for row in rows]
    assert [row[3] for row in rows] == [path.stem for path in LESSONS]


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
        for path, following in pairwise(LESSONS):
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

    def test_pages_are_light(self, pages: dict[str, Page]) -> None:
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
            assert page.text.count('<details class="solution">') >= len(set(names)) > 0
            links = pages[f"nbs/{path.stem}.html"].links
            targets = {link.split("#")[1] for link in links if "#solution-" in link}
            assert targets and targets <= page.ids
            assert len(targets) == len(set(names)), path.stem


# ---- the site in a browser -----------------------------------------------------------------------

SAMPLE = ["index", "nbs/index", "nbs/01_distributions", "nbs/06_score_matching",
          "nbs/15_sampling_pictures", "nbs/solutions/06_score_matching", "docs/reference/samplers",
          "docs/five-tasks"]
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
        assert bool(players) == (name in ("index", "nbs/01_distributions", "nbs/06_score_matching"))
        assert not page.locator("mjx-merror").count()
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            expected = ["dark", "light"] if scheme == "light" else ["light", "dark"]
            assert page.evaluate(TEXT_AND_PAGE) == expected
            for width in (1280, 380):
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


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files and says nothing."""

    def log_message(self, *args: object) -> None: pass
