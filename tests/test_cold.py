"""Cold diffusion: damages and their closed forms, two samplers and when they agree, the restorer, and the shipped one's
table."""
from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import normal, rng
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffusion_course import cold
from diffusion_course.checkpoints import WEIGHTS, load, save, shipped
from diffusion_course.cold import (
    DEGRADATIONS, PRESETS, START, Blur, ColdRecipe, Masking, Pixelate, Restorer, _cosines, improved, naive, restore,
)
from diffusion_course.images import Images, cifar10, to_bytes
from diffusion_course.predictions import Denoiser
from diffusion_course.samplers import Recorder, ddim, handling_singular_ends, sample, trajectory, uniform_grid
from diffusion_course.schedules import Linear
from diffusion_course.training import DATA, train
from diffusion_course.unet import UNetConfig

KINDS = tuple(DEGRADATIONS)


def restorer(function: Callable[[Tensor], Tensor]) -> Denoiser:
    """A restorer whose estimate of x1 is function(x)."""
    return Denoiser(lambda x, t, y=None: function(x), Linear(), "x1")


# ---- degradations ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(3, 3, 32, 32), (4, 1, 8, 8)])
def test_a_degradation_does_nothing_at_1_and_is_linear(kind, shape):
    D = DEGRADATIONS[kind]
    a, b = normal(*shape), normal(*shape, seed=1)
    torch.testing.assert_close(D(a, 1.0), a)
    for t in (0.0, 0.3, 0.77): torch.testing.assert_close(D(2 * a - 3 * b, t), 2 * D(a, t) - 3 * D(b, t))


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_times_is_each_at_its_own(kind):
    D = DEGRADATIONS[kind]
    x1 = normal(5, 3, 16, 16, dtype=torch.float32)
    t = torch.tensor([0.0, 0.3, 0.5, 0.5, 1.0])
    assert D(x1, t).dtype == x1.dtype
    torch.testing.assert_close(D(x1, t), torch.cat([D(x1[i: i + 1], float(t[i])) for i in range(5)]))
    with pytest.raises(ValueError, match=r"expected times in \[0, 1\]"): D(x1, 1.5)


