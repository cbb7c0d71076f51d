"""The contract of models: wrappers nest in any order, move, copy, save and compile; networks of one's own work
everywhere."""
from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from helpers import normal, rng
from torch import Tensor, nn

from diffusion_course import checkpoints, predictions
from diffusion_course.ddpm import invert, linear_betas
from diffusion_course.distributions import running_mixture
from diffusion_course.edm import edm_heun, preconditioned
from diffusion_course.evaluation import log_prob
from diffusion_course.few_step import FlowEnd, consistency
from diffusion_course.generation import InPrecision, generate, previews
from diffusion_course.guidance import classifier_free, classifier_guided
from diffusion_course.hub import Clipped
from diffusion_course.inpainting import known_region, reconstruction_guided, resampling
from diffusion_course.matching import MLP, fit, matching_loss
from diffusion_course.predictions import (
    KINDS,
    Denoiser,
    EmpiricalDenoiser,
    ExactDenoiser,
    ModelWrapper,
    Prediction,
)
from diffusion_course.samplers import (
    adaptive,
    ancestral,
    ddim,
    dpmpp_2m,
    euler,
    euler_maruyama,
    heun,
    midpoint,
    rk4,
    sample,
    trajectory,
    uniform_grid,
)
from diffusion_course.samplers import karras_grid, with_langevin
from diffusion_course.schedules import DDPM, Cosine, Linear, Schedule, VarianceExploding, VariancePreserving
from diffusion_course.solvers import em_step, euler_step, heun_step, integrate, midpoint_step, rk4_step
from diffusion_course.unet import UNet, UNetConfig

MIXTURE = running_mixture()
CLASSIFIER = lambda x, t: -torch.stack(
    [x.square().sum(1), (x - 1).square().sum(1), (x + 1).square().sum(1)], 1
)
KNOWN = torch.tensor([[0.5, -0.5]]), torch.tensor([True, False])
WRAPPERS: dict[str, Callable[..., ModelWrapper]] = {
    "free": lambda m: classifier_free(m, 2.0),
    "guided": lambda m: classifier_guided(m, CLASSIFIER, 0.5),
    "precision": lambda m: InPrecision(m, "fp32"),
    "reconstruction": lambda m: reconstruction_guided(m, *KNOWN, 0.3),
    "end": lambda m: FlowEnd(m, 3),
    "clipped": lambda m: Clipped(m, 1.5),
    "plain": ModelWrapper,
}


def trained_like(n_labels: int = 3, schedule: Schedule | None = None, kind: str = "velocity") -> Denoiser:
    """A network with weights that are not zero."""
    net = MLP(width=16, n_labels=n_labels)
    for p in net.parameters(): p.data += 0.2 * torch.randn(p.shape, generator=rng(p.numel()))
    return Denoiser(net, schedule or Linear(), kind).eval()


@pytest.mark.parametrize("order", list(itertools.permutations(WRAPPERS, 2)), ids="-".join)
def test_wrappers_nest_in_any_order(order):
    outer, inner = (WRAPPERS[name] for name in order)
    bare = trained_like()
    model = outer(inner(bare))
    assert model.net is bare.net and model.schedule is bare.schedule and model.kind == "velocity"
    y = torch.tensor([0, 1, 2, 0])
    x = sample(model, normal(4, 2, dtype=torch.float32), uniform_grid(3), ddim(), y=y)
    assert x.shape == (4, 2) and x.isfinite().all()
    again = sample(copy.deepcopy(model), normal(4, 2, dtype=torch.float32), uniform_grid(3), ddim(), y=y)
    assert torch.equal(x, again)
    assert generate(model, 4, 3, y=y, seed=0, precision="fp32").shape == (4, 2)
    other = outer(inner(trained_like()))
    other.load_state_dict(model.state_dict())
    assert not model.training and all(
        p.device.type == "meta" for p in copy.deepcopy(model).to("meta").parameters()
    )


