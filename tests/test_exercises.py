"""Every exercise: its stub is not attempted, its solution passes, each of its mistakes gets its own hint."""
from __future__ import annotations

import ast
import json
from collections.abc import Callable
from functools import cache, partial

import pytest
import torch
from conftest import LESSONS, NBS, SOLUTIONS, checks, code

from diffusion_course import checking
from diffusion_course.checking import LESSONS as MODULES
from diffusion_course.checking import Exercise, check, exercises, questions

EXERCISES = dict(exercises())
QUESTIONS = dict(questions())
STUBS = [(path, source, name, function)
         for path in LESSONS for source in code(path) for name, function in checks(source)]


@pytest.fixture(params=EXERCISES)
def name(request: pytest.FixtureRequest) -> str:
    """The name of each exercise."""
    return request.param


@pytest.fixture
def task(name: str) -> Exercise:
    """The exercise itself."""
    return EXERCISES[name]


@cache
def solved() -> dict[str, tuple[str, object]]:
    """For each exercise the function that its solution notebook, executed, checks last, with its name."""
    solutions = {}
    for path in SOLUTIONS:
        space = {"__name__": "__main__"}
        for source in code(path):
            exec(compile(source, path.name, "exec"), space)
            for name, function in checks(source): solutions[name] = function, eval(function, space)
    return solutions


def test_lessons_pose_the_exercises_there_are() -> None:
    assert sorted(name for _, _, name, _ in STUBS) == sorted([*EXERCISES, *QUESTIONS])


@pytest.mark.parametrize("module", MODULES)
def test_a_lesson_has_at_least_four(module: str) -> None:
    assert sum(name.startswith(f"{module}.") for name in EXERCISES) >= 4


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_question_is_open_in_the_lesson_and_answered_in_the_solution(name: str) -> None:
    source, variable = next((s, f) for _, s, n, f in STUBS if n == name)
    space: dict = {}
    assigned = [node for node in ast.parse(source).body if isinstance(node, ast.Assign)]
    exec(compile(ast.Module(assigned, []), name, "exec"), space)
    assert check(name, space[variable]).status == "not attempted"
    answers = [f for path in SOLUTIONS for s in code(path) for n, f in checks(s) if n == name]
    assert [ast.literal_eval(answer) for answer in answers] == [QUESTIONS[name].answer]


def test_stub_is_not_attempted(name: str) -> None:
    path, source, function = next((p, s, f) for p, s, n, f in STUBS if n == name)
    space = {}
    for earlier in code(path):
        for node in ast.parse(earlier).body:
            imports = isinstance(node, (ast.Import, ast.ImportFrom))
            if imports or (earlier == source and isinstance(node, ast.FunctionDef)):
                exec(compile(ast.Module([node], []), path.name, "exec"), space)
    assert check(name, eval(function, space)).status == "not attempted"


@cache
def stored() -> dict[str, str]:
    """For each exercise and question what its solution notebook shows that check said."""
    said: dict[str, str] = {}
    for path in SOLUTIONS:
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] != "code": continue
            names = [name for name, _ in checks("".join(cell["source"]))]
            shown = [output.get("data", {}).get("text/plain", "") for output in cell["outputs"]]
            texts = ["".join(lines) for lines in shown]
            said |= {name: text for name in names for text in texts if f" {name}: " in text}
    return said


@pytest.mark.parametrize("name", [*EXERCISES, *QUESTIONS])
def test_a_solution_shows_what_check_says_today(name: str) -> None:
    if name in QUESTIONS and name not in stored(): pytest.skip("its cell ends with another check")
    right = QUESTIONS[name].answer if name in QUESTIONS else EXERCISES[name].reference
    assert stored()[name] == repr(check(name, right)), "run `make lessons` on its solution"


