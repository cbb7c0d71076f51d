"""What the tools count, list and ask for."""
from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import ship
from code_table import Repo, Source, attribute_lines, explained, guards_before, longer_than
from code_table import opens_with_what_it_computes, signature_comments, tuple_assignments, unexplained, untyped
from code_table import written_before
from lowest_versions import lowest_versions


def places(find, text: str) -> list[str]:
    """What is found in a module of this text."""
    return find([Source("diffusion_course/m.py", text)])


# ---- code_table ----------------------------------------------------------------------------------

def test_lines_and_statements_are_found_where_they_are() -> None:
    text = "a, b = x, y\na, b = f(x)\n(a, b), c = pair, 1\nd = getattr(a, 'b', hasattr(a, 'c'))\n"
    assert places(tuple_assignments, text) == ["diffusion_course/m.py:1", "diffusion_course/m.py:3"]
    assert places(attribute_lines, text) == ["diffusion_course/m.py:4"]
    assert longer_than(30, [Source("m", text)]) == ["m:4"]
    exported = "x = 10000000\n\n# %% auto #0\n__all__ = ['a', 'b',\n           'c']\n"
    assert longer_than(11, [Source("m", exported)]) == ["m:1", "m:3"]


def test_guards_count_above_the_algorithm_only() -> None:
    text = '''
def check(x):
    if x: raise ValueError("x")
    if not x:
        raise ValueError("no x")
    if x is None: raise TypeError("x")
    if x: return x

def euler_step(x):
    if x: raise ValueError("x")
'''
    assert guards_before("euler_step", Source("m", text)) == ["m:3", "m:4", "m:5"]


def test_comments_in_signatures_are_those_of_parameters_and_results() -> None:
    text = '''
def f(
    x: int,  # (n,)
    # a line of its own
    y: int = 0,  # noqa: F1
) -> int:  # what comes back
    # not this
    return x  # nor this

def g(x): return x  # nor this
'''
    assert places(signature_comments, text) == [f"diffusion_course/m.py:{k}" for k in (3, 4, 6)]


def test_args_and_attributes_explain() -> None:
    docstring = """What it does.

    Not here: this is prose.

    Args:
        x: (n,) points,
            lambda: a continuation is no name.
        a, b: a pair.
        *more (int): the rest.
        **cond: conditions.

    Returns:
        z: no parameter.
    """
    assert explained(inspect.cleandoc(docstring)) == {"x", "a", "b", "more", "cond"}
    assert explained(None) == set()


def test_parameters_without_a_word_are_named() -> None:
    text = '''
from dataclasses import dataclass

def f(x, *, seed=0, _private=1):
    """Does.

    Args:
        x: points.
    """

def _hidden(x): ...

@dataclass
class Scene:
    """A scene.

    Attributes:
        size: in pixels.
    """
    size: int
    loop: bool = True
    _cache: int = 0

    def save(self, path, size): "Writes."
    def _load(self, path): ...

@settings
class Config:
    """Settings."""
    kind: ClassVar[str] = "x"
    steps: int = option(1, "how many")
    seed: int = 0

class Net(Base):
    """A network.

    Args:
        width: of it.
    """
    def __init__(self, width, depth): ...
    def forward(self, x, t): ...
    def __call__(self, x): "Applies."
'''
    assert places(unexplained, text) == [
        "m.f: seed", "m.Scene: loop", "m.Scene.save: path", "m.Config: seed", "m.Net: depth",
        "m.Net.__call__: x",
    ]


def test_untyped_functions_are_named() -> None:
    text = '''
def f(x: int) -> int: ...
def g(x: int): ...
def h(x, y: int) -> int: ...
class C:
    def m(self, x: int) -> int: ...
    def n(self, **cond) -> int: ...
    def _p(self, x): ...
'''
    assert places(untyped, text) == ["m.g", "m.h", "m.C.n"]


