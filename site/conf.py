"""Sphinx's settings for the web edition: `make site` builds it in `_site/`. Nothing is executed.

The root of the sources is the root of the project, so that links between notebooks and pages hold as they are.
"""
from __future__ import annotations

import shutil
import sys
from configparser import ConfigParser
from importlib.metadata import files
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "site"))

import live  # noqa: E402
import sources  # noqa: E402

settings = ConfigParser(delimiters=["="])
settings.read(ROOT / "settings.ini", encoding="utf-8")
cfg = settings["DEFAULT"]
REPOSITORY = f"{cfg['user']}/{cfg['repo']}"
GITHUB = f"https://github.com/{REPOSITORY}"
COLAB = f"https://colab.research.google.com/github/{REPOSITORY}/blob/{cfg['branch']}"
# Lessons that have changed places: links from elsewhere go on working.
FORMER = {"21_few_step": "19_few_step", "19_inpainting": "20_inpainting", "20_cold": "21_cold"}
FORWARD = """<!doctype html>
<meta charset="utf-8"><title>{title}</title>
<meta http-equiv="refresh" content="0; url={new}.html">
<link rel="canonical" href="{new}.html"><p>This lesson is now <a href="{new}.html">{new}</a>.</p>
"""

# ---- what is built -------------------------------------------------------------------------------

project = "Diffusion Course"
author = cfg["author"]
copyright = cfg["copyright"]
version = release = cfg["version"]
language = "en"
extensions = ["myst_nb", "sphinx.ext.mathjax", "sphinx.ext.githubpages"]
root_doc = "nbs/index"
include_patterns = ["nbs/**.ipynb", "docs/**.md", "benchmarks/README.md", "site/*.md"]
exclude_patterns = [".*", "_*", "**/.ipynb_checkpoints", "build", "dist", "out", "runs", "data"]

nb_execution_mode = "off"
nb_merge_streams = True
nb_ipywidgets_js: dict[str, Any] = {}  # they would come from another host
nb_code_prompt_show = "Show the code"
nb_code_prompt_hide = "Hide the code"
myst_enable_extensions = ["dollarmath", "attrs_block"]
myst_dmath_double_inline = True
myst_heading_anchors = 3

# ---- how it looks --------------------------------------------------------------------------------

html_theme = "furo"
html_title = project
pygments_dark_style = "github-dark"
html_theme_options = {"top_of_page_buttons": []}
templates_path = ["templates"]
# MathJax (Apache License 2.0) comes with a package, because readers ask no other host for it.
mathjax = next(f for f in files("django-static-mathjax") or [] if f.match("es5/tex-svg.js"))
html_static_path = ["static", str(mathjax.locate())]
mathjax_path = "tex-svg.js"
mathjax3_config = {"options": {"enableMenu": False}, "svg": {"fontCache": "global"}}
html_css_files = ["course.css"]
html_js_files = ["course.js"]
html_additional_pages = {"index": "front.html"}
html_context = {**sources.front(ROOT), "github": GITHUB, "classes": live.CIFAR10_NAMES, "step_choices": len(live.STEPS)}
html_sourcelink_suffix = ""  # notebooks are copied to _sources/ for the links that download them
html_use_index = False
html_show_sphinx = False


# ---- hooks ---------------------------------------------------------------------------------------

def on_source(app: Sphinx, docname: str, source: list[str]) -> None:
    "What a page shows in place of what the notebook or the Markdown file says."
    source[0] = sources.prepared(ROOT, docname, source[0], f"{COLAB}/{docname}.ipynb")
    panels = ROOT / "site" / "panels" / Path(docname).name / "index.json"
    if panels.exists(): app.env.note_dependency(str(panels))


def on_doctree(app: Sphinx, doctree: nodes.document) -> None:
    "Each solution is folded, below its heading."
    if not app.env.docname.startswith("nbs/solutions/"): return
    for section in doctree.findall(nodes.section):
        if not isinstance(section.parent.parent, nodes.document): continue
        opening = '<details class="solution"><summary>Show the solution</summary>'
        section.insert(1, nodes.raw("", opening, format="html"))
        section.append(nodes.raw("", "</details>", format="html"))


def on_page(
    app: Sphinx, docname: str, template: str, context: dict[str, Any], doctree: nodes.document | None,
) -> None:
    "Links above a notebook; the script of the players where there are any; Home is the front page."
    context["master_doc"] = "index"
    tree = context.get("furo_navigation_tree", "")
    context["furo_navigation_tree"] = tree.replace('role="heading"', 'role="heading" aria-level="2"')
    body = context.get("body", "")
    if docname in ("index", "site/play") or "dc-scene" in body or 'class="ahead"' in body: app.add_js_file("players.js")
    if 'class="ahead"' in body: app.add_js_file("panels.js", defer="defer")
    if docname == "index" and context["live"]:
        for script in ("tables", "address", "core", "pictures"): app.add_js_file(f"live/{script}.js")
    if docname == "site/play":
        scripts = "tables", "plane-data", "address", "core", "plane", "columns"
        for script in scripts: app.add_js_file(f"live/{script}.js")
    if docname.startswith("nbs/") and docname != root_doc:
        copy = context["pathto"](f"_sources/{docname}.ipynb", 1)
        row = (f'<a href="{COLAB}/{docname}.ipynb">Open in Colab</a>'
               f'<a href="{copy}" download>Download .ipynb</a>'
               f'<a href="{GITHUB}/edit/{cfg["branch"]}/{docname}.ipynb">Edit</a>')
        links = f'</h1>\n<p class="notebook-links">{row}</p>'
        context["body"] = context["body"].replace("</h1>", links, 1)


def on_start(app: Sphinx) -> None:
    "The player's script, for all scenes of a page; panels computed ahead; and what pages compute with."
    static = Path(app.outdir) / "_static"
    static.mkdir(parents=True, exist_ok=True)
    (static / "players.js").write_text(sources.players(ROOT), encoding="utf-8")
    if (ROOT / "site" / "panels").exists():
        shutil.copytree(ROOT / "site" / "panels", static / "panels", dirs_exist_ok=True)
    why = live.build(ROOT / "site" / "live", static / "live")
    if why: print(f"The front page cannot draw images: {why}.")
    app.config.html_context["live"] = not why


def on_end(app: Sphinx, error: Exception | None) -> None:
    "Pages in place of lessons that have moved."
    if error: return
    for old, new in FORMER.items():
        page = Path(app.outdir) / "nbs" / f"{old}.html"
        page.write_text(FORWARD.format(title=project, new=new), encoding="utf-8")


def setup(app: Sphinx) -> None:
    app.connect("builder-inited", on_start)
    app.connect("source-read", on_source)
    app.connect("doctree-read", on_doctree)
    app.connect("html-page-context", on_page, priority=900)  # after the theme
    app.connect("build-finished", on_end)
