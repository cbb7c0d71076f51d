"""Seeded generators and weights: what depends on a seed, and what doesn't; stratified numbers; the normal quantile."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from helpers import rng
from scipy.stats import norm
from torch import Tensor, nn

from diffusion_course.images import DenoiseNet
from diffusion_course.seeds import normal_quantile, seeded, seeded_weights, stratified
from diffusion_course.matching import MLP
from diffusion_course.unet import UNet, UNetConfig

SMALL = UNetConfig(shape=(1, 8, 8), widths=(16,), attention=(), head=16, patch=1, embedding="fourier")


# ---- generators ------------------------------------------------------------------------------------

def test_a_generator_follows_from_its_numbers_in_their_order() -> None:
    draw = lambda *numbers: torch.rand(3, generator=seeded("cpu", *numbers)).tolist()
    assert draw(1, 2) == draw(1, 2)
    assert len({tuple(draw(*numbers)) for numbers in ((0,), (1,), (1, 2), (2, 1), (0, 1), (1, 2, 3))}) == 6
    assert draw(1, 2, 0) == draw(1, 2), "as its docstring says"
    state = np.random.SeedSequence((1, 2)).generate_state(2, np.uint32)
    assert seeded("cpu", 1, 2).initial_seed() == (int(state[0]) | int(state[1]) << 32) >> 1


# ---- weights ---------------------------------------------------------------------------------------

def layers() -> list[Tensor]:
    """Weights of several kinds, in the order in which they are drawn."""
    modules = nn.Conv2d(3, 8, 3), nn.Linear(5, 4), nn.Embedding(3, 2), nn.BatchNorm2d(4)
    return [p.detach() for m in modules for p in m.parameters()] + [torch.randn(3)]


def seeded_layers(seed: int = 5) -> list[Tensor]:
    with seeded_weights(seed): return layers()


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    """Whether tensors agree in every bit, dtype and device."""
    return all(x.dtype == y.dtype and x.device == y.device and torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_weights_are_those_of_the_plain_way() -> None:
    torch.manual_seed(5)
    plain = layers()
    torch.manual_seed(6)
    assert same(seeded_layers(5), plain)
    assert not same(seeded_layers(6), plain)


def test_nothing_else_is_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("manual_seed", "manual_seed_all"):
        monkeypatch.setattr(torch.cuda, name, lambda seed: pytest.fail("CUDA's generators were seeded"))
    torch.default_generator.manual_seed(7)
    expected = torch.rand(4)
    torch.default_generator.manual_seed(7)
    seeded_layers()
    with pytest.raises(ZeroDivisionError), seeded_weights(0): torch.rand(1 // 0)
    assert torch.equal(torch.rand(4), expected)
    assert torch.get_default_dtype() == torch.float32


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try: yield
    finally: torch.set_default_dtype(before)


@contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try: yield
    finally: torch.set_default_device(None)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_the_default_dtype_changes_nothing(dtype: torch.dtype) -> None:
    expected = seeded_layers()
    with default_dtype(dtype):
        assert same(seeded_layers(), expected)
        assert torch.get_default_dtype() == dtype


@pytest.mark.parametrize("build", [
    lambda: DenoiseNet(n_labels=3, seed=2), lambda: UNet(SMALL, seed=2), lambda: MLP(n_labels=3, seed=2),
], ids=["DenoiseNet", "UNet", "MLP"])
def test_networks_are_the_same_whatever_the_defaults(build: Callable[[], nn.Module]) -> None:
    def numbers() -> list[torch.Tensor]:
        net = build()
        return [*net.parameters(), *net.buffers()]  # a state_dict lacks the buffers that are not kept

    expected = numbers()
    with default_dtype(torch.float64): assert same(numbers(), expected)
    with default_device("cpu"): assert same(numbers(), expected)


def test_on_the_meta_device_weights_have_shapes_alone() -> None:
    for context in (torch.device("meta"), default_device("meta")):
        with context:
            weights = seeded_layers()
            net = UNet(SMALL)
        assert all(w.is_meta for w in [*weights, *net.state_dict().values()])
        assert [w.shape for w in weights] == [w.shape for w in seeded_layers()]


# ---- stratified numbers ----------------------------------------------------------------------------

@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("n", [1, 7, 1000])
def test_one_number_in_each_part(n: int, dtype: torch.dtype) -> None:
    u = stratified(n, rng(1), dtype=dtype)
    assert u.shape == (n,) and u.dtype == dtype
    assert (u * n).floor().tolist() == list(range(n))
    assert torch.equal(u, (torch.arange(n) + torch.rand(n, generator=rng(1), dtype=dtype)) / n)


def test_numbers_stay_below_one(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 1 - 2**-24  # of what torch.rand returns: with k added it is rounded up
    monkeypatch.setattr(torch, "rand", lambda n, **options: torch.full((n,), largest))
    u = stratified(1000)
    assert u[-1] == largest and u[0] == torch.tensor(largest) / 1000


def test_numbers_come_from_the_generator_or_the_global_one() -> None:
    torch.manual_seed(3)
    assert torch.equal(stratified(5), stratified(5, rng(3)))
    with default_device("meta"): assert torch.equal(stratified(5, rng(3)).cpu(), stratified(5, rng(3)).cpu())
    generator = rng(4)
    assert not torch.equal(stratified(5, generator), stratified(5, generator))


def test_numbers_are_where_they_are_wanted() -> None:
    assert stratified(3, rng(), "meta").device == torch.device("meta")


def test_no_numbers() -> None:
    assert stratified(0).shape == (0,)


# ---- quantiles -------------------------------------------------------------------------------------

def test_normal_quantile() -> None:
    u = torch.tensor([1e-12, 0.025, 0.5, 0.8, 1 - 1e-6], dtype=torch.float64)
    torch.testing.assert_close(normal_quantile(u), torch.from_numpy(norm.ppf(u.numpy())))
    assert normal_quantile(torch.tensor([0.0, 1.0])).tolist() == [-torch.inf, torch.inf]
