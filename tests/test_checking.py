"""Checks of exercises: what they say, to what, and that no run spoils another."""
from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from diffusion_course import checking
from diffusion_course.checking import Exercise, Mistake, Report, check


@pytest.fixture
def square(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable], Report]:
    """The check of an exercise made up for the test: x squared, in double precision."""
    def cases() -> list[tuple]:
        return [(torch.tensor([1.0, 2.0, -3.0], dtype=torch.float64),),
                (torch.tensor([0.1], dtype=torch.float64),)]

    doubled = Mistake(lambda x: 2 * x, "You doubled.")
    divided = Mistake(lambda x: x / 0, "You divided by zero.")
    made_up = Exercise(lambda x: x * x, cases, (doubled, divided), "Well squared.")
    monkeypatch.setattr(checking, "exercise", lambda name: made_up)
    return lambda f: check("made.up", f)


def test_stubs_are_not_attempted(square):
    def dots(x): ...
    def documented(x):
        "What to do."
        ...
    def passed(x): pass
    def refused(x): raise NotImplementedError
    def none(x): return None
    stubs = dots, documented, passed, refused, none, lambda x: ..., partial(dots), torch.no_grad()(dots)
    for stub in stubs: assert square(stub).status == "not attempted", stub


def test_a_guard_is_not_a_stub(square):
    def guarded(x):
        if x is None: raise NotImplementedError
        return x * x
    assert square(guarded)


def test_right_answers_pass_in_any_guise(square):
    for right in (lambda x: x**2, lambda x: (x**2).float(), lambda x: (x**2).numpy(),
                  lambda x: [float(v) ** 2 for v in x]):
        report = square(right)
        assert report and report.message == "solved. Well squared."
        assert "✓" in repr(report) and "✓" in report._repr_html_()


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable], Report]:
    """The check of an exercise that returns two numbers: a sum and a product."""
    def cases() -> list[tuple]: return [(2.0, 5.0), (3.0, -1.0), (0.5, 7.0)]

    swapped = Mistake(lambda a, b: (a * b, a + b), "The sum comes first.")
    made_up = Exercise(lambda a, b: (a + b, a * b), cases, (swapped,), "Two in one.")
    monkeypatch.setattr(checking, "exercise", lambda name: made_up)
    monkeypatch.setattr(checking, "_STRICT", True)
    return lambda f: check("made.up", f)


def test_a_list_of_numbers_may_stand_for_a_tuple(two):
    assert two(lambda a, b: [a + b, a * b])
    assert two(lambda a, b: [torch.tensor(a + b), a * b])
    assert two(lambda a, b: [a * b, a + b]).message == "The sum comes first."
    report = two(lambda a, b: [a + b, 2 * a * b])
    assert "number 1 is right" in report.message and report.cause == "diagnosis"
    assert "you return 1" in two(lambda a, b: [a + b]).message
    assert "you return 1" in two(lambda a, b: [a + b, a * b, 0.0]).message


def test_wrong_answers_get_their_hint(square):
    assert square(lambda x: x + x).message == "You doubled."
    assert square(lambda x: x * math.inf).message == "You divided by zero."


@pytest.mark.parametrize("wrong, message", [
    (lambda x: x**3, "the first one at index [1] is 8, expected 4"),
    (lambda x: x[:1], "it returned shape (1,), expected (3,)"),
    (lambda x: "x", "it returned str"),
    (lambda x: (x, x), "it returned 2 values"),
    (lambda x: [x, x], "it returned 2 values"),
    (lambda x: x * math.nan, "is nan, expected 1"),
    (lambda x: torch.where(x < 0, math.inf, x * x), "is inf, expected 9"),
    (lambda x: x + 1j, "it returned complex numbers, expected real ones"),
    (lambda x: [1.0, 2.0], "it returned shape (2,), expected (3,)"),
])
def test_other_wrong_answers_get_the_first_difference(square, wrong, message):
    report = square(wrong)
    assert report.status == "not yet" and message in report.message, report