@pytest.mark.slow
def test_solution_passes(name: str) -> None:
    stub = next(f for _, _, n, f in STUBS if n == name)
    assert name in solved(), f"no solution in {NBS / 'solutions'} calls check({name!r}, …)"
    function, solution = solved()[name]
    assert function == stub, f"the lesson asks for {stub}, the solution is called {function}"
    report = check(name, solution)
    assert report, report.message


def test_reference_passes(name: str, task: Exercise) -> None:
    report = check(name, task.reference)
    assert report, report.message


def test_there_are_three_mistakes_with_a_hint_each(task: Exercise) -> None:
    assert len(task.mistakes) >= 3
    assert len({m.hint for m in task.mistakes}) == len(task.mistakes)
    assert all(len(m.hint.split()) >= 5 for m in task.mistakes), "a hint that helps takes more words"


def test_each_mistake_is_recognised(name: str, task: Exercise) -> None:
    for mistake in task.mistakes:
        report = check(name, mistake.function)
        assert report.status == "not yet"
        assert report.message == mistake.hint, f"{mistake.function} was told: {report.message}"


def numbers(value: object) -> torch.Tensor:
    """All numbers of an output."""
    parts = value if isinstance(value, (tuple, list)) else [value]
    flat = [torch.as_tensor(p).detach().flatten() for p in parts]
    return torch.cat([torch.view_as_real(p).flatten() if p.is_complex() else p.double() for p in flat])


def test_no_mistake_catches_whatever_is_constant(task: Exercise) -> None:
    """A mistake that gives one number in all trials would be told to everyone whose function gives that number."""
    for mistake in task.mistakes:
        found = torch.cat([numbers(mistake.function(*case)) for case in task.cases()])
        assert not found.isnan().all(), f"{mistake.function.__name__} is NaN in all trials"
        if (found == found[0]).all():
            assert f" {found[0]:g}" in mistake.hint, f"the hint must say that one gets {found[0]:g} every time"


def tensors(value: object) -> list[torch.Tensor]:
    """The tensors in the arguments of trials."""
    if isinstance(value, torch.Tensor): return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
    return [t for part in parts for t in tensors(part)]


def test_trials_share_nothing_between_runs(task: Exercise) -> None:
    first, second = tensors(task.cases()), tensors(task.cases())
    places = {t.untyped_storage().data_ptr() for t in first}
    assert not [t.shape for t in second if t.untyped_storage().data_ptr() in places]


# ---- outputs beyond what one is tempted to clip ---------------------------------------------------

