"""Few steps: the flow's end and its closed form, jump and shake, the consistency loss, pairs that are kept,
students."""

import json
import math
from dataclasses import replace

import pytest
from helpers import rng
import torch

from diffusion_course.checkpoints import WEIGHTS, load, save
from diffusion_course.couplings import reflow_pairs
from diffusion_course.distributions import GaussianMixture, running_mixture
from diffusion_course.few_step import (
    PRESETS, ConsistencyRecipe, FlowEnd, Pairs, ReflowRecipe, consistency, consistency_loss, teacher_pairs,
)
from diffusion_course.guidance import classifier_free
from diffusion_course.matching import MLP, matching_loss
from diffusion_course.metrics import energy_distance, real_floor
from diffusion_course.predictions import Denoiser, ExactDenoiser
from diffusion_course.samplers import dpmpp_2m, euler, heun, sample, trajectory, uniform_grid
from diffusion_course.schedules import Cosine, Linear
from diffusion_course.training import train
from diffusion_course.unet import UNet, UNetConfig

PATH = Linear()

def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    """Seeded standard normal numbers in double precision."""
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def gaussian(path=PATH) -> tuple[ExactDenoiser, object]:
    """The exact model of one Gaussian, and its flow's end in closed form."""
    mu, s = torch.tensor([1.0, -0.5], dtype=torch.float64), 0.4

    def end(x, t):
        alpha, sigma = (v.to(x).reshape(-1, 1) for v in (path.alpha(t), path.sigma(t)))
        return mu + s * (x - alpha * mu) / (alpha**2 * s * s + sigma**2).sqrt()
    return ExactDenoiser(GaussianMixture(mu[None], [s]), path), end


def mlp(seed: int = 1) -> Denoiser:
    """A small network that isn't zero."""
    model = Denoiser(MLP(width=16), PATH)
    with torch.no_grad():
        for p in model.parameters(): p += 0.2 * torch.randn(p.shape, generator=rng(seed))
    return model


# ---- the end of a flow -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("t", [0.0, 0.3, 0.9])
def test_the_end_of_a_gaussians_flow_is_known(t):
    model, end = gaussian()
    x = normal(50, 2)
    torch.testing.assert_close(FlowEnd(model, 200)(x, t).x1, end(x, torch.tensor([t])), atol=2e-4, rtol=0)


def test_at_the_end_nothing_is_left_to_do():
    model, x = FlowEnd(gaussian()[0], 3), normal(4, 2)
    assert torch.equal(model(x, 1.0).x1, x) and model.singular(1.0) and not model.singular(0.0)


def test_it_is_the_same_along_a_path():
    exact = ExactDenoiser(running_mixture(), PATH)
    run = trajectory(exact, normal(100, 2), uniform_grid(120), heun())
    for k in (0, 40, 90):
        off = (FlowEnd(exact, 120)(run.xs[k], float(run.ts[k])).x1 - run.xs[-1]).norm(dim=1)
        assert off.median() < 1e-3


def test_it_hands_conditions_on():
    exact, x = ExactDenoiser(running_mixture(), PATH), normal(300, 2)
    ends = FlowEnd(exact, 20)(x, 0.0, y=1).x1
    torch.testing.assert_close(ends, sample(exact, x, uniform_grid(20), heun(), y=1))


# ---- jump and shake --------------------------------------------------------------------------------------------------

def test_a_step_is_the_predicted_x1_and_fresh_noise():
    model, x, z = mlp(), normal(5, 2).float(), normal(5, 2, seed=1).float()
    run = trajectory(model, x, [0.0, 0.4, 1.0], consistency(), noise=lambda x, t, s: z)
    with torch.no_grad():
        middle = 0.4 * model(x, 0.0).x1 + 0.6 * z
        torch.testing.assert_close(run.xs[1], middle)
        torch.testing.assert_close(run.xs[2], model(middle, 0.4).x1)
    assert run.nfe == 2
    one = trajectory(model, x, [0.0, 1.0], consistency(), noise=lambda x, t, s: 1 / 0)  # no noise is asked for
    torch.testing.assert_close(one.xs[-1], model(x, 0.0).x1.detach())


