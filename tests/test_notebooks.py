"""Every notebook runs from top to bottom without an error or a warning, as `make lessons` does it."""
from __future__ import annotations

import configparser
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from conftest import LESSONS, NBS, NOTEBOOKS, ROOT, SOLUTIONS, TOOLBOX, name_of
from execute import NotebookError, execute, main, notebooks, store
from interface import find_browser, write_notebook

PAGES = [p for p in NOTEBOOKS if p.parent == NBS and p not in LESSONS]


@pytest.mark.slow
@pytest.mark.parametrize("path", TOOLBOX + SOLUTIONS + PAGES, ids=name_of)
def test_notebook_runs(path: Path) -> None:
    execute(path)


@pytest.mark.slow
@pytest.mark.skipif(find_browser() is not None, reason="the browser tests run the lessons")
@pytest.mark.parametrize("path", LESSONS, ids=name_of)
def test_lesson_runs(path: Path) -> None:
    execute(path)


@pytest.mark.parametrize("path", [*LESSONS, NBS / "last_page.ipynb"], ids=name_of)
def test_a_lesson_installs_the_library_in_colab(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [cell["source"] for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    assert "google.colab" in cells[0], "the first code cell"
    asked: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: asked.append(command))
    exec(cells[0], {})
    assert not asked  # elsewhere it is installed
    monkeypatch.setitem(sys.modules, "google.colab", sys)
    exec(cells[0], {})
    config = configparser.ConfigParser()
    config.read(ROOT / "settings.ini", encoding="utf-8")
    user, repo = (config["DEFAULT"][key] for key in ("user", "repo"))
    [[*_, source]] = asked
    assert source == f"diffusion-course[lab] @ git+https://github.com/{user}/{repo}"


# ---- the tool itself -----------------------------------------------------------------------------

@pytest.mark.slow
@pytest.mark.parametrize("source, message", [
    ("x = 1\n%%\n1 / 0\n%%\nx", r"trial.ipynb, cell 2 \(\w+\): ZeroDivisionError"),
    ("import warnings\nwarnings.warn('careful')", "cell 1 .*stderr.*careful"),
    ("import pathlib\npathlib.Path.home()", "cell 1 .*a path of this machine"),
], ids=["error", "warning", "path"])
def test_a_notebook_that_fails_is_named_and_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture, source: str, message: str,
) -> None:
    path = tmp_path / "trial.ipynb"
    write_notebook(path, source)
    before = path.read_bytes()
    with pytest.raises(NotebookError, match=message): execute(path)
    assert main([str(path)]) == 1
    assert "FAILED" in capsys.readouterr().out
    assert path.read_bytes() == before


@pytest.mark.slow
def test_outputs_are_stored_without_what_dies_with_the_kernel(tmp_path: Path) -> None:
    path = tmp_path / "trial.ipynb"
    write_notebook(path, "\n".join([
        "from diffusion_course.plots import figure",
        "from diffusion_course.widgets import panel, slider",
        "%%",
        "panel(lambda k: figure()[0], k=slider(1, 3))",
        "%%",
        "from tqdm import tqdm",
        "for _ in tqdm(range(3)): pass",
    ]))
    before = path.read_bytes()
    assert main(["--check", str(path)]) == 0
    assert path.read_bytes() == before
    store(path, execute(path))
    cells = nbformat.read(path, as_version=4).cells
    assert set(cells[1].outputs[0].data) == {"text/html", "image/png", "text/plain"}
    assert cells[2].outputs == []
    assert all(c.execution_count is None and not c.metadata for c in cells)


def test_checkpoints_are_no_notebooks(tmp_path: Path) -> None:
    (tmp_path / ".ipynb_checkpoints").mkdir()
    for name in ("02_b.ipynb", "01_a.ipynb", ".ipynb_checkpoints/01_a-checkpoint.ipynb"):
        (tmp_path / name).touch()
    assert [p.name for p in notebooks(tmp_path)] == ["01_a.ipynb", "02_b.ipynb"]