def test_a_wrapper_of_wrappers_counts_and_is_singular_as_its_parts_say():
    model = classifier_guided(classifier_free(InPrecision(trained_like(kind="eps")), 2.0), CLASSIFIER, 1.0)
    assert model.cost(0.5) == 3 and model.singular(0.0) and not model.singular(0.5)
    run = trajectory(model, normal(4, 2), uniform_grid(4), euler(), y=1)
    assert run.nfe == 4 * 3
    doubled = classifier_free(InPrecision(trained_like()), 2.0)
    assert doubled.null == 3, "the null label is found through a wrapper"


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_compile(name):
    model = WRAPPERS[name](trained_like())
    x, y = normal(4, 2, dtype=torch.float32), torch.tensor([0, 1, 2, 0])
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(x, 0.4, y=y).x1, model(x, 0.4, y=y).x1)
    torch.testing.assert_close(
        sample(compiled, x, uniform_grid(2), euler(), y=y),
        sample(model, x, uniform_grid(2), euler(), y=y),
    )


def test_wrappers_of_exact_models():
    exact = ExactDenoiser(MIXTURE, Linear())
    model = InPrecision(classifier_free(exact, 1.5), "fp32")
    x = generate(model, 5, 4, shape=(2,), y=1, seed=0)
    assert x.shape == (5, 2) and model.net is None
    with pytest.raises(ValueError, match="whose network has no .shape: expected net.shape"):
        generate(model, 5, y=1)


class Own(nn.Module):
    """A network as a user writes one: nothing but what the contract asks for."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.config = dict(width=width)
        self.layers = nn.Sequential(nn.Linear(3, width), nn.SiLU(), nn.Linear(width, 2))

    def forward(self, x: Tensor, t: Tensor) -> Tensor: return self.layers(torch.cat([x, t[:, None]], 1))


class Labelled(Own):
    """And one with labels."""

    def __init__(self, width: int = 8, n_labels: int = 3):
        super().__init__(width)
        self.shape, self.n_labels, self.config = (2,), n_labels, dict(width=width, n_labels=n_labels)
        self.embed = nn.Embedding(n_labels + 1, 2)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        y = torch.full((len(x),), self.n_labels) if y is None else torch.as_tensor(y).expand(len(x))
        return super().forward(x, t) + self.embed(y)


def test_a_network_of_ones_own(tmp_path):
    model = Denoiser(Labelled(), Linear())
    data, labels = MIXTURE.sample_labelled(64, rng())
    fit(model, data, 3, labels=labels, progress=False)
    assert generate(model, 3, 2, guidance=2.0, y=1, seed=0).shape == (3, 2)
    assert [p.step for p in previews(model, 3, 2, y=1, seed=0)] == [1, 2]
    assert invert(model, data, uniform_grid(3), y=labels).shape == data.shape
    assert log_prob(model, data[:2], 3, y=1).shape == (2,)
    with pytest.raises(ValueError, match="a network or schedule 'Labelled': expected one of MLP"):
        checkpoints.save(model, tmp_path / "m.safetensors")
    checkpoints.register(Labelled)
    checkpoints.save(model, tmp_path / "m.safetensors", half=False)
    back = checkpoints.load(tmp_path / "m.safetensors")
    assert torch.equal(generate(back, 3, 2, y=1, seed=0), generate(model, 3, 2, y=1, seed=0))


def test_what_a_network_lacks_is_named_where_it_is_needed():
    model = Denoiser(Own(), Linear())
    data, labels = MIXTURE.sample_labelled(64, rng())
    fit(model, data, 2, progress=False)
    with pytest.raises(ValueError, match="the network has no n_labels"):
        fit(model, data, 2, labels=labels, progress=False)
    with pytest.raises(ValueError, match="whose network has no .shape"): generate(model, 3)
    with pytest.raises(ValueError, match="its network has no n_labels"):
        generate(model, 3, shape=(2,), y=1)
    assert generate(model, 3, 2, shape=(2,), seed=0).shape == (3, 2)


@dataclass
class OwnConfig:
    """Settings of a network."""

    width: int = 8


class Configured(Own):
    """A network made with a dataclass."""

    def __init__(self, config: OwnConfig):
        super().__init__(config.width)
        self.config = config


class Bent(Schedule):
    """A schedule of one's own."""

    def __init__(self, power: float = 2.0): self.power = power
    def alpha(self, t): return torch.as_tensor(t) ** self.power
    def sigma(self, t): return 1 - torch.as_tensor(t)
    def d_alpha(self, t): return self.power * torch.as_tensor(t) ** (self.power - 1)
    def d_sigma(self, t): return -torch.ones_like(torch.as_tensor(t))


