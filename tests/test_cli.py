"""The command line."""
from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from conftest import LESSONS, NBS
from interface import PATIENCE, TOKEN, answers, free_port, private, running, write_notebook

from diffusion_course.cli import keep_stills, keep_stills_on_save, lab_command, lessons_folder, main, without_news

COMMAND = [sys.executable, "-c", "import sys; from diffusion_course.cli import main; sys.exit(main())"]


def call(*args: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
    """What the console script says to these arguments."""
    return subprocess.run(
        [*COMMAND, *args],
        cwd=cwd,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=PATIENCE / 1000,
    )


@pytest.mark.parametrize("args", [["--help"], ["lab", "--help"]])
def test_help(args: list[str]) -> None:
    done = call(*args)
    assert done.returncode == 0
    assert "lab" in done.stdout and not done.stderr


@pytest.mark.parametrize("args, named", [
    (["lab", "--lessons", "nowhere"], "nowhere"),
    (["lab", "--lessons", str(NBS), "--lesson", "99"], "'99'"),
    (["lab", "--port", "eighty"], "eighty"),
    (["lab", "--port", "70000"], "70000"),
    (["lap"], "lap"),
    (["sample", "vae-small"], "vae-small is a VAE, which draws nothing: expected one of cifar10,"),
    (["evaluate", "cifar10-classifier"], "cifar10-classifier is a Classifier, which draws nothing"),
    ([], "command"),
])
def test_bad_input_is_one_clear_line(args: list[str], named: str) -> None:
    done = call(*args)
    assert done.returncode == 2
    assert named in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr and not done.stdout


def test_lessons_are_found_from_anywhere_in_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nbs" / "solutions").mkdir(parents=True)
    write_notebook(tmp_path / "nbs" / "01_distributions.ipynb", "1")
    monkeypatch.chdir(tmp_path / "nbs" / "solutions")
    assert lessons_folder() == (tmp_path / "nbs").resolve()
    assert lessons_folder(str(NBS)) == NBS.resolve()


@pytest.mark.parametrize("root", [True, False])
def test_the_server_is_for_this_machine_only(root: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0 if root else 1000, raising=False)
    command = lab_command(NBS, "01_distributions.ipynb", 8888, browser=True)
    assert [c for c in command if "ip=" in c] == ["--ServerApp.ip=127.0.0.1"]
    assert not any(
        word in c
        for c in command
        for word in ("0.0.0.0", "allow_remote", "token=", "password=", "disable_check_xsrf")
    )
    assert ("--allow-root" in command) == root
    assert "--no-browser" not in command
    assert "--no-browser" in lab_command(NBS, "01_distributions.ipynb", 8888, browser=False)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="on Windows the end of a process is not passed on to what it started")
def test_lab_serves_the_first_lesson_until_it_is_ended(tmp_path: Path) -> None:
    port = free_port()
    with running(
        [*COMMAND, "lab", "--lessons", str(NBS), "--no-browser", "--port", str(port)],
        port,
        tmp_path,
    ) as server:
        page = urllib.request.Request(
            f"{server.url}/api/contents/{LESSONS[0].name}?content=0",
            headers={"Authorization": f"token {TOKEN}"},
        )
        assert urllib.request.urlopen(page, timeout=30).status == 200
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"{server.url}/api/contents/", timeout=30)
        log = server.log.read_text(encoding="utf-8", errors="replace")
        assert f"/lab/tree/{LESSONS[0].name}" in log
        assert "unrecognized" not in log.lower() and "diffusion_course.cli | extension was successfully loaded" in log
        others = [line for line in log.splitlines() if "http" in line and "127.0.0.1" not in line]
        assert not others, others
        server.process.terminate()
        server.process.wait(30)
        assert not answers(server.url)


@pytest.mark.slow
def test_lab_trusts_the_lessons(tmp_path: Path) -> None:
    write_notebook(tmp_path / "01_distributions.ipynb", "1")
    script = """
import pathlib, sys

import nbformat
from diffusion_course.cli import trust
from nbformat.sign import NotebookNotary

folder = pathlib.Path(sys.argv[1])
def signed():
    notebook = nbformat.read(folder / "01_distributions.ipynb", 4)
    return NotebookNotary().check_signature(notebook)
print(signed(), trust(folder), signed())
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env=private(tmp_path),
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    assert done.stdout.split() == ["False", "1", "True"]


def test_stills_are_kept_and_links_to_widgets_dropped() -> None:
    view = "application/vnd.jupyter.widget-view+json"
    outputs = [
        {"data": {view: {}, "text/html": "<img>"}},
        {"data": {view: {}, "image/png": ""}},
        {"data": {view: {}, "text/plain": ""}},
        {"name": "stdout"},
    ]
    nb = {"cells": [{"cell_type": "markdown"}, {"outputs": outputs}]}
    assert [sorted(o.get("data", {})) for o in keep_stills(nb)["cells"][1]["outputs"]] == [
        ["text/html"],
        ["image/png"],
        [],
    ]
    model = {"type": "notebook", "content": {"cells": [{"outputs": [{"data": {view: {}, "text/html": ""}}]}]}}
    keep_stills_on_save(model=model, path="x", contents_manager=None)
    assert model["content"]["cells"][0]["outputs"] == [{"data": {"text/html": ""}}]
    keep_stills_on_save(model={"type": "file", "content": "text"})


def test_stills_of_notebooks_saved_elsewhere_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    view = "application/vnd.jupyter.widget-view+json"
    nb = {"cells": [{"outputs": [{"data": {view: {}, "text/html": "<b>±</b>"}}]}, {"source": ["a = 1"]}], "nbformat": 4}
    saved, done = tmp_path / "saved.ipynb", tmp_path / "done.ipynb"
    saved.write_text(json.dumps(nb), encoding="utf-8")
    done.write_text('{"cells": []}', encoding="utf-8")
    assert main(["stills", str(saved), str(done)]) == 0
    del nb["cells"][0]["outputs"][0]["data"][view]
    assert json.loads(saved.read_text(encoding="utf-8")) == nb and "±" in saved.read_text(encoding="utf-8")
    assert done.read_text(encoding="utf-8") == '{"cells": []}'
    said = capsys.readouterr().out
    assert f"{saved}: links" in said and f"{done}: nothing to do" in said


@pytest.mark.parametrize("text", ["no json", "[]", '{"worksheets": []}'])
def test_what_is_no_notebook_is_refused_and_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture, text: str,
) -> None:
    path = tmp_path / "x.ipynb"
    path.write_text(text, encoding="utf-8")
    assert main(["stills", str(path)]) == 2 and path.read_text(encoding="utf-8") == text
    assert f"{path} is no notebook of format 4" in capsys.readouterr().err


def test_the_question_about_news_stays_away() -> None:
    announcements = "@jupyterlab/apputils-extension:announcements"
    assert without_news(None, {"disabledExtensions": ["a"]})["disabledExtensions"] == [announcements, "a"]
    assert without_news(None, {})["disabledExtensions"] == [announcements]
