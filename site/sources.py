"""What the web edition makes of the notebooks and pages before Sphinx reads them."""
from __future__ import annotations

import ast
import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

Cell = dict[str, Any]
# A saved scene of the player carries the whole script; the last line starts it.
PLAYER = re.compile(
    r'<script>\s*\(\(\) => \{\n(?:(?!</script>).)*?'
    r'\nboot\("([^"\n]+)", ([^\n]+)\);\n\}\)\(\);\s*</script>', re.S)
SLIDERS = re.compile(r"(?:&nbsp;)?\s*\(run this cell to move the sliders\)")
# A link to a heading of a notebook, as JupyterLab and GitHub know it; a pair of brackets may be in it.
ANCHORED = re.compile(r"(?<=\]\()((?:[\w./-]+\.ipynb)?#)((?:[^()\s]|\([^()\s]*\))+)(?=\))")
ATTEMPT = re.compile(r'(<code>([\w.]+)</code>&ensp;)not attempted yet\.[^<]*')
# What makes sense in a notebook and not on a page.
ASIDES = (
    " Run the cells from the top with Shift+Enter; the sliders of a panel wake up when its cell has"
    " run.",
    " Run the cells from the top with Shift+Enter.",
    " Run it; you need not read it.",
    " In JupyterLab the first click may open the lesson at its beginning; a second one finds the section.",
)
FOLDERS = {"site/solutions": "solutions", "site/toolbox": "toolbox"}  # pages that list a folder of notebooks


# ---- notebooks and pages -------------------------------------------------------------------------

def prepared(root: Path, docname: str, text: str, colab: str) -> str:
    """A page's source as Sphinx is to read it.

    Args:
        root: of the project.
        docname: the page, as "nbs/01_distributions".
        text: of the notebook or the Markdown file.
        colab: the address that opens it there.
    """
    if docname.startswith("nbs/"):
        nb = _joined(json.loads(text))
        cells = _cells(root, docname, nb["cells"], colab)
        nb["cells"] = [{"id": f"cell-{k}", **cell} for k, cell in enumerate(cells)]
        return json.dumps(nb)
    if docname == "docs/reference/README":
        pages = re.findall(r"^\| \[\w+\]\((\w+)\.md\)", text, re.M)
        return text + toctree("", pages)
    if docname.startswith("docs/reference/"): return _with_origins(root, Path(docname).name, text)
    if docname in FOLDERS: return text + overview(root, FOLDERS[docname])
    return text


def read(notebook: Path) -> list[Cell]:
    """The cells of a notebook, each source as one string.

    Args:
        notebook: its file.
    """
    return _joined(json.loads(notebook.read_text(encoding="utf-8")))["cells"]


def _joined(nb: dict[str, Any]) -> dict[str, Any]:
    for cell in nb["cells"]: cell["source"] = "".join(cell["source"])
    return nb


def _cells(root: Path, docname: str, cells: list[Cell], colab: str) -> Iterator[Cell]:
    "The cells of a page: without what only a notebook needs, with links to the reference."
    module = next((m[1] for m in map(_module, cells) if m), "")
    anchors = documented(root, module)
    if docname.startswith("nbs/solutions/"): _mark_solutions(cells)
    ahead = computed(root, Path(docname).name) if docname.count("/") == 1 else {}
    heading = ""
    for cell in cells:
        if cell["cell_type"] == "markdown":
            heading = ([heading] + re.findall(r"^#+ +(.+)$", cell["source"], re.M))[-1]
            for aside in ASIDES: cell["source"] = cell["source"].replace(aside, "")
            cell["source"] = ANCHORED.sub(lambda m: m[1] + slug(m[2]), cell["source"])
            yield cell
            continue
        if _module(cell) or cell["source"].startswith("# Colab has no diffusion_course"): continue
        if cell["metadata"].get("jupyter", {}).get("source_hidden"):
            cell["metadata"]["tags"] = [*cell["metadata"].get("tags", []), "hide-input"]
        if cell.get("id") in ahead: _use_panel(cell, docname, ahead[cell["id"]])
        _describe_figures(cell, heading)
        for output in cell["outputs"]: _rewrite(output, docname, colab, heading)
        names = sorted(_public(cell["source"]) & set(anchors))
        if names: yield _markdown("".join(f"({_label(module, name)})=\n" for name in names))
        yield cell
        if names:
            up = "../" * docname.count("/")
            page = f"{up}docs/reference/{module}.md"
            links = ", ".join(f"[`{name}`]({page}#{anchors[name]})" for name in names)
            yield _markdown(f"{{.library}}\nIn the library: {links}")
    if docname == "nbs/index": yield _markdown(contents(cells))