def test_networks_and_schedules_of_ones_own_are_saved(tmp_path):
    path = tmp_path / "m.safetensors"
    model = Denoiser(Configured(OwnConfig(5)), Bent(3.0), "v")
    checkpoints.register(Configured, OwnConfig)
    with pytest.raises(ValueError, match="schedule 'Bent'"): checkpoints.save(model, path)
    assert not path.exists()
    checkpoints.register(Bent)
    checkpoints.save(model, path, half=False)
    back = checkpoints.load(path)
    assert back.kind == "v" and back.schedule.power == 3.0 and back.net.config == OwnConfig(5)
    x = normal(4, 2, dtype=torch.float32)
    assert torch.equal(back(x, 0.3).x1, model(x, 0.3).x1)
    with pytest.raises(ValueError, match="the name MLP is one of this package's"):
        checkpoints.register(type("MLP", (Own,), {}))


def test_models_of_lesson_10_are_saved(tmp_path):
    model = preconditioned(MLP(width=16, n_labels=2), VarianceExploding(), 0.8)
    checkpoints.save(model, tmp_path / "m.safetensors", half=False)
    back = checkpoints.load(tmp_path / "m.safetensors")
    x = normal(4, 2, dtype=torch.float32)
    assert (
        torch.equal(back(x, 0.3, y=1).x1, model(x, 0.3, y=1).x1)
        and back.sigma_data == 0.8
        and back.net.shape == (2,)
    )


@pytest.mark.parametrize(("path", "change", "message"), [
    ("m", None, "path is 'm': expected a name that ends in .safetensors"),
    ("m.safetensors", lambda m: classifier_free(m, 2.0), "a ClassifierFree made of another model"),
    ("m.safetensors", lambda m: Denoiser(lambda x, t: x, Linear()), "the network is function"),
])
def test_what_could_not_be_read_back_is_not_written(tmp_path, monkeypatch, path, change, message):
    monkeypatch.chdir(tmp_path)
    model = trained_like()
    with pytest.raises(ValueError, match=message):
        checkpoints.save(change(model) if change else model, path)
    with pytest.raises(ValueError, match="expected what JSON can hold"):
        checkpoints.save(model, "m.safetensors", note=object())
    assert not list(tmp_path.iterdir())


def test_numbers_beyond_16_bits_are_kept(tmp_path):
    model = trained_like()
    model.net.last.bias.data[0] = 1e5
    checkpoints.save(model, tmp_path / "m.safetensors")
    assert checkpoints.load(tmp_path / "m.safetensors").net.last.bias[0] == 1e5


# ---- every stepper, schedule, target, direction, dtype, number of steps ----------------------------------------------