def test_crashes_and_lost_returns_are_named(square):
    def forgot(x): x * x
    def broken(x): return x.squared()
    def changed(x):
        x *= x
        return x
    assert "None" in square(forgot).message and "return" in square(forgot).message
    assert "AttributeError" in square(broken).message and "x.squared()" in square(broken).message
    assert "in place" in square(changed).message
    assert not any(map(square, (forgot, broken, changed)))


# ---- inputs that several runs share --------------------------------------------------------------

SHARED = torch.tensor([1.0, 2.0, math.nan, 4.0])
LISTED = torch.tensor([3.0])


@pytest.fixture
def total(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable], Report]:
    """The check of an exercise whose inputs are made once: the sum of what is no NaN."""
    def reference(x: Tensor, others: list[Tensor]) -> Tensor: return x.nansum() + others[0].sum()

    def writes(x: Tensor, others: list[Tensor]) -> Tensor: return x.nan_to_num_(5.0).sum()

    case = (SHARED, [LISTED])
    made_up = Exercise(reference, lambda: [case, case], (Mistake(writes, "You counted NaN as 5."),))
    monkeypatch.setattr(checking, "exercise", lambda name: made_up)
    return lambda f: check("made.up", f)


@pytest.mark.parametrize("how", ["x", "list", "raises"])
def test_a_function_that_writes_into_its_inputs_spoils_no_later_run(total, how):
    def spoiler(x, others):
        if how == "list": others[0].zero_()
        else: x.zero_()
        if how == "raises": raise ValueError
        return x.sum()

    def right(x, others): return x.nansum() + others[0].sum()

    before = SHARED.clone(), LISTED.clone()
    assert total(right), "the reference's own answer"
    report = total(spoiler)
    assert report.status == "not yet"
    assert ("raised ValueError" if how == "raises" else "in place") in report.message
    torch.testing.assert_close(SHARED, before[0], equal_nan=True, rtol=0, atol=0)
    assert torch.equal(LISTED, before[1])
    assert total(right), "a run before this one spoiled its inputs"


def test_a_mistake_that_writes_into_its_inputs_spoils_nothing_either(total):
    assert total(lambda x, others: torch.tensor(12.0)).message == "You counted NaN as 5."
    assert int(SHARED.isnan().sum()) == 1
    assert total(lambda x, others: torch.tensor(10.0))


def test_the_inputs_of_a_true_exercise_survive():
    """label_score of lesson 1 hands out the same mixture's tensors each time."""
    e = checking.exercise("distributions.label_score")

    def spoiler(*args):
        for a in args:
            if isinstance(a, Tensor): a.zero_()
        return torch.zeros(1)

    assert "in place" in check("distributions.label_score", spoiler).message
    assert check("distributions.label_score", e.reference)


def test_inputs_are_copied_as_they_are():
    x = torch.randn(3, 4, dtype=torch.float16).t().requires_grad_()
    copy, (number, inner) = checking._copied((x, [1, {"x": x}]))
    assert copy is not x and copy.data_ptr() != x.data_ptr() and torch.equal(copy, x)
    assert copy.requires_grad and copy.is_leaf and copy.dtype == x.dtype and copy.stride() == x.stride()
    assert number == 1 and inner["x"] is not x


# ---- reports and names ---------------------------------------------------------------------------

def test_reports_escape_what_learners_write(square):
    def tag(x): raise ValueError("<script>alert(1)</script>")
    assert "<script>" not in square(tag)._repr_html_()


@pytest.mark.parametrize("name, f, message", [
    ("nothing.here", abs, "starts with one of distributions"),
    ("distributions.nothing", abs, "distributions has distributions.gaussian_log_prob"),
    ("distributions.label_score", 3, "expected a function"),
    (abs, "distributions.label_score", "the name of an exercise is builtin_function_or_method"),
])
def test_unknown_exercises_are_named(name, f, message):
    with pytest.raises(ValueError, match=message): check(name, f)