def _module(cell: Cell) -> re.Match | None:
    return re.match(r"#\|\s*default_exp\s+(\S+)", cell["source"])


def _markdown(text: str) -> Cell: return {"cell_type": "markdown", "metadata": {}, "source": text}


def _describe_figures(cell: Cell, heading: str) -> None:
    "The words of a cell's plain figures, which myst-nb reads from its metadata."
    bundles = [output.get("data", {}) for output in cell["outputs"]]
    figures = [data for data in bundles if "image/png" in data and "text/html" not in data]
    if not figures: return
    told = ["".join(data.get("text/plain", "")) for data in figures]
    words = [text for text in told if text.startswith("figure: ")]
    options = cell["metadata"].setdefault("mystnb", {}).setdefault("image", {})
    options.setdefault("alt", "; ".join(words).replace("$", "") if words else in_section(heading))


def in_section(heading: str) -> str:
    """What stands for a figure that no words are stored of.

    Args:
        heading: the Markdown of the heading above it.
    """
    plain = re.sub(r"[`*$\\]|\[(?=[^]]*\]\()|\]\([^)]*\)", "", heading)
    return f"figure in the section {plain}" if plain else "figure"


def _rewrite(output: dict[str, Any], docname: str, colab: str, heading: str = "") -> None:
    "Scenes without their copy of the script, captions that hold on a page, and a text for each image."
    text = "".join(output.get("data", {}).get("text/html", ""))
    if not text: return
    live = f'in JupyterLab or <a href="{colab}">Colab</a>.'
    text = SLIDERS.sub(f' <span class="still">The sliders move {live}</span>', scenes(text))
    if docname.count("/") == 1:
        page = f"solutions/{Path(docname).name}.html"
        text = ATTEMPT.sub(lambda m: f'{m[1]}checks what you write {live}'
                           f' <a href="{page}#{_id(m[2])}">Its solution</a>', text)
    alt = html.escape(in_section(heading))
    output["data"]["text/html"] = re.sub(r"<img (?![^>]*\balt=)", lambda m: f'<img alt="{alt}" ', text)


def slug(anchor: str) -> str:
    """The anchor of a heading on a page, from its anchor in a notebook.

    Args:
        anchor: the heading's words, with hyphens in place of spaces.
    """
    return re.sub(r"[^\w-]", "", unquote(anchor).lower())


def scenes(text: str) -> str:
    """HTML whose scenes are data for the page's own script.

    Args:
        text: a stored output.
    """
    data = r'<script type="application/json" class="dc-scene" data-scene="\1">[\2]</script>'
    return PLAYER.sub(data, text)