SCHEDULES = dict(
    linear=Linear(),
    cosine=Cosine(),
    vp=VariancePreserving(),
    ve=VarianceExploding(0.02, 20.0),
    ddpm=DDPM(linear_betas(200)),
)
STEPPERS = dict(
    euler=euler(),
    midpoint=midpoint(),
    heun=heun(),
    rk4=rk4(),
    ddim=ddim(),
    ddim_eta=ddim(0.6),
    dpmpp_2m=dpmpp_2m(),
    euler_maruyama=euler_maruyama(1.0),
    ancestral=ancestral(),
    ancestral_beta=ancestral("beta"),
    edm=edm_heun(),
    edm_churn=edm_heun(0.3),
    langevin=with_langevin(ddim()),
    consistency=consistency(),
    known=known_region(heun(), torch.zeros(1, 2), torch.tensor([True, False])),
    resampling=resampling(dpmpp_2m(), torch.zeros(1, 2), torch.tensor([True, False]), 2),
)
DTYPES = {torch.float64: 1e-9, torch.float32: 2e-3, torch.bfloat16: 0.35}


class ExactNet(nn.Module):
    """The network that a perfect training would give, for any target."""

    def __init__(self, schedule: Schedule, kind: str):
        super().__init__()
        self.exact, self.kind, self.shape = ExactDenoiser(MIXTURE, schedule), kind, (2,)

    def forward(self, x: Tensor, t: Tensor) -> Tensor: return self.exact(x, t).target(self.kind)


def run(
    name: str,
    schedule: str,
    kind: str,
    steps: int,
    dtype: torch.dtype,
    forward: bool,
    grid=uniform_grid,
) -> Tensor:
    model = Denoiser(ExactNet(SCHEDULES[schedule], kind), SCHEDULES[schedule], kind)
    ts = grid(steps) if grid is uniform_grid else grid(steps, SCHEDULES[schedule])
    if forward:
        x = normal(6, 2, dtype=torch.float64) * float(model.schedule.sigma(ts[0]))
        return sample(model, x.to(dtype), ts, STEPPERS[name], generator=rng(3))
    return invert(model, MIXTURE.sample(6, rng(1)).to(dtype), ts, STEPPERS[name])


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", STEPPERS)
def test_every_stepper_is_finite_or_refuses(name, schedule):
    some = ("x1", "eps", "velocity")
    cases = [*itertools.product(KINDS, range(1, 6), [True], [uniform_grid]),
             *itertools.product(some, range(1, 6), [False], [uniform_grid]),
             *itertools.product(some, (1, 2, 5), [True, False], [karras_grid])]
    finite = 0
    for kind, steps, forward, grid in cases:
        try: x = run(name, schedule, kind, steps, torch.float64, forward, grid)
        except ValueError as error:
            assert "expected" in str(error) and not forward, error
            continue
        assert x.isfinite().all(), (kind, steps, forward, grid)
        finite += 1
    assert finite >= 39, "from noise to data every stepper does it"


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", ("euler", "heun", "rk4", "ddim", "dpmpp_2m", "midpoint"))
def test_steppers_agree_in_all_dtypes(name, schedule):
    for kind, steps in itertools.product(("x1", "velocity", "v", "F"), (1, 2, 5)):
        exact = run(name, schedule, kind, steps, torch.float64, True)
        for dtype, tolerance in DTYPES.items():
            x = run(name, schedule, kind, steps, dtype, True)
            assert x.dtype == dtype and x.isfinite().all(), (kind, steps, dtype)
            error = (x.double() - exact).abs().median() / (1 + exact.abs().median())
            assert error < tolerance, (kind, steps, dtype, error)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", ("heun", "ddim", "dpmpp_2m", "rk4", "edm"))
def test_there_and_back(name, schedule):
    model, x1 = ExactDenoiser(MIXTURE, SCHEDULES[schedule]), MIXTURE.sample(40, rng(5)).double()
    ts = karras_grid(200, SCHEDULES[schedule])
    z = invert(model, x1, ts, STEPPERS[name])
    back = sample(model, z, ts, STEPPERS[name])
    ends_with_noise = float(SCHEDULES[schedule].sigma(1.0))
    assert (back - x1).norm(dim=1).median() < 0.03 + 2 * ends_with_noise