@pytest.mark.parametrize("docstring, lesson, toolbox", [
    ("x_t = alpha x1 + sigma eps: schedules.", True, True),
    ("Solves u(x, t).", True, True),
    ("E|x|² of points.", True, True),
    ("From noise → data.", True, True),
    ("Files that appear whole, or not at all.", False, True),  # `whole_file`
    ("Reads settings.", False, True),
    ("One look for all. x = 1.", False, False),
    ("The command: `lab(x)`.", False, False),
    ("", False, False),
])
def test_a_module_opens_with_what_it_computes(docstring: str, lesson: bool, toolbox: bool) -> None:
    module = Source("m.py", f'"""{docstring}"""\ndef whole_file(): ...\n' if docstring else "x = 1\n")
    assert opens_with_what_it_computes(module, True) is lesson
    assert opens_with_what_it_computes(module, False) is toolbox


def test_notebooks_are_read_without_lines_of_ipython(tmp_path: Path) -> None:
    cells = '[{"cell_type": "code", "id": "a", "source": ["%matplotlib\\n", "x = 1"]}, {"cell_type": "markdown"}]'
    (tmp_path / "n.ipynb").write_text(f'{{"cells": {cells}}}', encoding="utf-8")
    assert Repo(tmp_path).cells("*.ipynb") == [Source("n.ipynb [a]", "\nx = 1")]


def test_the_column_before_is_kept() -> None:
    page = "text\n| | at most | before | now |\n|---|---|---|---|\n| a b | 6 % | 7.1 % | 3.0 % |\n"
    assert written_before(page)["a b"] == "7.1 %"


# ---- lowest_versions and ship --------------------------------------------------------------------

def test_a_requirement_without_a_lower_bound_is_named(tmp_path: Path) -> None:
    settings = tmp_path / "settings.ini"
    lists = "lab_requirements = c>=3\nhub_requirements ="
    settings.write_text(f"[DEFAULT]\nrequirements = a>=1.2 b-c>=2\n{lists}\n", encoding="utf-8")
    assert lowest_versions(settings) == ["a==1.2", "b-c==2", "c==3"]
    settings.write_text(f"[DEFAULT]\nrequirements = a>=1.2 b<3\n{lists}\n", encoding="utf-8")
    with pytest.raises(ValueError, match="b<3 has no lower bound"): lowest_versions(settings)


@pytest.mark.parametrize("command", [[], ["images"], ["vae"], ["latent"], ["few-step"], ["flow-map"], ["tokens"]])
def test_ship_says_what_it_expects(command: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end: ship.main([*command, "--help"])
    assert end.value.code == 0 and "usage" in capsys.readouterr().out


def test_ship_takes_the_flow_map_and_not_its_autoencoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from diffusion_course.checkpoints import WEIGHTS, info, load, write_tensors

    run, source = tmp_path / "run", WEIGHTS / "flow-map.safetensors"
    run.mkdir()
    (run / "model.safetensors").write_bytes(source.read_bytes())
    write_tensors(run / "state.safetensors", {"x": torch.zeros(1)}, dict(config=info(source)["config"]))
    monkeypatch.setattr(ship, "WEIGHTS", tmp_path)
    ship.main(["flow-map", str(run)])
    assert type(load(tmp_path / "flow-map.safetensors").net) is type(load(source).net)


def test_ship_copies_a_model_with_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusion_course.checkpoints import WEIGHTS, info, load

    monkeypatch.setattr(ship, "WEIGHTS", tmp_path)
    run = tmp_path / "run"
    (run / "stages").mkdir(parents=True)
    for k in ("000000064", "000000128"): (run / "stages" / f"{k}.safetensors").touch()
    assert ship.newest(run) == run / "stages" / "000000128.safetensors"
    (run / "model.safetensors").touch()
    assert ship.newest(run) == run / "model.safetensors"
    seen = []
    ship.ship(WEIGHTS / "digits.safetensors", "copy", seen.append, quality="good")
    about = info(tmp_path / "copy.safetensors")
    assert about["quality"] == "good" and "--folder" not in about["command"] and len(seen) == 1
    assert type(load(tmp_path / "copy.safetensors")) is type(seen[0])