def computed(root: Path, lesson: str) -> dict[str, Any]:
    """The panels of a lesson that `tools/panels_ahead.py` has computed, by the ids of their cells.

    Args:
        root: of the project.
        lesson: the name of its notebook, without the ending.
    """
    path = root / "site" / "panels" / lesson / "index.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _use_panel(cell: Cell, docname: str, entry: dict[str, Any]) -> None:
    "In the place of a panel's still: the still where scripts are off, and what panels.js makes of the entry."
    for output in cell["outputs"]:
        text = "".join(output.get("data", {}).get("text/html", ""))
        if not SLIDERS.search(text): continue
        still, caption = text.rsplit('<div style="color:#777', 1)
        still = re.sub(r'<script[^>]*>.*?</script>| data-dc="[^"]*"', "", still, flags=re.S)
        kept = {"controls": entry["controls"], "off": entry["off"]}
        data = json.dumps(kept, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
        source = f'{"../" * docname.count("/")}_static/panels/{Path(docname).name}/{cell["id"]}.js'
        names = ", ".join(html.escape(c["label"]) for c in entry["controls"])
        words = SLIDERS.sub("", f'<div style="color:#777{caption}')
        output["data"]["text/html"] = (
            f'<div class="ahead" id="panel-{cell["id"]}" role="group" aria-label="Panel: {names}"'
            f' data-panel="{cell["id"]}" data-source="{source}">'
            f'<script type="application/json">{data}</script>'
            f'<div class="ahead-parts">{still}</div><noscript>{words}</noscript></div>')


# ---- exercises and their solutions ---------------------------------------------------------------

def _mark_solutions(cells: list[Cell]) -> None:
    "A label before the heading of each solution, by the name of its exercise."
    heading: Cell | None = None
    for cell in cells:
        if cell["cell_type"] == "markdown" and cell["source"].startswith("## "): heading = cell
        for name in re.findall(r'^check\("([\w.]+)"', cell["source"], re.M) if heading else ():
            heading["source"] = f"({_id(name)})=\n{heading['source']}"


def _id(exercise: str) -> str: return "solution-" + re.sub(r"[._]", "-", exercise)


# ---- the library and where it is built -----------------------------------------------------------

def documented(root: Path, module: str) -> dict[str, str]:
    """The names that a module's reference page explains, with the anchors of their headings there.

    Args:
        root: of the project.
        module: its name; a page need not exist.
    """
    page = root / "docs" / "reference" / f"{module}.md"
    anchors: dict[str, str] = {}
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    for name in re.findall(r"^## (\w+)$", text, re.M):
        # As on GitHub, where a class and a function may differ in the first letter alone.
        same = sum(other.lower() == name.lower() for other in anchors)
        anchors[name] = name.lower() + (f"-{same}" if same else "")
    return anchors


def _public(source: str) -> set[str]:
    "The names that an exported cell defines."
    if not re.match(r"#\|\s*export", source): return set()
    names: set[str] = set()
    for node in ast.parse(source).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)): names.add(node.name)
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign): targets = node.targets
        if isinstance(node, ast.AnnAssign): targets = [node.target]
        names |= {t.id for target in targets for t in ast.walk(target) if isinstance(t, ast.Name)}
    return names


def _label(module: str, name: str) -> str:
    "Labels are read without regard to case, and a class may have the name of a function."
    return f"build-{module}-{'class-' if name[0].isupper() else ''}{name}"


def _with_origins(root: Path, module: str, text: str) -> str:
    "A reference page with a link below each name to the cell that builds it."
    notebook = re.search(r"^Built in \[nbs/(\S+)\.ipynb\]", text, re.M)
    if not notebook: return text
    cells = read(root / "nbs" / f"{notebook[1]}.ipynb")
    built = set().union(*(_public(c["source"]) for c in cells if c["cell_type"] == "code"))
    number = re.match(r"(\d+)_", notebook[1])
    place = f"lesson {int(number[1])}" if number else "the toolbox"

    def linked(m: re.Match) -> str:
        if m[1] not in built: return m[0]
        return f"{m[0]}\n\n{{.library}}\n[Built in {place}](#{_label(module, m[1])})\n"

    # Without the backslashes __call__ is bold type.
    text = re.sub(r"^(### \w+\.)__(\w+)__$", r"\1\\_\\_\2\\_\\_", text, flags=re.M)
    return re.sub(r"^## (\w+)$", linked, text, flags=re.M)


# ---- the map -------------------------------------------------------------------------------------

LESSON = re.compile(
    r"^\| \[(\d+) ([^\]]+)\]\((\w+)\.ipynb\) \| (.+?) \| ([^|]+) \| (\d+) \|$", re.M)