def test_the_generator_decides_the_noise():
    model, x = mlp(), normal(5, 2).float()
    made = lambda seed: sample(model, x, uniform_grid(3), consistency(), generator=rng(seed))
    assert torch.equal(made(1), made(1)) and not torch.equal(made(1), made(2))


def test_with_the_true_end_any_number_of_steps_samples_the_data():
    mixture = running_mixture()
    end, real = FlowEnd(ExactDenoiser(mixture, PATH), 40), mixture.sample(1500, rng(1))
    floor = real_floor(energy_distance, mixture.sample, 1500, 12).q99
    x = torch.randn(1500, 2, generator=rng(2))
    ends = {n: sample(end, x, uniform_grid(n), consistency(), generator=rng(3)) for n in (1, 2, 5)}
    for y in ends.values(): assert energy_distance(y, real) < 1.3 * floor
    mean = sample(ExactDenoiser(mixture, PATH), x, uniform_grid(2), consistency(), generator=rng(3))
    assert energy_distance(mean, real) > 5 * floor  # a denoiser's mean isn't the end


def test_a_gaussian_keeps_its_moments_on_another_path():
    path = Cosine()
    model, end = gaussian(path)

    class Closed:
        schedule = path
        def __call__(self, x, t):
            p = model(x, t)
            return replace(p, x1=end(x, torch.as_tensor(t).reshape(-1)))
    y = sample(Closed(), normal(20_000, 2), uniform_grid(4), consistency(), generator=rng())
    torch.testing.assert_close(y.mean(0), torch.tensor([1.0, -0.5], dtype=torch.float64), atol=0.02, rtol=0)
    torch.testing.assert_close(y.std(0), torch.full((2,), 0.4, dtype=torch.float64), atol=0.01, rtol=0)


# ---- the loss --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("huber", [0.0, 0.1])
def test_the_loss_by_hand(huber):
    student, target, teacher = mlp(1), mlp(2), gaussian()[0]
    x1, x0, t = normal(6, 2).float(), normal(6, 2, seed=1).float(), torch.tensor([0.0, 0.1, 0.5, 0.8, 0.95, 0.99])
    loss = consistency_loss(student, target, teacher, x1, steps=10, t=t, x0=x0, huber=huber)
    s, T = (t + 0.1).clamp(max=1), t[:, None]
    x = T * x1 + (1 - T) * x0
    h, u = (s - t)[:, None], teacher(x, t).velocity
    y = x + h / 2 * (u + teacher(x + h * u, s).velocity)
    e = (x + (1 - T) * student.net(x, t) - y - (1 - s)[:, None] * target.net(y, s)).square().mean(1)
    torch.testing.assert_close(loss, (((e + huber**2).sqrt() - huber) if huber else e).mean())


def test_only_the_student_learns():
    student, target, teacher = mlp(1), mlp(2), mlp(3)
    consistency_loss(student, target, teacher, normal(8, 2).float(), generator=rng()).backward()
    assert all(
        p.grad is not None and p.grad.isfinite().all()
        for p in student.parameters()
        if p.requires_grad and p.shape != (1, 16)
    )
    assert all(p.grad is None for m in (target, teacher) for p in m.parameters())
    one = consistency_loss(student, student, teacher, normal(8, 2).float(), generator=rng())
    two = consistency_loss(student, student, teacher, normal(8, 2).float(), generator=rng())
    assert torch.equal(one, two)


def test_the_true_end_has_nothing_to_learn():
    teacher, end = gaussian()
    true = Denoiser(lambda x, t: (end(x, t) - x) / (1 - t[:, None]).clamp_min(1e-12), PATH)
    x1, small, large = normal(400, 2) * 0.4, [], []
    for n in (10, 40):
        small.append(consistency_loss(true, true, teacher, x1, steps=n, huber=0.0, generator=rng()))
        large.append(consistency_loss(teacher, teacher, teacher, x1, steps=n, huber=0.0, generator=rng()))
    assert (
        small[1] < small[0] / 100 and small[1] < large[1] / 50
    )  # a step of length h is wrong by h cubed: the loss by h to the 6th


def test_boundary_holds_for_any_network():
    x = normal(7, 2).float()
    torch.testing.assert_close(mlp()(x, 1.0).x1, x)


# ---- pairs -----------------------------------------------------------------------------------------------------------

