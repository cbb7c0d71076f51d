"""Diagnoses of wrong answers: each is said where it is true, and to those who made that mistake."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from diffusion_course import checking
from diffusion_course.checking import Exercise, Mistake, Report, check, normal, uniform
from diffusion_course.relations import of_shape


def judge(
    monkeypatch: pytest.MonkeyPatch, reference: Callable, cases: Callable[[], list[tuple]], f: Callable
) -> Report:
    """What the check of an exercise made up for the test says of f."""
    made_up = Exercise(reference, cases, ())
    monkeypatch.setattr(checking, "exercise", lambda name: made_up)
    monkeypatch.setattr(checking, "_STRICT", True)
    return check("made.up", f)


# ---- the path: x1, eps of shape (B, D), t of shape (B,), a number w ------------------------------


def path(x1: Tensor, eps: Tensor, t: Tensor, w: float) -> Tensor:
    t = t[:, None]
    return w * t**2 * x1 + (1 - t) * eps


def path_cases() -> list[tuple]:
    return [
        (normal(4, 3, seed=k), normal(4, 3, seed=k + 5), uniform(4, seed=k), w) for k, w in ((0, 2.0), (1, 1.0))
    ]


def mixes(x1: Tensor, eps: Tensor, t: Tensor, w: float) -> Tensor:
    return path(x1, eps, t, w) + 0.1 * x1.mean(0)


def nan_at_first(x1: Tensor, eps: Tensor, t: Tensor, w: float) -> Tensor:
    return path(x1, eps, t, w).index_fill(0, torch.tensor([0]), math.nan)


def last_only(x1: Tensor, eps: Tensor, t: Tensor, w: float) -> Tensor:
    right = path(x1, eps, t, w)
    return torch.cat([right[:-1].sin() + 3 * w * t[:-1, None], right[-1:]])


PATH = [
    (lambda x1, eps, t, w: -path(x1, eps, t, w), "wrong sign"),
    (lambda x1, eps, t, w: math.sqrt(2) * path(x1, eps, t, w), "is √2 times what is expected"),
    (lambda x1, eps, t, w: path(x1, eps, t, w) / 2, "is 1/2 times what is expected"),
    (lambda x1, eps, t, w: path(x1, eps, t, w) - 0.25, "0.25 too small, everywhere"),
    (lambda x1, eps, t, w: path(x1, eps, t, w).square(), "the square of what is expected"),
    (lambda x1, eps, t, w: eps, "hand back `eps`"),
    (lambda x1, eps, t, w: 0 * x1, "0 everywhere"),
    (lambda x1, eps, t, w: 0 * x1 + 7, "7 in all trials and places"),
    (lambda x1, eps, t, w: path(eps, x1, t, w), "right if `x1` and `eps` changed places"),
    (lambda x1, eps, t, w: path(x1, eps, 1 - t, w), "right for 1 - `t` in place of `t`"),
    (lambda x1, eps, t, w: path(x1, eps, t, 2 * w), "right for 2 `x1` in place of `x1`"),
    (lambda x1, eps, t, w: path(x1, eps, t, w).flip(0), "reverse order along axis 0"),
    (lambda x1, eps, t, w: path(x1, eps, t, w).roll(1, 1), "shifted by one place along axis 1"),
    (lambda x1, eps, t, w: w * w * path(x1, eps, t, w), "another in each trial (4, 1)"),
    (lambda x1, eps, t, w: 3 * w * path(x1, eps, t, w), "another in each trial (6, 3)"),
    (lambda x1, eps, t, w: t.exp()[:, None] * path(x1, eps, t, w), "another one for each entry of the first axis"),
    (lambda x1, eps, t, w: path(x1, eps, t, w) + t[:, None] * eps, "a multiple of `eps`"),
    (lambda x1, eps, t, w: path(x1, eps, t, 0.7), "stays the same when `w` changes"),
    (mixes, "When only the last sample changes"),
    (nan_at_first, "the others are right"),
    (last_only, "Only the last entry along axis 0 is right"),
    (lambda x1, eps, t, w: path(x1, eps, t, w) + 0.1j, "The real part of your answer is right"),
    (lambda x1, eps, t, w: (path(x1, eps, t, w), w), "you return 2. Your value 1 is right"),
    (lambda x1, eps, t, w: path, "Should it be called?"),
    (lambda x1, eps, t, w: path(x1, eps, t, w) + torch.rand(()), "another answer each time"),
    (lambda x1, eps, t, w: path(x1, eps, t, w).T, "axes are swapped"),
    (lambda x1, eps, t, w: path(x1, eps, t, w).sum(), "one number for all"),
    (lambda x1, eps, t, w: path(x1, eps, t, w)[:-1], "Axis 0 is too short by 1"),
    (lambda x1, eps, t, w: path(x1, eps, t, w)[None], "The values are right, the shape is not"),
    (lambda x1, eps, t, w: path(x1, eps, t, w).clamp(-0.5, 0.5), "never leaves that range"),
    (lambda x1, eps, t, w: 1.001 * path(x1, eps, t, w) + 1e-3 * eps**2, "Close, but not equal"),
]


@pytest.mark.parametrize("wrong, said", PATH, ids=[said for _, said in PATH])
def test_a_wrong_path_is_told_what_is_wrong(monkeypatch, wrong, said):
    report = judge(monkeypatch, path, path_cases, wrong)
    assert report.status == "not yet" and report.cause in ("diagnosis", "random")
    assert said in report.message, report.message


def test_nothing_is_said_where_nothing_simple_is_true(monkeypatch):
    def right(x):
        return (x + 1).sin() * x.exp()

    def wrong(x):
        return (3 * x + 1).cos() + 1.7 * x**2

    report = judge(monkeypatch, right, lambda: [(normal(9, seed=0),)], wrong)
    assert report.cause == "difference", report


# ---- one number for each sample, and one for all -------------------------------------------------


def test_powers_of_arguments_are_counted(monkeypatch):
    def weight(alpha, sigma):
        return alpha**2 / sigma

    def cases():
        return [(0.1 + uniform(6, seed=0), 0.2 + 3 * uniform(6, seed=1))]

    report = judge(monkeypatch, weight, cases, lambda alpha, sigma: 2 * alpha**2 / sigma**2)
    assert "times 2 · `sigma`^-1:" in report.message
    report = judge(monkeypatch, weight, cases, lambda alpha, sigma: alpha * sigma)
    assert "`alpha`^-1 · `sigma`^2" in report.message


def test_a_sum_that_should_be_a_mean(monkeypatch):
    def cases():
        return [(normal(4, 3, seed=0),), (normal(5, 2, seed=1),)]

    def loss(x):
        return x.square().mean(1)

    assert "sum that should be a mean" in judge(monkeypatch, loss, cases, lambda x: x.square().sum(1)).message
    report = judge(monkeypatch, lambda x: x.var(0), cases, lambda x: x.var(0, unbiased=False))
    assert "(n - 1) / n times" in report.message and "`x` along axis 0" in report.message


def test_the_value_that_is_wrong_is_named(monkeypatch):
    def both(x):
        return x.mean(), x.square().mean(0)

    def cases():
        return [(normal(4, 3, seed=0),), (normal(5, 2, seed=1),)]

    report = judge(monkeypatch, both, cases, lambda x: (x.mean(), -x.square().mean(0)))
    assert "number 1 is right. Number 2: The right numbers with the wrong sign" in report.message


def test_scaling_is_compared(monkeypatch):
    def size(x):
        return (x.square().sum() + 0).sqrt()

    def cases():
        return [(normal(n, seed=n),) for n in (3, 4, 5)]

    report = judge(monkeypatch, size, cases, lambda x: x.abs().sum() ** 2 / 3 + 0 * x.max())
    assert "When `x` is doubled, what is expected becomes 2 times as large; yours becomes 4 times" in report.message


def test_nothing_negative_and_limits(monkeypatch):
    def cases():
        return [(normal(9, seed=0),), (normal(8, seed=3),)]

    kept = judge(monkeypatch, lambda x: x.clamp(-1, 1), cases, lambda x: x)
    assert "hand back" in kept.message
    report = judge(monkeypatch, lambda x: (2 * x + 0.1).clamp(-1, 1), cases, lambda x: 2 * x + 0.1)
    assert "not kept within [-1, 1]" in report.message


# ---- functions among the arguments ---------------------------------------------------------------


def midpoint(u: Callable, x: Tensor, t: float, s: float) -> Tensor:
    half = x + (s - t) / 2 * u(x, t)
    return x + (s - t) * u(half, (s + t) / 2)


def step_cases() -> list[tuple]:
    def field(x: Tensor, t: float) -> Tensor:
        return x.sin() + t * x.roll(1, -1)

    return [(field, normal(3, 2, seed=0), 0.1, 0.4), (field, normal(4, 2, seed=1), 0.5, 0.4)]


def too_much_of_the_first(u: Callable, x: Tensor, t: float, s: float) -> Tensor:
    first = u(x, t)
    return x + (s - t) * u(x + (s - t) / 2 * first, (s + t) / 2) + 0.3 * (s + t) * first


@pytest.mark.parametrize(
    "wrong, said",
    [
        (lambda u, x, t, s: x + (s - t) * u(x, t), "You call `u` once, the solution 2 times"),
        (lambda u, x, t, s: x + (s - t) * u(x + (s - t) / 2 * u(x, t), t), "In call 2 of `u`, argument 2"),
        (lambda u, x, t, s: x + s - t, "You never call `u`"),
        (lambda u, x, t, s: 2 * midpoint(u, x, t, s) - x, "is 2 times the one that is expected"),
        (too_much_of_the_first, "a multiple of what call 1 of `u` returns"),
    ],
)
def test_calls_are_compared(monkeypatch, wrong, said):
    message = judge(monkeypatch, midpoint, step_cases, wrong).message
    assert said in message, message


# ---- what raises ---------------------------------------------------------------------------------


def test_errors_show_what_the_names_in_the_line_are(monkeypatch):
    def unshaped(x1, eps, t, w):
        return t * x1

    def no_number(x1, eps, t, w):
        return x1 + w[0]

    def root(x1, eps, t, w):
        return math.sqrt(-w) * x1

    report = judge(monkeypatch, path, path_cases, unshaped)
    assert report.cause == "explained"
    assert "t is a tensor of shape (4,)" in report.message and "matched from the last one" in report.message
    assert "w is 2" in judge(monkeypatch, path, path_cases, no_number).message
    assert "not negative" in judge(monkeypatch, path, path_cases, root).message


def test_other_parameters_are_named(monkeypatch):
    report = judge(monkeypatch, path, path_cases, lambda x1, eps: x1)
    assert report.cause == "signature" and "keep the parameters of the stub, (x1" in report.message
    report = judge(monkeypatch, path, path_cases, lambda *args, scale=1.0: scale * path(*args))
    assert report, "parameters with defaults and any others are welcome"


def test_a_mistake_may_be_recognised_by_what_it_raises(monkeypatch):
    known = Mistake(lambda x1, eps, t, w: t * x1 + eps, "t meets the last axis: give it another one.")
    made_up = Exercise(path, path_cases, (known,))
    monkeypatch.setattr(checking, "exercise", lambda name: made_up)
    assert check("made.up", lambda x1, eps, t, w: t * x1 + eps).message == known.hint
    assert check("made.up", lambda x1, eps, t, w: x1[9]).cause == "explained"


# ---- whole numbers, bytes, sparse tensors, long loops --------------------------------------------


def test_whole_numbers_are_compared_exactly(monkeypatch):
    def cost(n):
        return 12_415_139_840 * n

    def cases():
        return [(1,), (3,), (4,)]

    assert judge(monkeypatch, cost, cases, lambda n: float(cost(n)))
    report = judge(monkeypatch, cost, cases, lambda n: cost(n) + n)
    assert report.status == "not yet" and "12,415,139,841, expected 12,415,139,840" in report.message


def test_numbers_that_look_alike_are_shown_to_more_digits(monkeypatch):
    report = judge(monkeypatch, lambda x: 177_401.3131, lambda: [(1.0,)], lambda x: 177_430.4)
    assert "177,430.4, expected 177,401.3" in report.message


@pytest.mark.parametrize("dtype, name", [(torch.uint8, "bytes"), (torch.bool, "truth values")])
def test_bytes_and_truth_values_must_be_these(monkeypatch, dtype, name):
    def reference(x):
        return (x > 0).to(dtype)

    def cases():
        return [(normal(5, seed=0),)]

    assert judge(monkeypatch, reference, cases, lambda x: (x > 0).to(dtype))
    report = judge(monkeypatch, reference, cases, lambda x: (x > 0).double())
    assert "type is not" in report.message and name in report.message


def test_sparse_answers_and_expected_nan(monkeypatch):
    def cases():
        return [(normal(5, 3, seed=0),)]

    assert judge(monkeypatch, lambda x: x.relu(), cases, lambda x: x.relu().to_sparse())
    report = judge(monkeypatch, lambda x: x.log(), cases, lambda x: x.log() + (x > 1))
    assert "expected nan" not in report.message and report.status == "not yet"


def test_a_loop_that_changed_inputs_make_endless_ends(monkeypatch):
    def halvings(x, least):
        n = 0
        while x > least:
            x, n = x / 2, n + 1
        return n

    def wrong(x, least):
        n = 2
        while x != least:
            x, n = x / 2, n + 1
            if x < 0:
                break
        return n

    report = judge(monkeypatch, halvings, lambda: [(8.0, 1.0), (16.0, 4.0), (32.0, 1.0)], wrong)
    assert report.status == "not yet" and "2 too large" in report.message


def test_a_long_run_is_announced(monkeypatch, capsys):
    import time

    monkeypatch.setattr(checking, "_SECONDS", 0.05)

    def slow(x1, eps, t, w):
        time.sleep(0.2)
        return path(x1, eps, t, w)

    assert judge(monkeypatch, path, path_cases, slow)
    said = capsys.readouterr().out
    assert "still at work" in said and "interrupt" in said


# ---- shapes --------------------------------------------------------------------------------------


def same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b)


def test_shapes_are_told_apart():
    x = normal(4, 3, seed=0)
    wanted = x.sum(1)
    crossed = torch.stack([wanted + k for k in range(4)], 1) - torch.arange(4.0)[None]
    assert "every other one" in of_shape(crossed.T + 0, wanted, same).lower() or "met every other" in of_shape(
        torch.diag(wanted) + 0.0, wanted, same
    )
    assert "mean would be right" in of_shape(x, x.mean(), same)
    assert "sum would be right" in of_shape(x, x.sum(), same)
    assert "axis of length 4 is gone" in of_shape(x[0], x, same)
    for n, m in pairwise((3, 4, 5)):
        assert f"by {m - n}" in of_shape(torch.zeros(m, 2), torch.zeros(n, 2), same)


# ---- what is not said ------------------------------------------------------------------------------------------------


def drawn(weights: Tensor, u: Tensor, z: Tensor) -> Tensor:
    """One of a few by a threshold, and noise: most small changes of `u` and `weights` change nothing."""
    return torch.searchsorted(weights.cumsum(0), u).clamp(max=2).double() * 2 - 1 + z


def test_of_thresholds_nothing_is_told_from_chance(monkeypatch) -> None:
    wrong = lambda weights, u, z: torch.searchsorted(weights.cumprod(0), u).clamp(max=2).double() * 2 - 1 + z
    weights = torch.tensor([0.3, 0.32, 0.38], dtype=torch.float64)
    cases = lambda: [(weights, uniform(n, seed=n), normal(n, seed=n + 1)) for n in (12, 9)]
    report = judge(monkeypatch, drawn, cases, wrong)
    said = report.message
    assert report.status == "not yet"
    assert "becomes right when" not in said and "in place of" not in said and "what is expected does not" not in said


def test_a_place_is_not_taken_for_a_value(monkeypatch) -> None:
    betas = torch.linspace(0.0001, 0.02, 8, dtype=torch.float64)
    report = judge(
        monkeypatch, lambda betas: (1 - betas).cumprod(0), lambda: [(betas,), (2 * betas[:6],)],
        lambda betas: (1 - betas).cumsum(0),
    )
    assert "Only the first entry" in report.message and "at most" not in report.message


def test_a_walk_that_leaves_the_path_is_told_after_which_call(monkeypatch) -> None:
    def walk(u, x, ts, scale=1.0):
        for t, s in pairwise(ts.tolist()): x = x + scale * (s - t) * u(x, t)
        return x

    u = lambda x, t: x.sin() + t
    cases = lambda: [(u, normal(4, 2, seed=k), torch.linspace(0, 1, 4 + k).double()) for k in (0, 1)]
    report = judge(monkeypatch, lambda u, x, ts: walk(u, x, ts), cases, lambda u, x, ts: walk(u, x, ts, 0.9))
    assert "right up to number 1" in report.message and "Where should" not in report.message


def test_gaps_in_what_is_given_stop_no_diagnosis(monkeypatch) -> None:
    rows = normal(4, 3, seed=1)
    rows[0, 1] = rows[2, 0] = math.nan
    cases = lambda: [(rows, normal(4, 3, seed=2)), (2 * rows, normal(4, 3, seed=3))]
    report = judge(
        monkeypatch, lambda rows, x: torch.where(rows.isnan(), x.sin(), rows), cases, lambda rows, x: x.exp()
    )
    assert report.status == "not yet" and report.message
