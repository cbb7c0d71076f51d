"""Cold diffusion: damages and their closed forms, two samplers and when they agree, the restorer, and the shipped
one's table."""

import json
import math
from dataclasses import replace

import pytest
import torch

from diffusion_course.checkpoints import WEIGHTS, load, save, shipped
from diffusion_course.cold import (
    DEGRADATIONS, PRESETS, START, Blur, ColdRecipe, Masking, Pixelate, Restorer, improved, naive, restore,
)
from diffusion_course.images import cifar10
from diffusion_course.predictions import Denoiser
from diffusion_course.samplers import Recorder, ddim, sample, trajectory, uniform_grid
from diffusion_course.schedules import Linear
from diffusion_course.training import train
from diffusion_course.unet import UNetConfig

KINDS = tuple(DEGRADATIONS)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    """Seeded standard normal numbers in double precision."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def answers(function) -> Denoiser:
    """A restorer that guesses function(x)."""
    return Denoiser(lambda x, t, y=None: function(x), Linear(), "x1")


# ---- degradations ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(3, 3, 32, 32), (4, 1, 8, 8)])
def test_a_degradation_does_nothing_at_1_and_is_linear(kind, shape):
    D, a, b = DEGRADATIONS[kind], normal(*shape), normal(*shape, seed=1)
    torch.testing.assert_close(D(a, 1.0), a)
    for t in (0.0, 0.3, 0.77): torch.testing.assert_close(D(2 * a - 3 * b, t), 2 * D(a, t) - 3 * D(b, t))


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_times_is_each_at_its_own(kind):
    D, x1, t = DEGRADATIONS[kind], normal(5, 3, 16, 16).float(), torch.tensor([0.0, 0.3, 0.5, 0.5, 1.0])
    assert D(x1, t).dtype == x1.dtype
    torch.testing.assert_close(D(x1, t), torch.cat([D(x1[i: i + 1], float(t[i])) for i in range(5)]))
    with pytest.raises(ValueError, match=r"expected times in \[0, 1\]"): D(x1, 1.5)


@pytest.mark.parametrize("kind", ["blur", "pixelate"])
def test_nothing_but_the_mean_colour_is_left_at_0(kind):
    x1 = normal(2, 3, 16, 16)
    torch.testing.assert_close(DEGRADATIONS[kind](x1, 0.0), x1.mean((2, 3), keepdim=True).expand_as(x1))
    for t in (0.2, 0.6): torch.testing.assert_close(DEGRADATIONS[kind](x1, t).mean((2, 3)), x1.mean((2, 3)))


def test_blur_multiplies_waves_and_adds_variances():
    D, i = Blur(0.1), (torch.arange(16, dtype=torch.float64) + 0.5) / 16
    for k, j, t in ((1, 0, 0.2), (3, 2, 0.5), (7, 5, 0.8)):
        wave = ((math.pi * k * i).cos()[:, None] * (math.pi * j * i).cos())[None, None]
        torch.testing.assert_close(
            D(wave, t), wave * math.exp(-((math.pi * 0.1 * (1 - t) / t) ** 2) * (k * k + j * j) / 2)
        )
    x, (s, t) = normal(2, 1, 16, 24), (D.sigma(0.4), D.sigma(0.7))
    both = float(0.1 / ((s**2 + t**2).sqrt() + 0.1))
    torch.testing.assert_close(D(D(x, 0.4), 0.7), D(x, both))
    torch.testing.assert_close(D(x.float(), 0.5), D(x, 0.5).float())
    with torch.autocast("cpu", torch.bfloat16): torch.testing.assert_close(D(x.float(), 0.5), D(x, 0.5).float())


def test_a_blurred_point_is_a_gaussian():
    x = torch.zeros(1, 1, 64, 64, dtype=torch.float64)
    x[0, 0, 32, 32] = 1
    i = torch.arange(64, dtype=torch.float64) - 32
    gauss = lambda s: (-(i[:, None] ** 2 + i**2) / (2 * s * s)).exp() / (2 * math.pi * s * s)
    torch.testing.assert_close(Blur(1 / 16)(x, 4 / 7)[0, 0], gauss(3.0), atol=1e-9, rtol=0)


def test_masking_takes_pixels_away_in_one_order():
    M, x1 = Masking(), normal(2, 3, 8, 16)
    masks = [M.mask(t, 8, 16) for t in (0.0, 0.25, 0.5, 0.501, 1.0)]
    assert [int(m.sum()) for m in masks[:3]] == [0, 32, 64] and masks[-1].all()
    assert all((a <= b).all() for a, b in zip(masks, masks[1:], strict=False))
    assert torch.equal(M(x1, 0.5), x1 * masks[2]) and torch.equal(M(x1, 0.5), Masking(0)(x1, 0.5))
    assert not torch.equal(M(x1, 0.5), Masking(1)(x1, 0.5))
    large = M.mask(0.25, 32, 32)
    assert large.sum() == 256 and torch.equal(large, large[:, ::2, ::2].repeat_interleave(2, 1).repeat_interleave(2, 2))


def test_pixelate_keeps_means_and_its_stages():
    P, x1 = Pixelate(), normal(1, 2, 32, 32)
    stages = [(0.0, 32), (0.19, 32), (0.2, 16), (0.4, 8), (0.6, 4), (0.8, 2), (0.99, 2), (1.0, 1)]
    for t, b in stages:
        x = P(x1, t)
        assert int(P.block(t, 32)) == b and torch.equal(P(x, t), P(x, t)) and len(x.unique()) <= 2 * (32 // b) ** 2
        torch.testing.assert_close(P(x, t), x)
        torch.testing.assert_close(P(x, 0.2), P(x1, min(t, 0.2)))
    for n in range(1, 60):  # grids round: 5 x 0.6 may lie below 3
        for k, t in enumerate(uniform_grid(5 * n)): assert int(P.block(t, 32)) == 32 >> k // n
        for k, t in enumerate(uniform_grid(5 * n).float()): assert int(P.block(t, 32)) == 32 >> k // n


@pytest.mark.parametrize("wrong", [
    lambda: Blur(0.0), lambda: Pixelate()(normal(1, 1, 12, 12), 0.5), lambda: Pixelate()(normal(1, 1, 8, 16), 0.5),
    lambda: restore(answers(torch.sin), normal(1, 1, 8, 8), "snow"),
    lambda: ColdRecipe(net=UNetConfig(n_labels=10)).fits(type("D", (), dict(x=torch.zeros(1, 3, 32, 32)))),
    lambda: ColdRecipe(net=UNetConfig(n_labels=3)).fits(type("D", (), dict(x=torch.zeros(1, 1, 8, 8)))),
])
def test_wrong_input_says_what_is_expected(wrong):
    with pytest.raises(ValueError, match="expected"): wrong()


# ---- samplers --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sampler", [naive, improved])
def test_a_perfect_guess_comes_home(kind, sampler):
    x1 = normal(2, 3, 16, 16)
    for start in (0.0, 0.35):
        x = DEGRADATIONS[kind](x1, start)
        torch.testing.assert_close(restore(answers(lambda _: x1), x, kind, 7, sampler, start), x1)
    run = trajectory(answers(lambda _: x1), DEGRADATIONS[kind](x1, 0.0), uniform_grid(6), sampler(DEGRADATIONS[kind]))
    for t, x in zip(run.ts, run.xs, strict=True): torch.testing.assert_close(x, DEGRADATIONS[kind](x1, float(t)))
    assert run.nfe == 6


def test_added_damage_is_undone_by_any_guess():
    x1, e = normal(2, 1, 4, 4), normal(1, 1, 4, 4, seed=1)
    D, model = lambda x, t: x + (1 - t) * e, answers(lambda x: torch.sin(9 * x))
    torch.testing.assert_close(sample(model, D(x1, 0.1), uniform_grid(13, 0.1), improved(D)), x1)
    assert (sample(model, D(x1, 0.1), uniform_grid(13, 0.1), naive(D)) - x1).abs().max() > 0.5


@pytest.mark.parametrize("kind", ["blur", "masking"])
def test_errors_of_the_improved_sampler_shrink_with_its_steps(kind):
    D, x1, wrong = DEGRADATIONS[kind], normal(2, 1, 32, 32), normal(2, 1, 32, 32, seed=1)
    error = (
        lambda sampler, h: (
            sampler(D)(Recorder(answers(lambda _: wrong)), D(x1, 0.5), 0.5, 0.5 + h)
            - D(x1, 0.5 + h)
        )
        .square()
        .mean()
    )
    power = 2 if kind == "blur" else 1  # a mask reveals a share h of the picture, with errors of full size
    assert error(improved, 0.01) / error(improved, 0.04) == pytest.approx(4.0**-power, rel=0.4)
    assert error(naive, 0.01) / error(naive, 0.04) > 0.8


def test_with_predicted_noise_both_are_ddim():
    model, x = answers(lambda x: torch.tanh(x.flip(-1))), normal(4, 2)

    def cold(algorithm):
        def step(model, x, t, s):
            p = model(x, t)
            return algorithm(lambda x1, t: p.schedule.mix(x1, p.eps, t))(lambda *_: p, x, t, s)
        step.meets_ends = True
        return step
    for ts in (uniform_grid(9), torch.tensor([0.1, 0.5, 0.55, 0.9], dtype=torch.float64)):
        want = sample(model, x, ts, ddim())
        for algorithm in (naive, improved): torch.testing.assert_close(sample(model, x, ts, cold(algorithm)), want)


def test_restore_is_the_loop_with_its_parts():
    x, seen = normal(2, 1, 8, 8), []

    def net(x, t, y):
        seen.append((float(t[0]), y))
        return torch.cos(x)
    model = Denoiser(net, Linear(), "x1")
    for k, kind in enumerate(KINDS):
        seen.clear()
        y = restore(model, x, kind, 4)
        torch.testing.assert_close(y, sample(model, x, uniform_grid(4, START[kind]), improved(DEGRADATIONS[kind]), y=k))
        assert [t for t, _ in seen[:4]] == pytest.approx(
            uniform_grid(4, START[kind])[:-1].tolist()
        ) and {y for _, y in seen} == {k}


# ---- the restorer ----------------------------------------------------------------------------------------------------

def small(**changes) -> ColdRecipe:
    """A tiny training on digits."""
    net = UNetConfig(shape=(1, 8, 8), widths=(16,), attention=(), head=16, patch=1, n_labels=3)
    return replace(PRESETS["cold-digits"], **dict(net=net, images=640, batch=32, warmup=64, log_every=320) | changes)


def test_a_restorer_begins_as_the_identity_and_survives_a_file(tmp_path):
    model, x = small().build(), normal(3, 1, 8, 8).float()
    assert isinstance(model.net, Restorer) and torch.equal(model(x, 0.3, y=1).x1, x)
    for p in model.parameters(): p.data += 0.1
    save(model, tmp_path / "r.safetensors", half=False)
    again = load(tmp_path / "r.safetensors")
    assert type(again.net) is Restorer and again.kind == "x1"
    torch.testing.assert_close(again(x, 0.3, y=1).x1, model(x, 0.3, y=1).x1)


def test_loss_is_the_share_of_damage_left_and_asks_about_all_kinds():
    c, asked = small(), []

    def net(x, t, y):
        asked.append((x, t, y))
        return x
    x1 = normal(300, 1, 8, 8).float()
    loss = c.loss(Denoiser(net, Linear(), "x1"), x1, torch.zeros(300), torch.Generator().manual_seed(0))
    x, t, y = asked[0]
    assert set(y.tolist()) == {0, 1, 2} and (t.sort().values.diff() < 2 / 300).all()
    want = torch.stack([list(DEGRADATIONS.values())[k](x1[i: i + 1], t[i: i + 1])[0] for i, k in enumerate(y.tolist())])
    torch.testing.assert_close(x, want)
    damage = (want - x1).abs().mean((1, 2, 3))
    torch.testing.assert_close(loss, (damage / (damage + 0.02)).mean())


def test_training_restores_better_than_doing_nothing(tmp_path):
    model = train(small(images=3200, stages=(3200,)), tmp_path, progress=False)
    x1 = small().pictures().batch(slice(200))[0]
    x = DEGRADATIONS["blur"](x1, START["blur"])
    assert (restore(model, x, "blur", 5) - x1).square().mean() < 0.8 * (x - x1).square().mean()
    assert list((tmp_path / "samples").glob("*.png"))


# ---- the shipped one -------------------------------------------------------------------------------------------------

needs_cold = pytest.mark.skipif("cold" not in shipped(), reason="the restorer isn't part of this copy")


@needs_cold
def test_the_table_says_that_improved_is_better():
    book = json.loads((WEIGHTS / "cold.json").read_text())
    found = {
        (r["kind"], r["sampler"], r["steps"]): r
        for r in book["restored"]
        if r.get("start") == START.get(r["kind"], "real")
    }
    assert not book["about"]["quick"] and book["about"]["n"] >= 1000
    for kind in KINDS:
        for steps in (20, 50):
            better, worse = (found[kind, name, steps] for name in ("improved", "naive"))
            assert better["frechet"] < worse["frechet"] and better["mse"] < worse["mse"]


@needs_cold
@pytest.mark.parametrize("kind", KINDS)
def test_improved_is_better_here_too(kind):
    try: x1 = cifar10("test", download=False).batch(slice(5000, 5024))[0]
    except FileNotFoundError: pytest.skip("CIFAR-10 isn't at hand")
    model, x = load("cold"), DEGRADATIONS[kind](x1, START[kind])
    error = lambda sampler: float((restore(model, x, kind, 30, sampler) - x1).square().mean())
    assert error(improved) < min(error(naive), float((x - x1).square().mean()))
