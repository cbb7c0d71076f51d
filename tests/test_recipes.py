"""Settings of trainings: a number that is none, or out of its range, is refused at once."""
from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from diffusion_course import cli, few_step, flow_maps
from diffusion_course.few_step import ReflowRecipe
from diffusion_course.flow_maps import FlowMapRecipe
from diffusion_course.training import Recipe, Run

RECIPES = {type(recipe).__name__: recipe for recipe in (*cli.presets().values(), Recipe())}
NUMBERS: dict[str, tuple[Any, ...]] = {
    "int": (-1, 1.5, float("nan"), float("inf"), "x", "3", None, [1, 2], 10**400),
    "float": (float("nan"), float("inf"), -float("inf"), "x", "0.5", None, [0.1, 0.2], 10**400),
}
OTHERS: dict[str, tuple[Any, ...]] = {
    "bool": ("no", 2, None),
    "str": (5, None),
    "tuple[int, ...]": (5, None, (1.5,), (float("nan"),), (float("inf"),), ("x",)),
    "tuple[float, float]": (5, None, (0.5,), (0.5, float("nan")), (0.5, "x")),
}
FIELDS = [
    pytest.param(name, field.name, value, id=f"{name}.{field.name}={str(value)[:12]}")
    for name, recipe in RECIPES.items()
    for field in dataclasses.fields(recipe)
    if (field.type in NUMBERS or type(recipe) is Recipe)
    and field.name in inspect.get_annotations(type(recipe))  # its own
    for value in (NUMBERS | OTHERS).get(str(field.type), ())
]


def test_every_kind_of_recipe_is_here() -> None:
    kinds, known = [Recipe], set()
    for kind in kinds:
        kinds += kind.__subclasses__()
        if kind.__module__.startswith("diffusion_course."): known.add(kind.__name__)
    assert known - set(RECIPES) <= {"DecoderRecipe"}


@pytest.mark.parametrize("name, field, value", FIELDS)
def test_values_that_are_none_are_refused(name: str, field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"^{field} is .*: expected"):
        dataclasses.replace(RECIPES[name], **{field: value})


@pytest.mark.parametrize("name", RECIPES)
def test_numbers_of_other_types_become_those_of_python(name: str) -> None:
    values = dict(images=1e4, batch=torch.tensor(8), lr=torch.tensor(0.5), clip=1)
    changed = vars(dataclasses.replace(RECIPES[name], **values))
    assert [changed[k] for k in values] == [10_000, 8, 0.5, 1.0]
    assert [type(changed[k]) for k in values] == [int, int, float, float]


def test_paths_may_be_paths(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    paths = dict(data=tmp_path / "images", start=tmp_path / "m.safetensors")
    recipe = dataclasses.replace(RECIPES["ImagesRecipe"], **paths)
    assert [recipe.data, recipe.start] == [str(path) for path in paths.values()]


@pytest.mark.parametrize("kind, module", [(ReflowRecipe, few_step), (FlowMapRecipe, flow_maps)])
def test_a_teacher_draws_where_the_training_computes(
    kind: type[ReflowRecipe], module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`--device cpu` is meant for the teacher too, with an accelerator at hand."""
    class Loaded(Exception):
        "The teacher is wanted on a device."

    def stop(name: str, device: str | torch.device) -> None: raise Loaded(str(device))

    monkeypatch.setattr(module, "load", stop)
    recipe = kind(teacher="digits", kept=str(tmp_path), pair_steps=8)
    with pytest.raises(Loaded, match="cpu"): Run(recipe, tmp_path, Accelerator(cpu=True))
    with pytest.raises(Loaded, match="auto"): recipe.pictures()