CLIPS: dict[str, Callable] = {f"clamp to {b}": partial(torch.clamp, min=-b, max=b) for b in (1, 2, 3)}
POSITIVE = {"abs"}
IN_ONE = {"clamp to 1", "clamp to 2", "clamp to 3"}
IN_TWO = {"clamp to 2", "clamp to 3"}
# What right answers can't be told from, for the reason at the right: the numbers asked for are never beyond
HARMLESS = {
    "distributions.floor_of": POSITIVE,  # distances
    "distributions.permutation_p": IN_ONE | POSITIVE,  # a probability
    "solvers.order": POSITIVE,  # an order
    "schedules.ddpm_levels": IN_ONE | POSITIVE,  # alpha and sigma of a path that preserves variance
    "schedules.cosine_time": IN_ONE | POSITIVE,  # a time
    "predictions.velocity_error": POSITIVE,  # an error
    "matching.cosine_loss": POSITIVE,  # a mean square
    "matching.floor_of_two": POSITIVE,  # a mean square
    "sde.picture_loss": POSITIVE,  # a mean square
    "sde.settled_variance": POSITIVE,  # a variance
    "samplers.noise_kept": IN_ONE | POSITIVE,  # a fraction
    "ddpm.respaced_betas": IN_ONE | POSITIVE,  # fractions of a variance
    "ddpm.right_variance": IN_ONE | POSITIVE,  # a fraction of a variance
    "guidance.dropped_loss": POSITIVE,  # a mean square
    "edm.density_of_t": POSITIVE,  # a density
    "edm.churn_of": POSITIVE,  # an amount of noise
    "edm.final_spread": POSITIVE,  # a standard deviation
    "couplings.straightness": POSITIVE,  # a mean square
    "couplings.greedy_cost": POSITIVE,  # a mean square
    "couplings.gaussian_w2_squared": POSITIVE,  # a square
    "couplings.meeting_loss": POSITIVE,  # a variance
    "images.loss_by_time": POSITIVE,  # mean squares
    "images.heun_images": IN_ONE,  # the last step arrives at a clipped prediction
    "training.keep_for": POSITIVE,  # a number of images, a fraction
    "training.cosine_rate": IN_ONE | POSITIVE,  # fractions of lr
    "training.uniform_loss": POSITIVE,  # a mean of losses
    "generation.vendi": POSITIVE,  # a number of images
    "evaluation.diagonal_frechet": POSITIVE,  # a squared distance
    "evaluation.coverage": IN_ONE | POSITIVE,  # a fraction
    "evaluation.copy_ratio": IN_ONE | POSITIVE,  # a ratio of the nearest to the mean
    "vae.believed_noise": POSITIVE,  # a standard deviation
    "vae.same_time": IN_ONE | POSITIVE,  # times
    "latent.stretch": POSITIVE,  # a ratio of lengths
    "few_step.shaken_std": POSITIVE,  # a standard deviation
    "inpainting.two_ups": IN_ONE | POSITIVE,  # a fraction that is kept, and its noise
    "cold.time_of": IN_ONE | POSITIVE,  # times
    "clinic.repair_1": IN_TWO,  # samples of the running mixture
    "clinic.repair_3": IN_ONE,  # images in [-1, 1]
    "clinic.repair_4": IN_TWO,  # samples of the running mixture
    "clinic.repair_6": IN_TWO,  # samples of the running mixture
    "clinic.repair_7": IN_ONE,  # sines and cosines
    "clinic.repair_12": IN_ONE | POSITIVE,  # alpha-bar
    "clinic.repair_13": IN_TWO,  # samples of the running mixture
    "clinic.repair_14": POSITIVE,  # a squared distance
    "clinic.repair_15": IN_TWO,  # samples of the running mixture
    "clinic.repair_16": IN_ONE,  # images in [-1, 1]
    "discrete.between": IN_ONE | POSITIVE,  # probabilities
    "discrete.integrand": POSITIVE,  # minus a logarithm of a probability, weighted
}


def clipped(value: object, clip: Callable) -> object:
    """An output with its real numbers clipped."""
    if isinstance(value, (tuple, list)): return type(value)(clipped(v, clip) for v in value)
    if isinstance(value, torch.Tensor): return clip(value) if value.is_floating_point() else value
    return clip(torch.tensor(value, dtype=torch.float64)) if isinstance(value, float) else value


def test_an_answer_clipped_at_the_end_is_refused(name: str, task: Exercise) -> None:
    """A learner who clips images out of habit must hear of it: some output lies beyond each limit."""
    expected = checking._expected(task)
    if not any(t.is_floating_point() for o in expected for t in checking._as_tensors(o) or []): return
    passed = {label for label, clip in (CLIPS | {"abs": torch.abs}).items()
              if all(checking._agree(clipped(o, clip), o, task) for o in expected)}
    assert passed == HARMLESS.get(name, set()), f"{passed} at the end of the solution would be called solved"


@pytest.mark.parametrize("module", MODULES)
def test_most_hints_ask_back(module: str) -> None:
    """A hint says what is seen and asks a question that leads on; few may say the answer."""
    hints = [m.hint for name, e in EXERCISES.items() if name.startswith(f"{module}.") for m in e.mistakes]
    assert sum("?" in hint for hint in hints) >= 0.6 * len(hints), [hint for hint in hints if "?" not in hint]