@pytest.mark.parametrize("name", STEPPERS)
def test_the_callers_state_does_not_leak_in(name):
    class Dropping(ExactNet):
        def __init__(self):
            super().__init__(Linear(), "velocity")
            self.drop = nn.Dropout(0.5)

        def forward(self, x, t): return self.drop(super().forward(x, t))

    model, x = Denoiser(Dropping(), Linear()), normal(5, 2, dtype=torch.float32)
    draw = lambda: sample(model, x, uniform_grid(3), STEPPERS[name], generator=rng(0))
    model.eval()
    expected = draw()
    model.train()
    assert torch.equal(draw(), expected) and model.training and model.net.drop.training
    model.eval()
    with torch.inference_mode(): assert torch.equal(draw(), expected)
    with torch.enable_grad(): assert torch.equal(draw(), expected)
    torch.set_default_dtype(torch.float64)
    try: assert torch.equal(draw(), expected)
    finally: torch.set_default_dtype(torch.float32)
    with torch.device("meta"): assert torch.equal(draw(), expected)


@pytest.mark.parametrize("how", ("train", "inference", "dtype", "device"))
def test_generate_depends_on_its_arguments_alone(how):
    model = classifier_guided(trained_like(), CLASSIFIER, 0.5)
    draw = lambda: generate(model, 3, 3, "euler_maruyama", 1.0, 0, y=1, precision="fp32")
    expected = draw()
    if how == "train": model.train()
    if how == "dtype": torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode(how == "inference"), torch.device("meta" if how == "device" else "cpu"):
            assert torch.equal(draw(), expected)
    finally: torch.set_default_dtype(torch.float32)


def test_a_schedule_may_be_changed_and_learned():
    vp = VariancePreserving()
    before = vp.alpha(0.5).item()
    vp.beta_max = 1.0
    assert vp.alpha(0.5).item() == pytest.approx(math.exp(-(0.1 + 0.55) / 8)) != before
    assert vp.alpha(torch.tensor([0.5]).double()).item() == pytest.approx(vp.alpha(0.5).item())

    class Learned(nn.Module, Schedule):
        def __init__(self):
            super().__init__()
            self.power = nn.Parameter(torch.tensor(1.0))

        def alpha(self, t): return torch.as_tensor(t) ** self.power
        def sigma(self, t): return 1 - torch.as_tensor(t)
        def d_alpha(self, t): return self.power * torch.as_tensor(t) ** (self.power - 1)
        def d_sigma(self, t): return -torch.ones_like(torch.as_tensor(t))

    schedule = Learned()
    model = Denoiser(lambda x, t: x, schedule)
    for t in (0.5, torch.full((4,), 0.5)):
        schedule.power.grad = None
        model(normal(4, 2), t).x1.square().mean().backward()
        assert schedule.power.grad is not None and schedule.power.grad != 0
    with torch.no_grad(): schedule.power += 1
    assert schedule.alpha(0.5).item() == 0.25
    assert sample(model, normal(4, 2), uniform_grid(3), heun()).isfinite().all()

    class Table(Linear):
        def __init__(self): self.table = [1.0]
        def alpha(self, t): return super().alpha(t) * self.table[0]

    table = Table()
    assert table.alpha(0.5) == 0.5
    table.table[0] = 0.5
    assert table.alpha(0.5) == 0.25 and table.log_snr(0.5).item() == pytest.approx(2 * math.log(0.5))


def test_predictions_can_be_replaced_in():
    x, schedule = normal(4, 2), Linear()
    for p in (
        predictions.to_prediction(normal(4, 2, seed=1), "velocity", x, 0.4, schedule),
        ExactDenoiser(MIXTURE, schedule)(x, 0.4),
    ):
        same = dataclasses.replace(p)
        torch.testing.assert_close(same.velocity, p.velocity)
        clipped = p.with_x1(p.x1.clamp(-0.5, 0.5))
        torch.testing.assert_close(0.4 * clipped.x1 + 0.6 * clipped.eps, x)
        assert torch.equal(dataclasses.replace(p, x1=clipped.x1).x1, clipped.x1) and isinstance(
            clipped, Prediction
        )
        torch.testing.assert_close(
            dataclasses.replace(p, x1=clipped.x1, eps=clipped.eps).velocity, clipped.velocity
        )