def unet(**changes) -> Denoiser:
    """A tiny network of digits, not zero."""
    model = Denoiser(
        UNet(
            UNetConfig(
                **dict(shape=(1, 8, 8), widths=(16,), attention=(), head=16, patch=1) | changes
            )
        ),
        PATH,
    ).eval()
    with torch.no_grad():
        for p in model.parameters(): p += 0.02 * torch.randn(p.shape, generator=rng(4))
    return model


def test_pairs_are_the_teachers_and_kept(tmp_path, monkeypatch):
    model = unet()
    found = teacher_pairs(model, 13, 2.0, 3, seed=5, folder=tmp_path, part=6)
    assert (
        len(found) == 13
        and found.x0.shape == found.x1.shape == (13, 1, 8, 8)
        and sorted(p.name for p in tmp_path.iterdir())
        == [f"6-{k:04d}.safetensors" for k in range(3)]
    )
    x1 = reflow_pairs(classifier_free(model, 2.0), found.x0.float(), 3, dpmpp_2m(), y=found.y)[1]
    assert (x1 - found.x1).abs().max() < 0.1  # 16 bits where that is quicker
    (tmp_path / "6-0001.safetensors").unlink()
    asked = []
    monkeypatch.setattr(
        "diffusion_course.few_step.reflow_pairs",
        lambda *a, **k: asked.append(1) or reflow_pairs(*a, **k),
    )
    again = teacher_pairs(model, 13, 2.0, 3, seed=5, folder=tmp_path, part=6)
    assert len(asked) == 1 and torch.equal(again.x1, found.x1) and torch.equal(again.y, found.y)
    alone = teacher_pairs(model, 13, 2.0, 3, seed=5, part=6)
    assert torch.equal(alone.x0, found.x0) and not torch.equal(
        teacher_pairs(model, 6, 2.0, 3, seed=6, part=6).x0, found.x0[:6]
    )
    assert abs(float(found.x0.float().std()) - 1) < 0.1 and found.y.max() < 10


def test_a_batch_of_pairs():
    data = Pairs(normal(4, 1, 2, 2).half(), normal(4, 1, 2, 2, seed=1).half(), torch.arange(4))
    x, y = data.batch(torch.tensor([2, 0]))
    assert x.dtype == torch.float32 and x.shape == (2, 2, 2, 2) and y.tolist() == [2, 0]
    torch.testing.assert_close(x[0, 0], data.x0[2, 0].float())
    torch.testing.assert_close(x[1, 1], data.x1[0, 0].float())


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: FlowEnd(mlp(), 0),
        lambda: consistency_loss(mlp(), mlp(), mlp(), normal(4, 2).float(), steps=0),
        lambda: consistency_loss(mlp(), mlp(), mlp(), normal(4, 2).float(), huber=-1.0),
        lambda: consistency_loss(mlp(), mlp(), mlp(), normal(4, 2).float(), t=torch.zeros(3)),
        lambda: consistency_loss(mlp(), mlp(), mlp(), normal(4, 2).float(), x0=torch.zeros(4, 3)),
        lambda: sample(mlp(), normal(4, 2).float(), [1.0, 0.5], consistency()),
        lambda: Pairs(torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(2)),
        lambda: Pairs(torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(3)).batch(
            slice(2), torch.ones(2) > 0
        ),
        lambda: teacher_pairs(unet(), 0),
        lambda: teacher_pairs(unet(n_labels=0), 5, w=2.0),
        lambda: ReflowRecipe(flip=True),
        lambda: ReflowRecipe(first=1.5),
        lambda: ReflowRecipe(pairs=0),
        lambda: ConsistencyRecipe(grid=0),
        lambda: ReflowRecipe(teacher="digits").check_data(
            Pairs(torch.zeros(3, 4, 8, 8), torch.zeros(3, 4, 8, 8), torch.zeros(3))
        ),
        lambda: ReflowRecipe(teacher="cold").check_data(
            Pairs(torch.zeros(3, 3, 32, 32), torch.zeros(3, 3, 32, 32), torch.zeros(3))
        ),
    ],
)
def test_wrong_input_says_what_is_expected(wrong):
    with pytest.raises(ValueError, match="expected"): wrong()


# ---- students --------------------------------------------------------------------------------------------------------

