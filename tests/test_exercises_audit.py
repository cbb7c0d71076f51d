"""A sample of the audit of `tools/audit_exercises.py`: what wrong answers are told, and that right ones pass."""
from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

import pytest
from answers import RIGHT, WRONG

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

import audit_exercises as audits

from diffusion_course.checking import LESSONS, check, exercises

MUTANTS = 5  # of each exercise, and rewritings
OTHERS = 3  # wrong functions of each exercise that are no mutants


@cache
def found(lesson: str) -> list[audits.Audit]:
    """The audit of a lesson's exercises."""
    return [audits.audit(name, e, MUTANTS, others=OTHERS) for name, e in exercises() if name.startswith(f"{lesson}.")]


@pytest.mark.parametrize("lesson", LESSONS)
def test_wrong_answers_are_refused_and_most_get_a_hint(lesson: str) -> None:
    total = sum(len(a.reports) for a in found(lesson))
    escaped = [(v.name, v.change, v.line) for a in found(lesson) for v in a.escapes]
    refused = total - len(escaped)
    helped = sum(a.share(*audits.HINTS) for a in found(lesson))
    assert refused >= 0.98 * total, escaped
    assert helped >= 0.7 * refused, f"{helped} of {refused} refusals say what is wrong"


@pytest.mark.parametrize("lesson", LESSONS)
def test_right_answers_pass_in_any_guise(lesson: str) -> None:
    refused = [(v.name, v.change, v.line, r.message) for a in found(lesson) for v, r in a.refused]
    assert sum(a.right for a in found(lesson)) > 20 and not refused


def test_an_audit_finds_what_a_check_lets_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exercise whose only trial has w = 1 cannot tell w from w²."""
    import torch

    from diffusion_course import checking

    space = {"torch": torch}
    exec("def scaled(x, w): return w**2 * x + w", space)
    monkeypatch.setattr(audits, "_source", lambda e: "def scaled(x, w): return w**2 * x + w")
    weak = checking.Exercise(space["scaled"], lambda: [(torch.arange(4.0).double(), 1.0)], ())
    monkeypatch.setattr(checking, "exercise", lambda name: weak)
    result = audits.audit("made.up", weak, 100)
    assert {"dropped an exponent", "3 for 2"} <= {v.change for v in result.escapes}
    assert not result.refused


@pytest.mark.parametrize("name, f", [(n, f) for n, some in RIGHT.items() for f in some])
def test_other_right_answers_pass(name, f) -> None:
    report = check(name, f)
    assert report, report.message


@pytest.mark.parametrize("name, f", [(n, f) for n, some in WRONG.items() for f in some])
def test_wrong_answers_that_are_easily_overlooked_are_told_what_is_wrong(name, f) -> None:
    report = check(name, f)
    assert report.status == "not yet" and report.cause in audits.HINTS, report
