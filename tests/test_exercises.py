"""Every exercise: its stub is not attempted, its solution passes, each of its mistakes gets its own hint."""
from __future__ import annotations

import ast
import json
from functools import cache

import pytest
import torch
from conftest import LESSONS, NBS, SOLUTIONS, checks, code

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