def test_log_prob_is_right_where_a_wrapper_takes_gradients():
    schedule, x = Linear(), normal(3, 2)
    # p(y | x_t) of a mixture is a classifier that knows everything: the guided model is the exact one of the label
    exact = ExactDenoiser(MIXTURE, schedule)

    def logits(x, t):
        from diffusion_course.schedules import marginal
        return torch.stack(
            [marginal(MIXTURE, schedule, float(t)).label_probs(x)[:, k].log() for k in range(3)], 1
        )

    guided = classifier_guided(exact, logits, 1.0)
    expected = log_prob(exact, x, 60, y=1)
    torch.testing.assert_close(log_prob(guided, x, 60, y=1), expected, atol=2e-3, rtol=2e-3)


def test_steppers_without_parentheses_say_how_to_mend_it():
    model = ExactDenoiser(MIXTURE, Linear())
    for stepper in (ddim, euler, dpmpp_2m, ancestral, adaptive):
        name = stepper.__name__
        with pytest.raises(
            ValueError,
            match=rf"the stepper is the function {name}: .*, as {name}\(\) with parentheses makes",
        ):
            sample(model, normal(3, 2), uniform_grid(2), stepper)
    with pytest.raises(ValueError, match="the stepper is 'ddim'"):
        sample(model, normal(3, 2), uniform_grid(2), "ddim")
    with pytest.raises(ValueError, match="an ancestral step from t"):
        invert(model, normal(3, 2), uniform_grid(3), ancestral())


@pytest.mark.parametrize("step", (euler_step, midpoint_step, heun_step, rk4_step))
def test_fields_may_use_torch_or_math_functions_of_t(step):
    x, ts = normal(4, 2), torch.linspace(0, 1, 30)
    fields = (
        lambda x, t: torch.cos(3 * t) * x,
        lambda x, t: math.cos(3 * t) * x,
        lambda x, t: x * (1 - t**2 / 2) if t < 2 else x,
    )
    ends = [list(integrate(lambda x, t, s, u=u: step(u, x, t, s), x, ts))[-1] for u in fields[:2]]
    torch.testing.assert_close(*ends)
    assert (
        list(integrate(lambda x, t, s: step(fields[2], x, t, s), x.float(), ts))[-1].dtype
        == torch.float32
    )
    g = lambda x, t: torch.sin(t) + 1
    noisy = em_step(fields[0], g, x, 0.2, 0.4, noise=normal(4, 2, seed=1))
    torch.testing.assert_close(
        noisy,
        em_step(fields[1], lambda x, t: math.sin(t) + 1, x, 0.2, 0.4, noise=normal(4, 2, seed=1)),
    )


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float64))
def test_models_of_any_dtype(dtype):
    model = trained_like()
    expected = generate(model, 4, 3, y=1, seed=0, precision="fp32")
    x = generate(copy.deepcopy(model).to(dtype), 4, 3, y=1, seed=0, precision="fp32")
    torch.testing.assert_close(x, expected, atol=0.15 if dtype != torch.float64 else 1e-5, rtol=0.1)
    for precision in ("auto", "bf16"):  # which are for weights in single precision
        same = generate(copy.deepcopy(model).to(dtype), 4, 3, y=1, seed=0, precision=precision)
        assert torch.equal(same, x)
    loss = matching_loss(model, MIXTURE.sample(64, rng()).to(dtype), generator=rng(), y=1)
    assert loss.isfinite()


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float64))
def test_models_of_images_of_any_dtype(dtype):
    config = UNetConfig((1, 8, 8), (16, 16), attention=(4,), head=16, patch=1, n_labels=3)
    model = Denoiser(UNet(config), Linear()).eval()
    for p in model.parameters(): p.data += 0.05 * torch.randn(p.shape, generator=rng(p.numel()))
    expected = generate(model, 2, 2, y=1, seed=0, precision="fp32")
    for precision in ("auto", "bf16", "fp32"):
        x = generate(copy.deepcopy(model).to(dtype), 2, 2, y=1, seed=0, precision=precision)
        torch.testing.assert_close(x, expected, atol=1e-5 if dtype == torch.float64 else 0.1, rtol=0.05)