def parts(cells: list[Cell]) -> dict[str, list[re.Match]]:
    """The parts of the course, and of each lesson its number, title, file, contents, what is built,
    minutes.

    Args:
        cells: of nbs/index.ipynb.
    """
    text = "\n\n".join(c["source"] for c in cells)
    chunks = re.split(r"^### (.+)$", text, flags=re.M)[1:]
    found = zip(chunks[::2], chunks[1::2], strict=True)
    return {title: list(LESSON.finditer(body)) for title, body in found}


def toctree(caption: str, pages: list[str]) -> str:
    """A hidden table of contents, which the sidebar shows.

    Args:
        caption: above it, if any.
        pages: its entries.
    """
    head = f":caption: {caption}\n" if caption else ""
    return "\n\n```{toctree}\n:hidden:\n" + head + "\n" + "\n".join(pages) + "\n```\n"


def overview(root: Path, folder: str) -> str:
    """A list of the notebooks in a folder: their titles and what they say of themselves.

    Args:
        root: of the project.
        folder: in nbs/.
    """
    lines = []
    paths = sorted((root / "nbs" / folder).glob("*.ipynb"))
    for path in paths:
        first = read(path)[0]["source"]
        title = re.search(r"^# (.+)$", first, re.M)
        about = re.search(r"^> (.+)$", first, re.M)
        if not title or not about:
            raise ValueError(f"{path} begins with {first[:40]!r}: expected # Title and > one sentence")
        lines.append(f"- [{title[1]}](/nbs/{folder}/{path.name}): {about[1]}")
    return "\n" + "\n".join(lines) + toctree("", [f"/nbs/{folder}/{path.stem}" for path in paths])


def contents(cells: list[Cell]) -> str:
    """The tables of contents of the whole site.

    Args:
        cells: of nbs/index.ipynb.
    """
    found = {title: [row[3] for row in rows] for title, rows in parts(cells).items()}
    found[list(found)[-1]].append("last_page")
    lessons = [toctree(title, pages) for title, pages in found.items()]
    rest = ["glossary", "/site/play", "/site/solutions", "/site/toolbox", "/docs/reference/README", "/docs/five-tasks",
            "/benchmarks/README", "/docs/larger"]
    return toctree("", ["The map <self>"]) + "".join(lessons) + toctree("Beside the lessons", rest)


def front(root: Path) -> dict[str, Any]:
    """What the front page shows: parts and lessons, the shorter ways, the first scene of lesson 2.

    Args:
        root: of the project.
    """
    cells = read(root / "nbs" / "index.ipynb")
    rows = {title: [m.groups() for m in matches] for title, matches in parts(cells).items()}
    files = {int(row[0]): row[2] for lessons in rows.values() for row in lessons}
    text = "\n".join(c["source"] for c in cells)
    ways = re.findall(r"^- \*(.+?)\* \((.+?)\): (.+)$", text, re.M)

    def linked(m: re.Match) -> str:
        return f'<a href="nbs/{files[int(m[0])]}.html">{m[0]}</a>' if int(m[0]) in files else m[0]

    routes = [(name, hours, re.sub(r"\d+", linked, way)) for name, hours, way in ways]
    first = scene(root / "nbs" / "02_simulation.ipynb")
    return {"parts": rows, "lessons": len(files), "routes": routes, "scene": first}


def scene(notebook: Path) -> str:
    """The first scene that a notebook stores.

    Args:
        notebook: its file.
    """
    for cell in read(notebook):
        for output in cell.get("outputs", []):
            text = scenes("".join(output.get("data", {}).get("text/html", "")))
            if "dc-scene" in text: return text
    raise ValueError(f"{notebook} stores no scene: expected one for the front page")


def players(root: Path) -> str:
    """The player's script, and a start of each scene when it comes near the window.

    Args:
        root: of the project.
    """
    source = (root / "diffusion_course" / "player.js").read_text(encoding="utf-8")
    start = (root / "site" / "start.js").read_text(encoding="utf-8")
    end = "export default { render };"
    if end not in source: raise ValueError(f"player.js has no line {end!r}: expected it as the last")
    return "(() => {\n" + source.replace(end, start) + "})();\n"
