"""Former names: they lead to the new ones, with a warning that says so at the line that asks."""
from __future__ import annotations

import sys
import importlib
import types
import warnings
from collections.abc import Iterator

import pytest

from diffusion_course import images
from diffusion_course.former import former


@pytest.fixture
def shapes() -> Iterator[types.ModuleType]:
    """A module with a class that was renamed."""
    module = types.ModuleType("shapes")
    module.Circle = type("Circle", (), {})
    module.__getattr__ = former("shapes", Round="Circle", Lost="Nowhere")
    sys.modules["shapes"] = module
    yield module
    del sys.modules["shapes"]


def test_a_former_name_is_the_new_one_and_warns(shapes: types.ModuleType) -> None:
    with pytest.warns(DeprecationWarning, match=r"^shapes\.Round is now called Circle") as caught:
        assert shapes.Round is shapes.Circle
    assert [w.filename for w in caught] == [__file__], "the warning names who asked"
    with pytest.warns(DeprecationWarning, match="Circle") as caught:
        from shapes import Round
    assert Round is shapes.Circle and [w.filename for w in caught] == [__file__]


def test_new_names_do_not_warn(shapes: types.ModuleType) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from shapes import Circle
        assert shapes.Circle is Circle


def test_other_names_are_missing_as_ever(shapes: types.ModuleType) -> None:
    assert not hasattr(shapes, "Square")
    with pytest.raises(AttributeError, match="module 'shapes' has no attribute 'Square'"):
        shapes.Square  # noqa: B018
    with pytest.raises(ImportError, match="Square"):
        from shapes import Square  # noqa: F401


def test_labelled_images_were_once_called_pictures() -> None:
    with pytest.warns(DeprecationWarning, match=r"diffusion_course\.images\.Pictures is now called Images"):
        from diffusion_course.images import Pictures
    assert Pictures is images.Images
    assert "Pictures" not in images.__all__


@pytest.mark.parametrize(("module", "old", "new"), [
    ("training", "TrainConfig", "DenoiserRecipe"), ("evaluation", "ClassifyConfig", "ClassifierRecipe"),
    ("evaluation", "compare", "compare_features"), ("vae", "VAETrainConfig", "VAERecipe"),
    ("vae", "Posterior", "DiagonalGaussian"), ("latent", "LatentConfig", "LatentRecipe"),
    ("latent", "DecoderTrainConfig", "DecoderRecipe"), ("cold", "ColdConfig", "ColdRecipe"),
    ("few_step", "ReflowConfig", "ReflowRecipe"), ("few_step", "DistilConfig", "ConsistencyRecipe"),
    ("generation", "as_pictures", "as_images"), ("inpainting", "checked", "as_mask"),
    ("plots", "SHARES", "MASS_FRACTIONS"),
])
def test_every_former_name_leads_to_the_new_one(module, old, new):
    module = importlib.import_module(f"diffusion_course.{module}")
    with pytest.warns(DeprecationWarning, match=f"{old} is now called {new}"): former_thing = getattr(module, old)
    assert former_thing is getattr(module, new) and old not in module.__all__