@pytest.mark.parametrize("run", (
    lambda m, x, y: sample(m, x, uniform_grid(2), euler(), y=y),
    lambda m, x, y: sample(classifier_free(m, 2.0), x, uniform_grid(2), euler(), y=y),
    lambda m, x, y: trajectory(m, x, uniform_grid(2), euler(), y=y),
    lambda m, x, y: invert(m, x, uniform_grid(2), y=y),
    lambda m, x, y: log_prob(m, x, 2, y=y),
), ids=("sample", "guided", "trajectory", "invert", "log_prob"))
def test_labels_from_1_are_refused(run):
    model, x = trained_like(), normal(3, 2, dtype=torch.float32)
    for y in (3, [1, 2, 3], torch.tensor([1, 2, 3])):
        with pytest.raises(ValueError, match="y holds labels .*3.*: expected 0 to 2"):
            run(model, x, y)
    run(model, x, 2)


def test_a_model_on_another_device_is_named():
    model, x = trained_like(), normal(3, 2, dtype=torch.float32).to("meta")
    for call in (lambda: model(x, 0.5), lambda: sample(model, x, uniform_grid(2), heun())):
        with pytest.raises(ValueError, match="x is on meta: expected cpu, where the model is"):
            call()
    wrong = Denoiser(lambda x, t: nn.functional.linear(x, torch.ones(3, 3)), Linear())
    with pytest.raises(RuntimeError, match="mat1"): wrong(normal(3, 2, dtype=torch.float32), 0.5)


class WithoutGradients(ModelWrapper):
    def forward(self, x, t, **cond):
        with torch.no_grad(): return self.model(x, t, **cond)


@pytest.mark.parametrize("kind", ("velocity", "eps", "x1"))
def test_models_that_cut_gradients_are_named(kind):
    model, x = WithoutGradients(trained_like(kind=kind)), normal(3, 2, dtype=torch.float32)
    with pytest.raises(ValueError, match="the model cuts gradients"): log_prob(model, x, 2, y=1)
    with pytest.raises(ValueError, match="the model cuts gradients"):
        reconstruction_guided(model, *KNOWN)(x, 0.5, y=1)
    blind = lambda x, t: CLASSIFIER(x, t).detach()
    with pytest.raises(ValueError, match="the classifier cuts gradients"):
        classifier_guided(trained_like(), blind)(x, 0.5, y=1)


def test_models_that_cannot_be_trained_are_named():
    data = MIXTURE.sample(16, rng())
    with pytest.raises(ValueError, match="ExactDenoiser, has no weights"):
        fit(ExactDenoiser(MIXTURE, Linear()), data)
    with pytest.raises(ValueError, match="Denoiser, has no weights"):
        fit(Denoiser(lambda x, t: x, Linear()), data)
    with torch.inference_mode(): mine, ours = nn.Linear(2, 2), Denoiser(MLP(width=8), Linear())
    with pytest.raises(ValueError, match="made in inference mode"):
        fit(Denoiser(mine, Linear()), data)
    expected = fit(Denoiser(MLP(width=8), Linear()), data, 3, progress=False).loss
    assert torch.equal(fit(ours, data, 3, progress=False).loss, expected)
    ours = Denoiser(MLP(width=8), Linear())
    with torch.device("meta"):
        assert torch.equal(fit(ours, data, 3, progress=False).loss, expected)
        with pytest.raises(ValueError, match="on meta"): fit(Denoiser(MLP(width=8), Linear()), data)


