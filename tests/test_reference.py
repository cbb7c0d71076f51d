"""The reference pages: fresh, complete, and what `help()` shows too."""
from __future__ import annotations

import inspect
import pydoc
import re
from importlib import import_module

import pytest
import reference

import diffusion_course as dc

PAGES = reference.pages()


def section(module: str, name: str) -> str:
    """What a page says about a name, its methods included."""
    return re.split(r"^## ", PAGES[f"{module}.md"], flags=re.M)[
        1 + import_module(f"diffusion_course.{module}").__all__.index(name)]


def explained(docstring: str | None) -> list[str]:
    """The parameters that a docstring explains, read without the tool."""
    block = re.search(r"^Args:\n((?:    .*\n|\n)*)", inspect.cleandoc(docstring or "") + "\n", re.M)
    return re.findall(r"^ {4}(\*{0,2}\w+):", block[1], re.M) if block else []


def test_the_pages_are_fresh() -> None:
    stale = reference.stale(PAGES)
    assert not stale, f"{', '.join(stale)}: `python tools/reference.py` writes them"


def test_the_index_lists_every_module_lessons_first() -> None:
    listed = re.findall(r"^\| \[(\w+)\]\(\1\.md\)", PAGES["README.md"], re.M)
    assert listed == reference.modules()
    assert sorted(listed) == sorted(p.stem for p in reference.PACKAGE.glob("*.py") if not p.stem.startswith("_"))
    assert listed[:3] == ["distributions", "solvers", "schedules"]
    links = re.findall(r"\]\((\w+\.md)#(\w+)\)", PAGES["README.md"])
    assert len(links) == len(dc.__all__)
    for page, anchor in links: assert anchor in re.findall(r"^## (\w+)$", PAGES[page].lower(), re.M)


@pytest.mark.parametrize("module", reference.modules())
def test_every_explained_parameter_stands_on_the_page(module: str) -> None:
    m = import_module(f"diffusion_course.{module}")
    for name in m.__all__:
        obj = vars(m)[name]
        text = section(module, name)
        assert text.startswith(name + "\n")
        if not (inspect.isfunction(obj) or inspect.isclass(obj)): continue
        for parameter in explained(obj.__doc__):
            assert f"| `{parameter}` |" in text, (name, parameter)
        for key, method in vars(obj).items() if inspect.isclass(obj) else ():
            if key.startswith("_") or not inspect.isfunction(method) or not method.__doc__: continue
            part = text.split(f"### {name}.{key}\n")[1].split("\n### ")[0]
            for parameter in explained(method.__doc__):
                assert f"| `{parameter}` |" in part, (key, parameter)
    assert (reference.ROOT / reference.notebook(module)).is_file()
    assert f"](../../{reference.notebook(module)})" in PAGES[f"{module}.md"]


def test_pages_tell_nothing_of_the_machine() -> None:
    for name, text in PAGES.items():
        assert not re.search(r" at 0x|PosixPath|WindowsPath|site-packages", text), name
        assert str(reference.ROOT) not in text and "\r" not in text and text.endswith("\n"), name


def test_a_docstring_is_taken_apart() -> None:
    doc = reference.parsed(inspect.cleandoc("""The sum.

    Args:
        a: one
            number: any.
        *b, **c: others.

    Returns:
        () the sum,
        a number.

    Raises:
        ValueError: for none.
    """))
    assert doc.text == "The sum."
    assert doc.entries["Args"] == {"a": "one number: any.", "*b, **c": "others."}
    assert doc.entries["Raises"] == {"ValueError": "for none."}
    assert doc.results == {"Returns": "() the sum, a number."}


def test_signatures_show_functions_by_name() -> None:
    def f(a: int, *, loss: object = dc.matching_loss, other: object = object()) -> None: ...
    assert reference.signature("f", f) == "f(a: int, *, loss: object = matching_loss, other: object = ...) -> None"


def test_help_shows_what_guidance_is() -> None:
    text = pydoc.render_doc(dc.generate, renderer=pydoc.plaintext)
    assert re.search(r"guidance: 0: labels are ignored, 1: as they are", text)
    assert "| `guidance` | `float` | `1.0` | 0: labels are ignored" in section("generation", "generate")