@pytest.fixture
def file(tmp_path):
    """A tiny teacher in a file."""
    path = tmp_path / "teacher.safetensors"
    save(unet(), path, half=False)
    return path


def small(file, kind="few-step-digits", **changes) -> ReflowRecipe:
    """A tiny training of it."""
    how = dict(
        teacher=str(file),
        kept=str(file.parent),
        pairs=64,
        pair_steps=3,
        images=640,
        batch=32,
        warmup=64,
        log_every=320,
    )
    return replace(PRESETS[kind], **how | changes)


def test_losses_are_reflow_and_consistency(file):
    model, c = load(file), small(file, first=0.4)
    data = c.pictures()
    x, y = data.batch(slice(32))
    with torch.no_grad():
        x0, x1, t, cond = c.draw(x, y, model, rng())
        assert (
            torch.equal(x0, data.x0[:32].float())
            and torch.equal(x1, data.x1[:32].float())
            and 5 < (t == 0).sum() < 22
            and t.max() < 1
        )
        torch.testing.assert_close(c.loss(model, x, y, rng()), matching_loss(model, x1, t=t, x0=x0, y=y))
        d, g = small(file, "few-step-digits-consistency", first=0.4), rng()
        _, x1, t, _ = d.draw(x, y, model, g)
        want = consistency_loss(model, model, classifier_free(model, d.w), x1, steps=10, t=t, generator=g, y=y)
        torch.testing.assert_close(d.loss(model, x, y, rng()), want)
    assert (c.draw(x, y, model, rng())[2] > 0).any() and not (
        small(file, first=1.0).draw(x, y, model, rng())[2] > 0
    ).any()


def test_other_teachers_have_other_folders(file):
    one = small(file).folder()
    assert (
        one == small(file, images=64).folder()
        and len(
            {
                one,
                small(file, w=1.5).folder(),
                small(file, pair_steps=4).folder(),
                small(file, pair_seed=1).folder(),
            }
        )
        == 4
    )
    model = load(file)
    with torch.no_grad(): next(model.parameters()).add_(0.1)
    save(model, file, half=False)
    assert small(file).folder() != one


@pytest.mark.parametrize("kind", ["few-step-digits", "few-step-digits-consistency"])
def test_a_student_begins_as_its_teacher_and_changes(file, tmp_path, kind):
    c, teacher, x = small(file, kind, stages=(640,)), load(file), torch.randn(3, 1, 8, 8, generator=rng())
    assert torch.equal(c.build()(x, 0.3, y=1).x1, teacher(x, 0.3, y=1).x1) and c.build().training
    student = train(c, tmp_path / "run", progress=False)
    assert type(student.net) is UNet and not torch.equal(student(x, 0.0, y=1).x1, teacher(x, 0.0, y=1).x1)
    assert (
        list((tmp_path / "run" / "samples").glob("*.png"))
        and load(tmp_path / "run" / "model.safetensors").kind == "velocity"
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["few-step-digits", "few-step-digits-consistency"])
def test_a_student_of_digits_beats_its_teacher_in_few_steps(tmp_path, kind):
    from diffusion_course.evaluation import frechet_distance
    from diffusion_course.generation import generate

    c = replace(PRESETS[kind], kept=str(tmp_path))
    student, teacher, y = train(c, tmp_path / "run", progress=False), load("digits"), torch.arange(400) % 10
    real = c.pictures().x1.flatten(1).double()
    away = lambda *how: frechet_distance(real, generate(*how, seed=1, y=y).flatten(1).double())
    for steps in (1, 2):
        assert away(student, 400, steps, c.stepper(), 1.0) < 0.7 * away(
            teacher, 400, steps, euler(), c.w
        )


# ---- the shipped one -------------------------------------------------------------------------------------------------

def test_the_table_says_what_the_lesson_claims():
    book = json.loads((WEIGHTS / "few_step.json").read_text("utf-8"))
    found = {(r["model"], r["sampler"], r["steps"]): r["frechet"] for r in book["scores"]}
    assert (
        not book["about"]["quick"]
        and book["about"]["n"] >= 2000
        and found["reflow", "euler", 2] <= found["teacher", "euler", 2] / 2
    )
    assert all(math.isfinite(v) for v in found.values())