class NoDoublesOffTheCPU(TorchDispatchMode):
    """Refuses double precision anywhere but on the CPU, as Apple's MPS does."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for v in tree_leaves(out):
            if isinstance(v, Tensor) and not v.is_cpu and v.dtype == torch.float64:
                raise TypeError(f"{function} makes doubles on {v.device}")
        return out


@pytest.mark.parametrize("kind", ["blur", "masking"])
@pytest.mark.parametrize("where", ["cpu", "meta"])
def test_a_degradation_follows_the_device_of_its_images_without_doubles_there(monkeypatch, kind, where):
    monkeypatch.setattr(cold, "autocast", lambda *_: nullcontext())  # which `meta` doesn't know
    x1 = torch.zeros(3, 1, 8, 8, device="meta")
    t = torch.tensor([0.1, 0.5, 0.9], device=where)
    with NoDoublesOffTheCPU():
        assert DEGRADATIONS[kind](x1, t).device.type == "meta"
        assert DEGRADATIONS[kind](x1, 0.4).device.type == "meta"


def test_pixelate_follows_the_device_of_its_images():
    assert DEGRADATIONS["pixelate"](torch.zeros(3, 1, 8, 8, device="meta"), 0.4).device.type == "meta"


def test_blur_in_single_precision_is_that_in_double():
    x1 = normal(4, 3, 32, 32)
    t = torch.tensor([0.0, 0.2, 0.7, 1.0])
    matrix = Blur()._matrix(Blur().sigma(t).float() * 32, 32)  # as on devices without doubles
    torch.testing.assert_close(matrix.double() @ x1 @ matrix.double().mT, Blur()(x1, t), atol=1e-5, rtol=0)


@pytest.mark.parametrize("inference", [False, True])
def test_tables_do_not_keep_the_state_of_their_first_caller(inference):
    _cosines.cache_clear()
    x1 = normal(1, 1, 8, 8, dtype=torch.float32)
    with torch.inference_mode(inference), torch.device("meta"): Blur()(x1, 0.5)
    t = torch.tensor([0.5], requires_grad=True)
    Blur()(x1, t).square().sum().backward()
    assert t.grad.isfinite().all() and t.grad != 0
    with torch.device("meta"): assert torch.equal(Masking()(x1, 0.5), x1 * Masking().mask(0.5, 8, 8).cpu())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_images_in_16_bits_stay_so(kind, dtype):
    x1 = normal(2, 1, 8, 8).to(dtype)
    x = DEGRADATIONS[kind](x1, torch.tensor([0.3, 0.7]))
    assert x.dtype == dtype
    expected = DEGRADATIONS[kind](x1.float(), torch.tensor([0.3, 0.7]))
    torch.testing.assert_close(x.float(), expected, atol=0.03, rtol=0.03)


@pytest.mark.parametrize("kind", ["blur", "pixelate"])
def test_nothing_but_the_mean_colour_is_left_at_0(kind):
    D = DEGRADATIONS[kind]
    x1 = normal(2, 3, 16, 16)
    torch.testing.assert_close(D(x1, 0.0), x1.mean((2, 3), keepdim=True).expand_as(x1))
    for t in (0.2, 0.6): torch.testing.assert_close(D(x1, t).mean((2, 3)), x1.mean((2, 3)))


def test_blur_multiplies_waves_and_adds_variances():
    D = Blur(0.1)
    i = (torch.arange(16, dtype=torch.float64) + 0.5) / 16
    for k, j, t in ((1, 0, 0.2), (3, 2, 0.5), (7, 5, 0.8)):
        wave = ((math.pi * k * i).cos()[:, None] * (math.pi * j * i).cos())[None, None]
        amplitude = math.exp(-(math.pi * 0.1 * (1 - t) / t) ** 2 * (k * k + j * j) / 2)
        torch.testing.assert_close(D(wave, t), wave * amplitude)
    x = normal(2, 1, 16, 24)
    both = float(0.1 / ((D.sigma(0.4) ** 2 + D.sigma(0.7) ** 2).sqrt() + 0.1))
    torch.testing.assert_close(D(D(x, 0.4), 0.7), D(x, both))
    torch.testing.assert_close(D(x.float(), 0.5), D(x, 0.5).float())
    with torch.autocast("cpu", torch.bfloat16): torch.testing.assert_close(D(x.float(), 0.5), D(x, 0.5).float())


def test_a_blurred_point_is_a_gaussian():
    x = torch.zeros(1, 1, 64, 64, dtype=torch.float64)
    x[0, 0, 32, 32] = 1
    i = torch.arange(64, dtype=torch.float64) - 32
    s = 3.0
    gauss = (-(i[:, None] ** 2 + i**2) / (2 * s * s)).exp() / (2 * math.pi * s * s)
    torch.testing.assert_close(Blur(1 / 16)(x, 4 / 7)[0, 0], gauss, atol=1e-9, rtol=0)


def test_masking_takes_pixels_away_in_one_order():
    M = Masking()
    x1 = normal(2, 3, 8, 16)
    masks = [M.mask(t, 8, 16) for t in (0.0, 0.25, 0.5, 0.501, 1.0)]
    assert [int(m.sum()) for m in masks[:3]] == [0, 32, 64] and masks[-1].all()
    assert all((a <= b).all() for a, b in zip(masks, masks[1:], strict=False))
    assert torch.equal(M(x1, 0.5), x1 * masks[2]) and torch.equal(M(x1, 0.5), Masking(0)(x1, 0.5))
    assert not torch.equal(M(x1, 0.5), Masking(1)(x1, 0.5))
    large = M.mask(0.25, 32, 32)
    assert large.sum() == 256
    assert torch.equal(large, large[:, ::2, ::2].repeat_interleave(2, 1).repeat_interleave(2, 2))


def test_pixelate_keeps_means_and_its_stages():
    P = Pixelate()
    x1 = normal(1, 2, 32, 32)
    stages = [(0.0, 32), (0.19, 32), (0.2, 16), (0.4, 8), (0.6, 4), (0.8, 2), (0.99, 2), (1.0, 1)]
    for t, b in stages:
        x = P(x1, t)
        assert int(P.block(t, 32)) == b and len(x.unique()) <= 2 * (32 // b) ** 2
        torch.testing.assert_close(P(x, t), x)
        torch.testing.assert_close(P(x, 0.2), P(x1, min(t, 0.2)))
    for n in range(1, 60):  # grids round: 5 x 0.6 may lie below 3
        for k, t in enumerate(uniform_grid(5 * n)): assert int(P.block(t, 32)) == 32 >> k // n
        for k, t in enumerate(uniform_grid(5 * n).float()): assert int(P.block(t, 32)) == 32 >> k // n


def of_shape(*shape: int) -> Images:
    """Grey images."""
    return Images(torch.full((20, *shape), 127).byte(), torch.zeros(20).long(), ("grey",))


@pytest.mark.parametrize("wrong, message", [
    (lambda: Blur(0.0), "width is 0.0: expected a positive number"),
    (lambda: Pixelate()(normal(1, 1, 12, 12), 0.5), "a side of 12 pixels: expected a power of two"),
    (lambda: Pixelate()(normal(1, 1, 8, 16), 0.5), "expected square images"),
    (lambda: restore(restorer(torch.sin), normal(1, 1, 8, 8), "snow"), "kind is 'snow': expected one of blur"),
    (lambda: ColdRecipe(net=UNetConfig(n_labels=10)).check_data(of_shape(3, 32, 32)), "net.n_labels is 10: expected 3"),
    (lambda: ColdRecipe(net=UNetConfig(n_labels=3)).check_data(of_shape(1, 8, 8)), "net.shape is .3, 32, 32."),
    *((lambda D=D: D(to_bytes(normal(1, 1, 8, 8)), 0.5), "x1 is torch.uint8 .*: expected floating-point images")
      for D in DEGRADATIONS.values()),
])
def test_wrong_input_says_what_is_expected(wrong, message):
    with pytest.raises(ValueError, match=message): wrong()


# ---- samplers --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sampler", [naive, improved])
def test_a_perfect_estimate_comes_home(kind, sampler):
    D = DEGRADATIONS[kind]
    x1 = normal(2, 3, 16, 16)
    perfect = restorer(lambda _: x1)
    for start in (0.0, 0.35):
        torch.testing.assert_close(restore(perfect, D(x1, start), kind, 7, sampler, start), x1)
    run = trajectory(perfect, D(x1, 0.0), uniform_grid(6), sampler(D))
    for t, x in zip(run.ts, run.xs, strict=True): torch.testing.assert_close(x, D(x1, float(t)))
    assert run.nfe == 6


def test_added_damage_is_undone_by_any_estimate():
    x1 = normal(2, 1, 4, 4)
    e = normal(1, 1, 4, 4, seed=1)
    model = restorer(lambda x: torch.sin(9 * x))

    def D(x1, t): return x1 + (1 - t) * e

    ts = uniform_grid(13, 0.1)
    torch.testing.assert_close(sample(model, D(x1, 0.1), ts, improved(D)), x1)
    assert (sample(model, D(x1, 0.1), ts, naive(D)) - x1).abs().max() > 0.5


@pytest.mark.parametrize("kind", ["blur", "masking"])
def test_errors_of_the_improved_sampler_shrink_with_its_steps(kind):
    D = DEGRADATIONS[kind]
    x1, wrong = normal(2, 1, 32, 32), normal(2, 1, 32, 32, seed=1)

    def error(sampler, h):
        model = Recorder(restorer(lambda _: wrong))
        x = sampler(D)(model, D(x1, 0.5), 0.5, 0.5 + h)
        return (x - D(x1, 0.5 + h)).square().mean()

    power = 2 if kind == "blur" else 1  # a mask reveals a fraction h of the image, with errors of full size
    assert error(improved, 0.01) / error(improved, 0.04) == pytest.approx(4.0**-power, rel=0.4)
    assert error(naive, 0.01) / error(naive, 0.04) > 0.8


def test_with_predicted_noise_both_are_ddim():
    model = restorer(lambda x: torch.tanh(x.flip(-1)))
    x = normal(4, 2)

    def with_predicted_noise(sampler):
        @handling_singular_ends
        def step(model, x, t, s):
            p = model(x, t)
            return sampler(lambda x1, t: p.schedule.mix(x1, p.eps, t))(lambda *_: p, x, t, s)
        return step

    for ts in (uniform_grid(9), torch.tensor([0.1, 0.5, 0.55, 0.9], dtype=torch.float64)):
        expected = sample(model, x, ts, ddim())
        for sampler in (naive, improved):
            torch.testing.assert_close(sample(model, x, ts, with_predicted_noise(sampler)), expected)


def test_restore_is_the_loop_with_its_parts():
    x, calls = normal(2, 1, 8, 8), []

    def net(x, t, y):
        calls.append((float(t[0]), y))
        return torch.cos(x)

    model = Denoiser(net, Linear(), "x1")
    for k, kind in enumerate(KINDS):
        calls.clear()
        ts = uniform_grid(4, START[kind])
        restored = restore(model, x, kind, 4)
        assert [t for t, _ in calls] == pytest.approx(ts[:-1].tolist()) and {y for _, y in calls} == {k}
        torch.testing.assert_close(restored, sample(model, x, ts, improved(DEGRADATIONS[kind]), y=k))


# ---- the restorer ----------------------------------------------------------------------------------------------------

def tiny(**changes) -> ColdRecipe:
    """A tiny training on digits."""
    net = UNetConfig(shape=(1, 8, 8), widths=(16,), attention=(), head=16, patch=1, n_labels=3)
    settings = dict(net=net, images=640, batch=32, warmup=64, log_every=320)
    return replace(PRESETS["cold-digits"], **settings | changes)


def test_a_restorer_begins_as_the_identity_and_survives_a_file(tmp_path: Path):
    model = tiny().build()
    x = normal(3, 1, 8, 8, dtype=torch.float32)
    assert isinstance(model.net, Restorer) and torch.equal(model(x, 0.3, y=1).x1, x)
    for p in model.parameters(): p.data += 0.1
    save(model, tmp_path / "r.safetensors", half=False)
    loaded = load(tmp_path / "r.safetensors")
    assert type(loaded.net) is Restorer and loaded.kind == "x1"
    torch.testing.assert_close(loaded(x, 0.3, y=1).x1, model(x, 0.3, y=1).x1)


def test_loss_is_the_fraction_of_damage_left_over_all_kinds_and_times():
    calls = []

    def net(x, t, y):
        calls.append((x, t, y))
        return x

    x1 = normal(300, 1, 8, 8, dtype=torch.float32)
    loss = tiny().loss(Denoiser(net, Linear(), "x1"), x1, torch.zeros(300), rng())
    x, t, y = calls[0]
    assert set(y.tolist()) == {0, 1, 2} and (t.sort().values.diff() < 2 / 300).all()
    kinds = list(DEGRADATIONS.values())
    expected = torch.cat([kinds[k](x1[i: i + 1], t[i: i + 1]) for i, k in enumerate(y.tolist())])
    torch.testing.assert_close(x, expected)
    damage = (expected - x1).abs().mean((1, 2, 3))
    torch.testing.assert_close(loss, (damage / (damage + 0.02)).mean())


def test_training_restores_better_than_doing_nothing(tmp_path: Path):
    model = train(tiny(images=3200, stages=(3200,)), tmp_path, progress=False)
    x1 = DATA["digits"]("train").batch(slice(200))[0]
    x = DEGRADATIONS["blur"](x1, START["blur"])
    assert (restore(model, x, "blur", 5) - x1).square().mean() < 0.8 * (x - x1).square().mean()
    assert list((tmp_path / "samples").glob("*.png"))


@pytest.mark.parametrize("shape, message", [
    ((4, 8, 8), r"images have shape \(4, 8, 8\): expected 1 or 3 channels, or no stages"),
    ((1, 12, 12), r"the data have shape \(1, 12, 12\): expected square images, of a power of two"),
    ((1, 8, 16), r"the data have shape \(1, 8, 16\): expected square images"),
])
def test_data_that_would_stop_a_training_on_its_way_are_refused_before(tmp_path: Path, monkeypatch, shape, message):
    monkeypatch.setitem(DATA, "digits", lambda split: of_shape(*shape))
    recipe = tiny(net=replace(tiny().net, shape=shape), stages=(320,))
    with pytest.raises(ValueError, match=message): train(recipe, tmp_path / "run", progress=False)


# ---- the shipped one -------------------------------------------------------------------------------------------------

needs_cold = pytest.mark.skipif("cold" not in shipped(), reason="the restorer isn't part of this copy")


@needs_cold
def test_the_table_says_that_improved_is_better():
    table = json.loads((WEIGHTS / "cold.json").read_text("utf-8"))
    assert not table["about"]["quick"] and table["about"]["n"] >= 1000
    rows = {(r["kind"], r["sampler"], r["steps"]): r for r in table["restored"]
            if r["kind"] in KINDS and r["start"] == START[r["kind"]]}
    for kind in KINDS:
        for steps in (20, 50):
            better, worse = (rows[kind, name, steps] for name in ("improved", "naive"))
            assert better["frechet"] < worse["frechet"] and better["mse"] < worse["mse"]


@needs_cold
@pytest.mark.parametrize("kind", KINDS)
def test_improved_is_better_here_too(kind):
    try: x1 = cifar10("test", download=False).batch(slice(5000, 5024))[0]
    except FileNotFoundError: pytest.skip("CIFAR-10 isn't at hand")
    model, x = load("cold"), DEGRADATIONS[kind](x1, START[kind])

    def error(sampler): return float((restore(model, x, kind, 30, sampler) - x1).square().mean())

    assert error(improved) < min(error(naive), float((x - x1).square().mean()))
