"""Flow maps: the exact map and its limits, the three equations and their orders, networks of two times, losses whose
minimum is the map, paths that are kept, trained maps, and what the table says of them."""
from __future__ import annotations

import copy
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import rng
from torch import Tensor, nn

from diffusion_course.checkpoints import WEIGHTS, info, load, save
from diffusion_course.checks.flow_maps import gaussian_u
from diffusion_course.distributions import GaussianMixture, running_mixture
from diffusion_course.few_step import FlowEnd, teacher_pairs
from diffusion_course.flow_maps import (
    PRESETS, ExactFlowMap, FlowMapRecipe, Paths, TwoTimes, composition_loss, draw_times, jump, mean_flow_loss,
    mean_velocity, path_loss, teacher_paths, two_times,
)
from diffusion_course.generation import generate
from diffusion_course.guidance import classifier_free
from diffusion_course.matching import MLP, fit, matching_loss
from diffusion_course.plots import slope
from diffusion_course.predictions import Denoiser, ExactDenoiser
from diffusion_course.samplers import euler, heun, sample, trajectory, uniform_grid
from diffusion_course.schedules import Cosine, Linear
from diffusion_course.training import train
from diffusion_course.unet import UNet, UNetConfig

PATH = Linear()
EXACT = ExactDenoiser(running_mixture(), PATH)
TRUTH = ExactFlowMap(EXACT, 64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Seeded standard normal numbers in double precision."""
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def at(t: float, n: int = 100) -> Tensor:
    """Points of the running mixture's path at time t."""
    x1 = running_mixture().sample(n, rng(1)).double()
    return PATH.mix(x1, normal(n, 2), torch.tensor(t, dtype=torch.float64))


def two(seed: int = 1, n_labels: int = 0) -> Denoiser:
    """A small map that isn't zero, and depends on both times."""
    model = Denoiser(TwoTimes(MLP(width=16, n_cond=1, n_labels=n_labels), fresh=False), PATH)
    with torch.no_grad():
        for p in model.parameters(): p += 0.2 * torch.randn(p.shape, generator=rng(seed))
    return model.double()


def land(model, x: Tensor, t: Tensor | float, s: Tensor | float) -> Tensor:
    """Where a jump arrives."""
    length = torch.as_tensor(s) - torch.as_tensor(t)
    return x + length.reshape(-1, 1) * mean_velocity(model, x, t, s)


def gradient(model: Denoiser) -> Tensor:
    """Of all weights that a loss touches, in one row."""
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def size(residual: Tensor) -> float: return residual.norm(dim=1).mean().item()


# ---- the exact map ---------------------------------------------------------------------------------------------------

def test_the_map_of_a_gaussian_is_the_closed_form_also_where_s_is_t_and_before_it() -> None:
    mu = torch.tensor([1.0, -0.5], dtype=torch.float64)
    truth = ExactFlowMap(ExactDenoiser(GaussianMixture(mu[None], [0.4]), PATH), 100)
    t, s = torch.rand(2, 50, generator=rng(), dtype=torch.float64)
    s[:10] = t[:10]
    x = normal(50, 2)
    torch.testing.assert_close(mean_velocity(truth, x, t, s), gaussian_u(x, t, s, mu, 0.4), atol=1e-6, rtol=0)


def test_its_limits_are_velocity_and_consistency_function() -> None:
    x = at(0.3)
    torch.testing.assert_close(mean_velocity(TRUTH, x, 0.3, 0.3), EXACT(x, 0.3).velocity)
    torch.testing.assert_close(TRUTH(x, 0.3).velocity, EXACT(x, 0.3).velocity)
    ends = FlowEnd(EXACT, 400)(x, 0.3).x1
    assert (land(TRUTH, x, 0.3, 1.0) - ends).norm(dim=1).median() < 1e-4
    hs = torch.tensor([0.08, 0.04, 0.02, 0.01])
    off = [size(mean_velocity(TRUTH, x, 0.3, 0.3 + h) - EXACT(x, 0.3).velocity) for h in hs.tolist()]
    assert slope(hs, torch.tensor(off)) == pytest.approx(1, abs=0.1)


def test_jumps_with_the_exact_map_end_where_the_flow_does_whatever_their_number() -> None:
    x = normal(100, 2)
    ends = sample(EXACT, x, uniform_grid(400), heun())
    for n in (1, 2, 5):
        run = trajectory(TRUTH, x, uniform_grid(n), jump())
        assert run.nfe == n and (run.xs[-1] - ends).norm(dim=1).median() < 1e-4
    fine = trajectory(EXACT, x, uniform_grid(100), heun())
    coarse = trajectory(TRUTH, x, uniform_grid(5), jump())
    assert (coarse.xs[2] - fine.xs[40]).norm(dim=1).median() < 1e-3


def test_there_and_back_again() -> None:
    x = at(0.2)
    assert (land(TRUTH, land(TRUTH, x, 0.2, 0.8), 0.8, 0.2) - x).abs().max() < 1e-4


def test_labels_go_through() -> None:
    mixture = running_mixture()
    x, y = normal(6, 2), torch.tensor([0, 1, 2, 0, 1, 2])
    truth = ExactFlowMap(ExactDenoiser(mixture, PATH), 50)
    ends = sample(truth, x, [0.0, 1.0], jump(), y=y)
    torch.testing.assert_close(ends[1:2], sample(truth, x[1:2], [0.0, 1.0], jump(), y=1))
    assert not torch.allclose(ends, sample(truth, x, [0.0, 1.0], jump()))


# ---- three equations -------------------------------------------------------------------------------------------------

def test_the_exact_map_satisfies_all_three_equations() -> None:
    x, t, s = at(0.3), torch.full((100,), 0.3).double(), torch.full((100,), 0.8).double()
    v = EXACT(x, t).velocity
    u, change = torch.func.jvp(lambda x, t, s: mean_velocity(TRUTH, x, t, s), (x, t, s),
                               (v, torch.ones_like(t), torch.zeros_like(s)))
    assert (u - v - 0.5 * change).norm(dim=1).median() < 1e-6
    assert size(u - v + 0.5 * change) > 0.1, "the other sign is wrong"
    place, moved = torch.func.jvp(lambda s: land(TRUTH, x, t, s), (s,), (torch.ones_like(s),))
    assert (moved - EXACT(place, s).velocity).norm(dim=1).median() < 1e-6
    assert size(land(TRUTH, land(TRUTH, x, 0.3, 0.5), 0.5, 0.8) - land(TRUTH, x, 0.3, 0.8)) < 1e-4


def test_the_identity_by_differences_is_of_second_order() -> None:
    x, fine = at(0.3), ExactFlowMap(EXACT, 100)
    v = EXACT(x, 0.3).velocity
    hs = torch.tensor([0.04, 0.02, 0.01])
    off = []
    for h in hs.tolist():
        change = (mean_velocity(fine, x + h * v, 0.3 + h, 0.8) - mean_velocity(fine, x - h * v, 0.3 - h, 0.8)) / (2 * h)
        off.append((mean_velocity(fine, x, 0.3, 0.8) - v - 0.5 * change).norm(dim=1).median().item())
    assert slope(hs, torch.tensor(off)) == pytest.approx(2, abs=0.2)


# ---- networks of two times -------------------------------------------------------------------------------------------

def test_a_network_of_two_times_begins_as_its_velocity_model_for_every_s() -> None:
    for net in (MLP(width=16, n_labels=3, seed=2), UNet(UNetConfig((1, 8, 8), (16, 16), 1, (4,), 16, 1, 3))):
        teacher = Denoiser(net, PATH)
        with torch.no_grad():
            for p in teacher.parameters(): p += 0.1 * torch.randn(p.shape, generator=rng(3))
        student = two_times(teacher.train())
        assert student.training and student.net.shape == net.shape and student.net.n_labels == 3
        x, y = torch.randn(4, *net.shape, generator=rng(4)), torch.tensor([0, 1, 2, 3])
        for s in (0.3, 0.9, torch.tensor([0.3, 0.5, 0.7, 1.0])):
            torch.testing.assert_close(mean_velocity(student, x, 0.3, s, y=y), teacher(x, 0.3, y=y).velocity)


def test_it_learns_to_depend_on_s_and_without_s_it_is_the_velocity() -> None:
    model, x = two(), normal(5, 2)
    assert not torch.allclose(mean_velocity(model, x, 0.3, 0.5), mean_velocity(model, x, 0.3, 0.9))
    torch.testing.assert_close(model(x, 0.3).velocity, mean_velocity(model, x, 0.3, 0.3))
    torch.testing.assert_close(sample(model, x, uniform_grid(3), euler()), sample(model, x, uniform_grid(3), heun()),
                               atol=1, rtol=0)  # every other sampler takes it


def test_a_map_is_kept_in_a_file_and_copied(tmp_path: Path) -> None:
    model = two(n_labels=2).float()
    save(model, tmp_path / "map.safetensors", half=False)
    back, x = load(tmp_path / "map.safetensors"), torch.randn(3, 2, generator=rng())
    assert isinstance(back.net, TwoTimes)
    for other in (back, copy.deepcopy(model)):
        torch.testing.assert_close(mean_velocity(other, x, 0.1, 0.7, y=1), mean_velocity(model, x, 0.1, 0.7, y=1))


@pytest.mark.parametrize(("model", "words"), [
    (lambda: Denoiser(MLP(n_cond=2), PATH), "n_cond = 0"), (lambda: Denoiser(MLP(), PATH, "eps"), "predicts eps"),
    (lambda: Denoiser(lambda x, t: x, PATH), "expected a velocity network"),
])
def test_what_cannot_become_a_map_is_refused(model, words: str) -> None:
    with pytest.raises(ValueError, match=words): two_times(model())


def test_a_network_without_a_place_for_the_length_is_refused() -> None:
    with pytest.raises(ValueError, match="expected n_cond = 1"): TwoTimes(MLP())
    assert isinstance(TwoTimes(MLP(n_cond=1)), nn.Module)


def test_attributes_that_the_network_lacks_are_missed_by_name() -> None:
    net = TwoTimes(MLP(n_cond=1))
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        net.nothing_of_the_kind  # noqa: B018


def test_images_are_generated_in_one_evaluation_a_jump() -> None:
    model = two_times(Denoiser(UNet(UNetConfig((1, 8, 8), (16, 16), 1, (4,), 16, 1, 3)), PATH)).eval()
    calls: list[int] = []
    model.net.register_forward_hook(lambda *_: calls.append(1))
    x = generate(model, 3, 4, jump(), seed=0, y=torch.tensor([0, 1, 2]))
    assert x.shape == (3, 1, 8, 8) and len(calls) == 4


# ---- losses ----------------------------------------------------------------------------------------------------------

def test_times_are_ordered_and_their_fractions_kept() -> None:
    t, s = draw_times(20_000, 0.3, 0.2, rng())
    assert (t <= s).all() and t.min() >= 0 and s.max() <= 1
    assert (s == t).double().mean().item() == pytest.approx(0.3, abs=0.02)
    assert ((t == 0) & (s == 1)).double().mean().item() == pytest.approx(0.2, abs=0.02)
    with pytest.raises(ValueError, match="of what `same` leaves"): draw_times(4, 0.6, 0.5)


def test_where_s_is_t_all_losses_are_flow_matching() -> None:
    model, x1, x0 = two(), normal(9, 2, seed=5), normal(9, 2, seed=6)
    t = torch.linspace(0, 0.9, 9).double()
    want = matching_loss(model, x1, x0=x0, t=t)
    for loss in (mean_flow_loss, composition_loss):
        torch.testing.assert_close(loss(model, x1, x0=x0, t=t, s=t), want)
    x = PATH.mix(x1, x0, t)
    torch.testing.assert_close(path_loss(model, x, t, x, t, v=x1 - x0), want)


def test_losses_of_the_exact_map_vanish() -> None:
    x1, x0 = running_mixture().sample(80, rng(2)).double(), normal(80, 2, seed=7)
    t, s = draw_times(80, 0.2, 0.1, rng(3))
    t, s = t.double(), s.double()
    fine = ExactFlowMap(EXACT, 100)
    given = dict(x0=x0, t=t, s=s, teacher=EXACT)
    assert mean_flow_loss(fine, x1, **given) < 1e-4
    assert composition_loss(fine, x1, **given) < 1e-4
    x = PATH.mix(x1, x0, t)
    assert path_loss(fine, x, t, land(fine, x, t, s), s, v=EXACT(x, t).velocity) < 1e-6
    assert mean_flow_loss(two(), x1, **given) > 0.1


def test_a_teachers_first_step_makes_an_error_of_third_order() -> None:
    x1, x0, fine = running_mixture().sample(200, rng(2)).double(), normal(200, 2, seed=7), ExactFlowMap(EXACT, 100)
    t, s = torch.full((200,), 0.2).double(), torch.full((200,), 0.7).double()
    hs = torch.tensor([0.1, 0.05, 0.025])
    off = [composition_loss(fine, x1, x0=x0, t=t, s=s, teacher=EXACT, step=h).sqrt().item() for h in hs.tolist()]
    assert slope(hs, torch.tensor(off)) == pytest.approx(3, abs=0.5)


@pytest.mark.parametrize("loss", [mean_flow_loss, composition_loss])
def test_no_gradient_flows_through_a_goal(loss) -> None:
    x1, x0 = normal(30, 2, seed=5), normal(30, 2, seed=6)
    t, s = torch.full((30,), 0.2).double(), torch.full((30,), 0.9).double()
    model = two()
    loss(model, x1, x0=x0, t=t, s=s).backward()
    ours = gradient(model)
    frozen = copy.deepcopy(model).requires_grad_(False)
    x, v = PATH.mix(x1, x0, t), x1 - x0
    if loss is mean_flow_loss:
        along = v, torch.ones_like(t), torch.zeros_like(s)
        change = torch.func.jvp(lambda x, t, s: mean_velocity(frozen, x, t, s), (x, t, s), along)[1]
        goal = v + 0.7 * change
    else: goal = (land(frozen, land(frozen, x, 0.2, 0.55), 0.55, 0.9) - x) / 0.7
    model.zero_grad()
    (mean_velocity(model, x, t, s) - goal).square().mean().backward()
    torch.testing.assert_close(ours, gradient(model))


def test_a_conditional_velocity_may_stand_in_the_goal() -> None:
    """Over many noises through one point, the mean of the identity's goals is that with the mean velocity."""
    model, x, t, s = two(), normal(1, 2), torch.tensor([0.4]).double(), torch.tensor([0.9]).double()
    vs = normal(50, 2, seed=8)
    def goal(v: Tensor) -> Tensor:
        along = v, torch.ones_like(t), torch.zeros_like(s)
        return v + 0.5 * torch.func.jvp(lambda x, t, s: mean_velocity(model, x, t, s), (x, t, s), along)[1]
    torch.testing.assert_close(torch.cat([goal(v[None]) for v in vs]).mean(0), goal(vs.mean(0, keepdim=True))[0])


def test_a_robust_loss_is_below_one_and_points_the_same_way_for_one_sample() -> None:
    model, x1, x0, t = two(), normal(1, 2, seed=5), normal(1, 2, seed=6), torch.tensor([0.3]).double()
    given = dict(x0=x0, t=t, s=t + 0.4)
    grads = []
    for robust in (0.0, 0.01):
        model.zero_grad()
        value = mean_flow_loss(model, x1, robust=robust, **given)
        value.backward()
        grads.append(gradient(model))
    assert value < 1 and torch.cosine_similarity(*grads, dim=0) > 0.9999


def test_losses_say_what_is_wrong() -> None:
    x1, t = normal(4, 2), torch.full((4,), 0.5)
    with pytest.raises(ValueError, match="expected both, or none"): mean_flow_loss(two(), x1, t=t)
    with pytest.raises(ValueError, match=r"expected \(4,\)"):
        composition_loss(two(), x1, t=t[:2], s=t[:2])
    with pytest.raises(ValueError, match="expected a teacher"):
        composition_loss(two(), x1, step=0.1)


@pytest.mark.slow
def test_maps_learn_the_exact_one() -> None:
    data, noise = running_mixture().sample(4000, rng(1)), torch.randn(1000, 2, generator=rng(2))
    truth = sample(ExactFlowMap(EXACT), noise, [0.0, 1.0], jump())
    untrained = (noise - truth).square().sum(1).mean().sqrt()
    model = Denoiser(TwoTimes(MLP(width=64, n_cond=1)), PATH)
    loss = partial(composition_loss, teacher=EXACT, step=0.1, same=0.1)
    model = fit(model, data, 500, loss=loss, batch_size=256, lr=2e-3, progress=False).model
    one, four = (sample(model, noise, uniform_grid(n), jump()) for n in (1, 4))
    off = [(x - truth).square().sum(1).mean().sqrt() for x in (one, four)]
    assert off[1] < off[0] < 0.8 * untrained


# ---- on images -------------------------------------------------------------------------------------------------------

def unet() -> Denoiser:
    """A tiny teacher that isn't zero."""
    model = Denoiser(UNet(UNetConfig((1, 8, 8), (16, 16), 1, (4,), 16, 1, 10)), PATH).eval()
    with torch.no_grad():
        for p in model.parameters(): p += 0.05 * torch.randn(p.shape, generator=rng(9))
    return model


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """It in a file."""
    save(unet(), tmp_path / "teacher.safetensors", half=False)
    return tmp_path / "teacher.safetensors"


def small(file: Path, **changes) -> FlowMapRecipe:
    """A tiny training."""
    how = dict(teacher=str(file), kept=str(file.parent), pairs=48, pair_steps=4, marks=2, images=320, batch=32,
               warmup=64, log_every=160)
    return replace(PRESETS["flow-map-digits"], **how | changes)


def test_paths_are_those_whose_ends_are_the_pairs_of_lesson_19(tmp_path: Path) -> None:
    teacher = unet()
    paths = teacher_paths(teacher, 5, 2.0, 4, 2, seed=1, part=3)
    pairs = teacher_pairs(teacher, 5, 2.0, 4, seed=1, part=3)
    assert paths.xs.shape == (5, 3, 1, 8, 8)
    assert torch.equal(paths.y, pairs.y) and torch.equal(paths.xs[:, 0], pairs.x0)
    torch.testing.assert_close(paths.xs[:, -1], pairs.x1, atol=2e-3, rtol=0)
    kept = teacher_paths(teacher, 5, 2.0, 4, 2, seed=1, part=3, folder=tmp_path)
    again = teacher_paths(teacher, 5, 2.0, 4, 2, seed=1, part=3, folder=tmp_path)
    assert torch.equal(kept.xs, again.xs) and len(list(tmp_path.iterdir())) == 2
    x, y = paths.batch(torch.tensor([1, 3]))
    assert x.shape == (2, 3, 8, 8) and torch.equal(y, paths.y[[1, 3]])
    assert torch.equal(x[:, 1:2], paths.xs[[1, 3], 1].float())


@pytest.mark.parametrize(("call", "words"), [
    (lambda: teacher_paths(unet(), 4, 2.0, 4, 3), "divides the 4 steps"),
    (lambda: Paths(torch.zeros(3, 1, 2), torch.zeros(3, dtype=torch.long)), "with K >= 1"),
    (lambda: Paths(torch.zeros(3, 2, 2), torch.zeros(3, dtype=torch.long)).batch(slice(2), torch.ones(2)), "mirrored"),
    (lambda: replace(PRESETS["flow-map-digits"], marks=3), "divides pair_steps, 8"),
    (lambda: replace(PRESETS["flow-map-digits"], by="magic"), "composition"),
    (lambda: replace(PRESETS["flow-map-digits"], by="identity"), "forward derivatives"),
    (lambda: replace(PRESETS["flow-map-digits"], same=0.7), "1 - first is left"),
])
def test_what_fits_nothing_is_refused(call, words: str) -> None:
    with pytest.raises(ValueError, match=words): call()


def test_a_batch_asks_for_what_lies_on_the_paths(file: Path) -> None:
    """A network that knew the paths by heart would have no loss but where it is asked for the velocity."""
    recipe = small(file, same=0.0)
    data = recipe.pictures()
    x, y = data.batch(slice(32))
    xs = x.unflatten(1, (3, 1))
    asked: list[tuple[Tensor, Tensor]] = []

    class Knows(nn.Module):
        n_labels = 10

        def forward(self, x, t, s, y):
            i, j = (t * 2).round().long(), (s * 2).round().long()
            rows = torch.arange(len(x))
            assert torch.equal(x, xs[rows, i])
            asked.append((i, j))
            return (xs[rows, j] - x) / (s - t)[:, None, None, None]

    model = Denoiser(Knows(), PATH)
    assert recipe.loss(model, x, y, rng()) < 1e-10
    i, j = asked[0]
    assert (i < j).all() and {(0, 2), (0, 1), (1, 2)} == set(zip(i.tolist(), j.tolist(), strict=True))


def test_the_fraction_same_learns_the_guided_velocity(file: Path) -> None:
    recipe = small(file, same=1.0, first=0.0)
    x, y = recipe.pictures().batch(slice(16))
    guided = classifier_free(load(file), recipe.w)

    class Knows(nn.Module):
        n_labels = 10

        def forward(self, x, t, s, y):
            assert torch.equal(t, s)
            with torch.no_grad(): return guided(x, t, y=y).velocity

    assert recipe.loss(Denoiser(Knows(), PATH), x, y, rng()) < 1e-8


@pytest.mark.parametrize("changes", [
    {}, dict(by="composition"), dict(by="identity", channels_last=False, precision="fp32"),
], ids=["paths", "composition", "identity"])
def test_a_map_begins_as_its_teacher_is_trained_and_read_back(file: Path, tmp_path: Path, changes: dict) -> None:
    recipe, x = small(file, stages=(320,), **changes), torch.randn(3, 1, 8, 8, generator=rng())
    teacher = load(file)
    torch.testing.assert_close(mean_velocity(recipe.build(), x, 0.2, 0.9, y=1), teacher(x, 0.2, y=1).velocity)
    model = train(recipe, tmp_path / "run", progress=False)
    back = load(tmp_path / "run" / "model.safetensors")
    assert isinstance(back.net, TwoTimes) and list((tmp_path / "run" / "samples").glob("*.png"))
    assert not torch.allclose(mean_velocity(model, x, 0.0, 1.0, y=1), teacher(x, 0.0, y=1).velocity, atol=1e-3)
    torch.testing.assert_close(mean_velocity(back, x, 0.0, 1.0, y=1), mean_velocity(model, x, 0.0, 1.0, y=1),
                               atol=2e-2, rtol=0)


def test_other_teachers_and_paths_have_other_folders(file: Path) -> None:
    changes = {}, dict(w=1.5), dict(pair_steps=8), dict(marks=4), dict(pair_seed=1)
    folders = {small(file, **c).folder() for c in changes}
    assert len(folders) == 5 and small(file).folder() == small(file, images=64, first=0.1).folder()


def test_another_path_than_the_linear_one_is_refused(tmp_path: Path) -> None:
    model = unet()
    model.schedule = Cosine()
    save(model, tmp_path / "other.safetensors")
    recipe = small(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="no velocity model on the linear path"):
        recipe.check_data(recipe.pictures())


# ---- the shipped one -------------------------------------------------------------------------------------------------

def book() -> dict: return json.loads((WEIGHTS / "flow_maps.json").read_text(encoding="utf-8"))


def test_the_table_says_what_the_lesson_claims() -> None:
    tables = book()
    assert not tables["about"]["quick"]
    for part in ("points", "digits"):
        seeds: dict[str, set[int]] = {}
        for r in tables[part]: seeds.setdefault(r["loss_name"], set()).add(r["seed"])
        assert all(len(found) == 3 for name, found in seeds.items() if "teacher" not in name), seeds
    mean = lambda name, k: sum(r["rms"][k] for r in tables["points"] if r["loss_name"] == name) / 3
    for k in (0, 1): assert mean("paths *", k) < mean("identity, from scratch", k)
    one = {r["model"]: r["frechet"] for r in tables["latents"] if r["n"] == 10_000}
    assert one["flow-map"] < 1.3 * one["few-step"]


def test_the_shipped_map_is_that_of_the_preset_and_cheaper_than_lesson_19s_student() -> None:
    about, other = info("flow-map"), info("few-step")
    recipe = PRESETS["flow-map"]
    assert about["images"] in recipe.stages and about["config"]["pairs"] == recipe.pairs
    cost = lambda about, each: about["config"]["pairs"] * about["config"]["pair_steps"] * 2 + about["images"] * each
    assert cost(about, 3 + 2 * recipe.same) <= cost(other, 3)
    model = load("flow-map")
    x = generate(model, 2, 1, jump(), seed=0, y=torch.tensor([1, 8]))
    assert x.shape == (2, 4, 8, 8) and model.net.decode(x).shape == (2, 3, 32, 32)