def test_times_keep_their_precision_beside_16_bits():
    schedule = VariancePreserving()
    x1 = MIXTURE.sample(64, rng()).bfloat16()
    assert matching_loss(Denoiser(MLP(), schedule), x1, generator=rng()).isfinite()
    seen = []
    net = lambda x, t: (seen.append(t), x)[1]
    Denoiser(net, schedule)(x1, torch.full((64,), 0.9985))
    Denoiser(net, schedule)(x1, 0.9985)
    assert all(t.dtype == torch.float32 and torch.equal(t, torch.full((64,), 0.9985)) for t in seen)


def test_training_takes_numpys_dtype_and_labels_of_any_kind():
    data, labels = MIXTURE.sample_labelled(64, rng())
    losses = []
    for x, y in (
        (data, labels),
        (data.double(), labels.to(torch.uint8)),
        (data.double().numpy(), labels.tolist()),
        (data, labels.numpy()),
        (data, labels.double()),
    ):
        losses.append(
            fit(Denoiser(MLP(width=8, n_labels=3), Linear()), x, 4, labels=y, progress=False).loss
        )
    for loss in losses[1:]: torch.testing.assert_close(loss, losses[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(batch_size=0), "batch_size is 0"),
        (dict(lr=0.0), "lr is 0.0"),
        (dict(lr=math.nan), "lr is nan"),
        (dict(drop=2), "drop is 2"),
        (
            dict(labels=torch.arange(64) % 3 + 1),
            r"labels holds labels \[1, 2, 3\]: expected 0 to 2",
        ),
        (dict(labels=torch.full((64,), 0.5)), "whole numbers"),
    ],
)
def test_bad_settings_of_training_are_refused(change, message):
    model = Denoiser(MLP(width=8, n_labels=3), Linear())
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        fit(model, MIXTURE.sample(64, rng()), 5, progress=False, **change)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_training_that_diverges_stops_with_the_last_good_state():
    model = Denoiser(MLP(width=8), Linear())
    loss = lambda model, x1, **kw: matching_loss(model, x1, **kw) * (
        float("nan") if next(steps) >= 150 else 1
    )
    steps = itertools.count()
    with pytest.raises(ValueError, match="the loss is nan after 200 steps: expected finite numbers"):
        fit(model, MIXTURE.sample(64, rng()), 300, loss=loss, batch_size=16, progress=False)
    assert all(p.isfinite().all() for p in model.parameters())
    with pytest.raises(ValueError, match="lr is 1e"):
        fit(model, MIXTURE.sample(64, rng()), 10, lr=1e30, progress=False)


def test_empirical_and_exact_models_compute_in_single_precision_at_least():
    x1 = MIXTURE.sample(64, rng())
    for model in (EmpiricalDenoiser(x1, Linear()), ExactDenoiser(MIXTURE, Linear())):
        p = model(x1.bfloat16(), 0.999)
        assert p.x1.dtype == torch.bfloat16 and p.x1.isfinite().all() and p.eps.isfinite().all()


def test_known_pixels_are_exact_on_a_path_that_ends_with_noise():
    x1, mask = MIXTURE.sample(6, rng()).double(), torch.tensor([True, False])
    model = ExactDenoiser(MIXTURE, VarianceExploding(0.3, 20.0))
    x = 20 * normal(6, 2)
    for stepper in (
        known_region(heun(), x1, mask),
        resampling(ddim(), x1, mask, 3),
        resampling(ddim(), x1, mask, 1),
    ):
        out = sample(model, x, uniform_grid(8), stepper, generator=rng())
        assert torch.equal(out[:, 0], x1[:, 0]) and not torch.equal(out[:, 1], x1[:, 1])
