"""The benchmarks: a runner that loses nothing, a report that its results give again, and claims that have a command.

No goal is asserted on time: whether it is met stands in `benchmarks/README.md`.
"""
from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT

BENCHMARKS = ROOT / "benchmarks"
sys.path.append(str(BENCHMARKS))  # last: tests/ has an interface.py too

measuring, report, run = (importlib.import_module(name) for name in ("measuring", "report", "run"))

FOUND: dict[str, Any] = dict(
    how="Counted.", goals=[measuring.goal("as fast", 0.9, 1.0, unit="times")],
    headlines=[measuring.headline("the first", 2.0, "s")],
    tables=[measuring.table("A table", ["name", "s"], [["ours", measuring.spread([1.0, 2.0, 4.0])], ["other", 3]])],
    plots=[measuring.bars("speed", "Speed", {"ours": measuring.spread([1.0, 2.0]), "other": 3.0}, "s")],
)


@pytest.fixture
def topics(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Three topics that measure nothing; the names of those that ran."""
    ran: list[str] = []

    def fake(name: str) -> types.SimpleNamespace:
        def measure(quick: bool = False) -> dict[str, Any]:
            ran.append(name)
            return FOUND | dict(how=f"{name}, run {len(ran)}.")
        return types.SimpleNamespace(measure=measure)
    for name in ("first", "second", "third"): monkeypatch.setitem(sys.modules, name, fake(name))
    monkeypatch.setattr(report, "TOPICS", {"first": "One", "second": "Two", "third": "Three"})
    return ran


def test_topics_are_measured_written_and_reported(topics: list[str], tmp_path: Path) -> None:
    assert run.main(["--out", str(tmp_path)]) == 0
    assert topics == ["first", "second", "third"]
    data = json.loads((tmp_path / "results" / "second.json").read_text(encoding="utf-8"))
    assert data["about"]["command"] == "make bench ARGS=second" and data["tables"] == FOUND["tables"]
    assert {"processor", "cores", "matrix_units"} <= set(data["about"]["machine"])
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "3 of 3 are met" in text and "| ours | 2 (1.50 to 3) |" in text
    assert all((tmp_path / name).exists() for name in re.findall(r"\]\((plots/[^)]*)\)", text))


def test_a_run_that_is_stopped_keeps_what_was_finished(
    topics: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stopped(quick: bool) -> dict[str, Any]: raise KeyboardInterrupt
    monkeypatch.setattr(sys.modules["second"], "measure", stopped)
    assert run.main(["--out", str(tmp_path)]) == 130
    assert [p.name for p in (tmp_path / "results").iterdir()] == ["first.json"]
    assert "first, run 1." in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_only_the_topics_named_are_replaced(topics: list[str], tmp_path: Path) -> None:
    run.main(["--out", str(tmp_path)])
    run.main(["--out", str(tmp_path), "second"])
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "first, run 1." in text and "second, run 4." in text and "third, run 3." in text


def test_a_topic_that_fails_leaves_the_others_and_what_it_had(
    topics: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    run.main(["--out", str(tmp_path)])
    def broken(quick: bool) -> dict[str, Any]: raise RuntimeError("no such peer")
    monkeypatch.setattr(sys.modules["second"], "measure", broken)
    assert run.main(["--out", str(tmp_path)]) == 1
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "second, run 2." in text and "third, run 5." in text


def test_another_machine_stands_beside_the_first(topics: list[str], tmp_path: Path) -> None:
    run.main(["--out", str(tmp_path), "first"])
    run.main(["--out", str(tmp_path), "first", "--label", "gpu"])
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "## One\n" in text and "## One (gpu)\n" in text and "first, run 1." in text and "first, run 2." in text


@pytest.mark.parametrize("arguments", [["fourth"], ["--label", "a/b"]])
def test_wrong_arguments_are_refused(topics: list[str], arguments: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit): run.main(arguments)
    assert "expected" in capsys.readouterr().err and not topics


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    run.write(path, dict(a=1))
    with pytest.raises(TypeError): run.write(path, dict(a=object()))
    assert json.loads(path.read_text(encoding="utf-8")) == dict(a=1) and [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize(("x", "text"), [
    (0, "0"), (3, "3"), (1234567, "1,234,567"), (0.5, "0.500"), (12.345, "12.3"), (1234.5, "1,234"),
    (0.00012, "1.2e-04"),
])
def test_numbers_have_three_figures(x: float, text: str) -> None: assert report.number(x) == text


@pytest.mark.parametrize(("measured", "limit", "at_most", "text"), [
    (0.9, 1.0, True, "met"), (1.2, 1.0, True, "short by 20 %"), (1.5, 1.5, False, "met"),
    (1.2, 1.5, False, "short by 25 %"),
])
def test_a_goal_is_met_or_short(measured: float, limit: float, at_most: bool, text: str) -> None:
    assert report.verdict(measuring.goal("", measured, limit, at_most)) == text


def test_turns_interleave_and_leave_out_the_first() -> None:
    calls: list[str] = []
    times = measuring.turns({name: lambda name=name: calls.append(name) for name in "ab"}, 2)
    assert "".join(calls) == "ba" + "ab" + "ba" and {name: len(v) for name, v in times.items()} == dict(a=2, b=2)
    assert measuring.turns({"a": lambda: 7.0}, 3)["a"] == [7.0] * 3  # a run that measures itself


def test_every_topic_can_be_imported_and_measured() -> None:
    names = list(report.TOPICS)
    code = f"import importlib; [importlib.import_module(n).measure for n in {names!r}]"
    done = subprocess.run([sys.executable, "-c", code], cwd=BENCHMARKS, capture_output=True)
    assert not done.returncode, done.stderr.decode(errors="replace")


def test_the_others_loops_run_as_they_are_measured() -> None:
    """Each library hands its times over in its own way, diffusers some of them in whole numbers."""
    pytest.importorskip("diffusers")
    import loop
    from diffusion_course.matching import MLP

    timed = loop.Timed(MLP(width=8)).eval()
    found = loop.their_loops(timed, torch.randn(4, 2), 3)
    assert {"euler", "heun", "ddim", "dpmpp_2m", "ancestral"} <= set(found)
    with torch.no_grad():
        for runs in found.values():
            for run_it in runs.values(): run_it()
    assert timed.spent > 0


# ---- what is committed -----------------------------------------------------------------------------------------------

RESULTS = sorted((BENCHMARKS / "results").glob("*.json"))


def test_the_committed_report_is_that_of_the_committed_results() -> None:
    if not RESULTS: pytest.skip("no results are committed")
    text = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    assert report.text(BENCHMARKS) == text, "run: python benchmarks/report.py"
    drawn = {f"plots/{p.name}" for p in (BENCHMARKS / "plots").glob("*.png")}
    assert drawn == set(re.findall(r"\]\((plots/[^)]*)\)", text))


def test_the_readme_quotes_the_committed_results() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count(report.START) == text.count(report.END) == 1
    assert report.with_quoted(text, BENCHMARKS) == text, "run: python benchmarks/report.py"


def test_what_the_readme_quotes_names_processor_and_command(topics: list[str], tmp_path: Path) -> None:
    run.main(["--out", str(tmp_path), "first"])
    row = report.quoted(tmp_path).splitlines()[-1]
    assert row.startswith("| the first | 2 s | with") and row.endswith("| `make bench ARGS=first` |")


@pytest.mark.parametrize("path", RESULTS, ids=lambda p: p.stem)
def test_committed_results_are_whole(path: Path) -> None:
    data = json.loads(path.read_text(encoding="utf-8"))
    assert not data["about"]["quick"] and path.name.partition(".")[0] in report.TOPICS
    for g in data["goals"]: assert measuring.is_met(g) or g["why"], f"no reason why it falls short: {g['goal']}"


def test_the_lesson_on_straight_flows_quotes_the_committed_results() -> None:
    """Its table was typed by hand, and one number had stayed that of an earlier run."""
    measured = json.loads((BENCHMARKS / "results" / "couplings.json").read_text(encoding="utf-8"))["tables"][0]
    notebook = json.loads((ROOT / "nbs" / "11_straight_flows.ipynb").read_text(encoding="utf-8"))
    text = next(source for c in notebook["cells"] if "benchmarks/couplings.py" in (source := "".join(c["source"])))
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]
    expected = [[f"{row[1]:.3f}", f"{row[2]:.2f}", f"{row[3]:.2f}", f"{row[4]['median']:.0f} s"]
                for row in measured["rows"]]
    quoted = [[cell.replace("−", "-").partition(",")[0] for cell in row[1:]] for row in rows]
    assert quoted == expected
    floor = re.search(r"Floor of W2, .*: (.* ± .*)\.$", measured["note"])
    assert floor and f"is {floor[1]}." in text


def test_packages_are_pinned() -> None:
    lines = (BENCHMARKS / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = [line for line in lines if line and not line.startswith("#")]
    assert wanted and all(re.fullmatch(r"[\w-]+==[\w.]+", line) for line in wanted)


TIME = r"\b(\d[\d.,]*|two|three|five|several|some|half an?) (ms|s|seconds?|minutes?|hours?)\b"
SPEED = re.compile(TIME + r"|times (quicker|faster)")


def test_each_time_or_speed_in_the_readme_names_its_command() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    prose = re.sub(r"```.*?```|<!--.*?-->", lambda m: m[0] if m[0].startswith("```bash") else "", text, flags=re.S)
    table = re.compile(r"^\|.*\|$", re.M)  # the lessons' minutes are a reader's
    without = [block for block in table.sub("", prose).split("\n\n") if SPEED.search(block)
               and "make bench" not in block and "benchmarks/" not in block and "lesson" not in block]
    assert not without, without
