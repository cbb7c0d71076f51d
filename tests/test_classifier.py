"""The classifier: seeding, what it takes, and moving images. Its scores are tested with the evaluation."""
from __future__ import annotations

import pytest
import torch
from helpers import normal, rng

from diffusion_course.classifier import Classifier, ClassifierConfig, shifted

SMALL = ClassifierConfig(shape=(1, 8, 8), stem=8, widths=(16, 32), blocks=(0, 1))


def test_weights_are_seeded_and_nothing_else_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(seed: int) -> None: raise AssertionError("a seed of weights must not reach other devices")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", fail)
    monkeypatch.setattr(torch.mps, "manual_seed", fail)
    before = torch.get_rng_state()
    a, same, other = Classifier(SMALL, 3), Classifier(SMALL, 3), Classifier(SMALL, 4)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(a.last.weight, same.last.weight) and not torch.equal(a.last.weight, other.last.weight)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_images_and_networks_of_any_precision(dtype: torch.dtype) -> None:
    net = Classifier(SMALL).eval()
    x = normal(2, 1, 8, 8).to(dtype)
    expected = net(x.float())
    torch.testing.assert_close(net(x), expected)
    torch.testing.assert_close(net.to(dtype)(x.float()).float(), expected, atol=0.05, rtol=0.05)


def test_bytes_and_other_shapes_are_named() -> None:
    net = Classifier(SMALL).eval()
    message = r"x is torch.uint8 .*: expected floating-point numbers of shape \(B, 1, 8, 8\)"
    with pytest.raises(ValueError, match=message): net(torch.zeros(2, 1, 8, 8).byte())
    with pytest.raises(ValueError, match=r"x is torch.float32 of shape \(2, 3, 8, 8\)"):
        net(torch.zeros(2, 3, 8, 8))


@pytest.mark.parametrize("wrong, message", [
    (dict(shape=(3, 32)), "shape is .3, 32.: expected .C, H, W., multiples of 8"),
    (dict(shape=(3, 32, 20)), "shape is"),
    (dict(widths=(), blocks=()), "widths is ..: expected one or more positive numbers"),
    (dict(blocks=(1,)), "blocks is .1,.: expected a number >= 0 for each width"),
    (dict(blocks=(1, -1, 0)), "blocks is"),
    (dict(blocks=()), "blocks is"),
    (dict(n_labels=1), "n_labels is 1: expected 2 or more"),
])
def test_configurations_that_are_impossible(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message): ClassifierConfig(**wrong)


def test_images_are_moved_by_at_most_so_many_pixels() -> None:
    x = torch.arange(64.0).reshape(1, 1, 8, 8).expand(200, 1, 8, 8)
    moved = shifted(x, 2, rng())
    middle = moved[:, 0, 4, 4]  # 8 rows down and 1 column right add 8 and 1
    steps = {divmod(int(value) - 36 + 18, 8) for value in middle}
    assert steps == {(down, right) for down in range(5) for right in range(5)}
    assert torch.equal(shifted(x, 0, rng()), x) and torch.equal(moved, shifted(x, 2, rng()))
    assert shifted(x.to("meta"), 2, rng()).device.type == "meta", "a generator draws where it lives"


@pytest.mark.parametrize("max_shift", [-1, 8])
def test_moves_beyond_the_image_are_refused(max_shift: int) -> None:
    with pytest.raises(ValueError, match=f"max_shift is {max_shift}: expected 0 to 7 pixels"):
        shifted(torch.zeros(1, 1, 8, 8), max_shift, rng())
