"""Scores of pictures: closed forms, floors, bias, copies found, likelihood against the exact one; bad input."""

import json
import math
import sys
from types import SimpleNamespace

import pytest
from helpers import normal, rng
import torch
from torch import nn

from diffusion_course import checkpoints
from diffusion_course import evaluation as ev
from diffusion_course.cli import main
from diffusion_course.classifier import Classifier, ClassifierConfig, shifted
from diffusion_course.distributions import GaussianMixture, running_mixture
from diffusion_course.generation import generate
from diffusion_course.images import Images, digits, to_float
from diffusion_course.predictions import Denoiser, ExactDenoiser
from diffusion_course.samplers import euler_maruyama
from diffusion_course.schedules import Linear, VariancePreserving, marginal
from diffusion_course.solvers import heun_step
from diffusion_course.training import train

SMALL = ClassifierConfig(shape=(1, 8, 8), stem=16, widths=(16, 32), blocks=(1, 0))


def some_pictures(n: int = 60, seed: int = 0, shape=(3, 8, 8)) -> torch.Tensor:
    return torch.randint(0, 256, (n, *shape), generator=rng(seed), dtype=torch.uint8)


def mean_colour(x: torch.Tensor) -> torch.Tensor: return x.mean((2, 3))


# ---- the classifier --------------------------------------------------------------------------------------------------

def test_shipped_classifier_is_small_and_its_weights_follow_from_the_seed():
    net, again, other = Classifier(), Classifier(), Classifier(seed=1)
    assert sum(p.numel() for p in net.parameters()) <= 1_250_000
    assert 128 <= net.eval().features(torch.zeros(1, 3, 32, 32)).shape[1] <= 256
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))
    assert not torch.equal(net.last.weight, other.last.weight)


def test_classifier_decides_by_its_features():
    net, x = Classifier(SMALL).eval(), torch.randn(5, 1, 8, 8, generator=rng())
    assert net.features(x).shape == (5, 32) and net(x).shape == (5, 10)
    torch.testing.assert_close(net.last(net.features(x)), net(x))


def test_shifted_pictures_are_windows_of_the_mirrored_one():
    x = torch.arange(64.0).reshape(1, 1, 8, 8).expand(300, 1, 8, 8)
    padded, found = nn.functional.pad(x[:1], (2,) * 4, mode="reflect"), set()
    for moved in shifted(x, 2, rng()):
        fits = [
            (i, j)
            for i in range(5)
            for j in range(5)
            if torch.equal(moved, padded[0, :, i : i + 8, j : j + 8])
        ]
        assert len(fits) == 1
        found.add(fits[0])
    assert len(found) == 25, "every shift comes up among 300"


@pytest.mark.slow
def test_digits_are_learned_and_the_file_gives_the_classifier_back(tmp_path):
    config = ev.ClassifierRecipe(
        data="digits",
        images=20_000,
        lr=5e-3,
        warmup=2_000,
        decay=1.0,
        ema=0.9,
        flip=False,
        shift=1,
        precision="fp32",
        net=SMALL,
    )
    net = train(config, tmp_path, progress=False)
    test = digits("test")
    assert ev.label_agreement(net, test, test.y) > 0.9
    loaded = checkpoints.load(tmp_path / "model.safetensors")
    assert loaded.config == SMALL and ev.label_agreement(loaded, test, test.y) > 0.9
    assert (
        ev.name_of(loaded)
        == ev.name_of(checkpoints.load(tmp_path / "model.safetensors"))
        != ev.name_of(Classifier(SMALL))
    )


@pytest.mark.parametrize(
    "wrong, expected",
    [
        (dict(widths=()), "widths is \\(\\): expected one or more"),
        (dict(blocks=(1,)), "a number >= 0 for each"),
        (dict(shape=(3, 30, 30)), "multiples of 8"),
        (dict(n_labels=1), "n_labels is 1: expected 2 or more"),
    ],
)
def test_bad_shapes_of_a_classifier(wrong, expected):
    with pytest.raises(ValueError, match=expected): ClassifierConfig(**wrong)


@pytest.mark.parametrize(
    "wrong, expected",
    [
        (dict(smoothing=1.0), "smoothing is 1.0: expected a fraction"),
        (dict(shift=32), "shift is 32: expected a whole number of pixels, 0 to 31"),
    ],
)
def test_bad_recipes_of_a_classifier(wrong, expected):
    with pytest.raises(ValueError, match=expected): ev.ClassifierRecipe(**wrong)


# ---- features --------------------------------------------------------------------------------------------------------

def test_features_are_those_of_the_rounded_picture_whatever_the_batch():
    net, x = Classifier(SMALL).eval(), some_pictures(23, shape=(1, 8, 8))
    whole = ev.features(x, net)
    assert whole.dtype == torch.float64 and whole.shape == (23, 32)
    torch.testing.assert_close(ev.features(x, net, batch=5), whole, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        ev.features(to_float(x) + 0.003, net), whole, rtol=0, atol=0
    )  # half a byte is 0.0039
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(ev.features(x, net), whole, rtol=0, atol=0)
    assert ev.features(x, mean_colour).shape == (23, 1)


def test_features_refuse():
    x = some_pictures(4, shape=(1, 8, 8))
    with pytest.raises(ValueError, match=r"training mode: expected net.eval\(\)"):
        ev.features(x, Classifier(SMALL))
    with pytest.raises(ValueError, match="1 values that are NaN"):
        ev.features(torch.full((1, 1, 1, 1), math.nan), mean_colour)
    with pytest.raises(ValueError, match=r"x is \(4, 64\): expected images"):
        ev.features(x.flatten(1), mean_colour)
    with pytest.raises(ValueError, match="no images"): ev.features(x[:0], mean_colour)
    with pytest.raises(ValueError, match=r"y has shape \(3,\): expected \(4,\)"):
        ev.label_agreement(mean_colour, x, torch.zeros(3))
    with pytest.raises(ValueError, match=r"\(B, 1, 8, 8\)"):
        Classifier(SMALL)(torch.zeros(1, 3, 8, 8))


def test_label_agreement_counts():
    x = torch.zeros(4, 3, 2, 2, dtype=torch.uint8)
    for i, channel in enumerate((0, 1, 2, 0)): x[i, channel] = 200
    assert ev.label_agreement(mean_colour, x, torch.tensor([0, 1, 2, 0])) == 1
    assert ev.label_agreement(mean_colour, x, torch.tensor([0, 1, 0, 1])) == 0.5


# ---- distances -------------------------------------------------------------------------------------------------------

def exactly(x: torch.Tensor, mean: torch.Tensor, cov: torch.Tensor) -> torch.Tensor:
    "x moved and mixed so that its mean and covariance are exactly these."
    x = x - x.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(torch.cov(x.T)), x.T, upper=False).T
    return white @ torch.linalg.cholesky(cov).T + mean


def test_frechet_distance_of_gaussians():
    x, y = normal(500, 4), normal(300, 4, seed=1)
    mean, diagonal, other = (
        normal(4, seed=2),
        torch.tensor([1.0, 4.0, 0.25, 2.0]).double(),
        torch.tensor([4.0, 1.0, 1.0, 2.0]).double(),
    )
    a, b = exactly(x, torch.zeros(4).double(), diagonal.diag()), exactly(y, mean, other.diag())
    expected = (
        mean.square().sum() + (diagonal.sqrt() - other.sqrt()).square().sum()
    )  # matrices that commute
    assert ev.frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-9)
    assert ev.frechet_distance(b, a) == pytest.approx(expected.item(), rel=1e-9)
    mix = normal(4, 4, seed=3)
    A, B = mix @ mix.T + torch.eye(4), (normal(4, 4, seed=4) @ mix).T @ (
        normal(4, 4, seed=4) @ mix
    ) + torch.eye(4)
    values = torch.linalg.eigvals(A @ B)  # those of the product that papers write: real and positive
    expected = A.trace() + B.trace() - 2 * values.real.sqrt().sum()
    assert ev.frechet_distance(exactly(x, mean, A), exactly(y, mean, B)) == pytest.approx(
        expected.item(), rel=1e-8
    )


def test_frechet_distance_agrees_with_sqrtm_and_holds_where_covariances_are_singular():
    from scipy.linalg import sqrtm

    a, b = normal(60, 8), normal(60, 8, seed=1) * torch.linspace(0.5, 2, 8) + 0.3
    A, B = torch.cov(a.T), torch.cov(b.T)
    root = torch.as_tensor(sqrtm((A @ B).numpy()).real)
    expected = (a.mean(0) - b.mean(0)).square().sum() + (A + B - 2 * root).trace()
    assert ev.frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-8)
    few = normal(5, 20)
    assert ev.frechet_distance(few, few) == pytest.approx(0, abs=1e-6)
    assert ev.frechet_distance(few[:, :1], few[:, :1] + 2) == pytest.approx(4)


def test_frechet_distance_of_one_distribution_falls_like_one_over_n():
    at = (
        lambda n: sum(
            ev.frechet_distance(normal(n, 10, seed=2 * i), normal(n, 10, seed=2 * i + 1))
            for i in range(20)
        )
        / 20
    )
    small, large = at(100), at(400)
    assert small > 0.3 and 3 < small / large < 5.5


def test_kernel_distance_by_hand_and_whatever_the_blocks():
    a, b = normal(7, 3), normal(5, 3, seed=1)
    k = lambda x, y: float((x @ y / 3 + 1) ** 3)
    mean = lambda x, y, same: sum(
        k(p, q) for i, p in enumerate(x) for j, q in enumerate(y) if not (same and i == j)
    ) / (len(x) * (len(y) - same))
    expected = mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False)
    assert ev.kernel_distance(a, b) == pytest.approx(expected)
    assert ev.kernel_distance(a, b, rows=2) == pytest.approx(expected)


def test_kernel_distance_has_no_bias():
    values = torch.tensor(
        [
            ev.kernel_distance(normal(30, 4, seed=2 * i), normal(30, 4, seed=2 * i + 1))
            for i in range(400)
        ]
    )
    assert abs(values.mean()) < 4 * values.std() / 400**0.5 and (values < 0).double().mean() > 0.3
    assert ev.kernel_distance(normal(300, 4), normal(300, 4, seed=1) + 0.5) > 4 * values.std()


def test_precision_and_recall_on_sets_made_for_it():
    real, k = normal(200, 2), 3
    assert ev.precision_recall(real, real) == (1.0, 1.0)
    assert ev.precision_recall(real, real + 100) == (0.0, 0.0)
    modes = torch.cat([real, real + 100])  # two modes, of which the fakes know one
    precision, recall = ev.precision_recall(modes, normal(400, 2, seed=1))
    assert precision > 0.9 and 0.4 < recall <= 0.5
    precision, recall = ev.precision_recall(normal(400, 2, seed=1), modes)  # the other way round
    assert recall > 0.9 and 0.4 < precision <= 0.5
    line = torch.arange(10.0)[:, None]  # radii: 3 at the ends, 2 beside them and within
    assert ev.precision_recall(line, torch.tensor([[-2.9], [-3.1], [11.9], [12.1]]), k=k)[0] == 0.5
    assert ev.precision_recall(real, torch.cat([real[:50], real[:50] + 100]), rows=7)[0] == 0.5


@pytest.mark.parametrize("distance", [ev.frechet_distance, ev.kernel_distance, ev.precision_recall])
def test_distances_refuse(distance):
    with pytest.raises(ValueError, match=r"a is \(5,\): expected features \(n, d\)"):
        distance(normal(5), normal(5, 1))
    with pytest.raises(ValueError, match=r"b is \(1, 2\): expected features"):
        distance(normal(5, 2), normal(1, 2))
    with pytest.raises(ValueError, match="a has 2 features and b has 3"):
        distance(normal(5, 2), normal(5, 3))
    with pytest.raises(ValueError, match="b holds 1 values that are NaN"):
        distance(
            normal(5, 2),
            normal(5, 2).masked_fill(torch.eye(5, 2) * torch.tensor([1, 0]) > 0, math.nan),
        )


def test_precision_recall_refuses_k():
    with pytest.raises(ValueError, match="k is 5: expected a whole number, 1 to 4"):
        ev.precision_recall(normal(5, 2), normal(9, 2), k=5)


# ---- scores ----------------------------------------------------------------------------------------------------------

def test_score_says_what_it_depends_on():
    text = str(ev.Score("Fréchet distance", 12.345, 10_000, "Classifier 01", floor=1.5, error=0.25))
    assert all(
        part in text
        for part in ("Fréchet distance", "12.3", "± 0.25", "10,000", "Classifier 01", "1.5")
    )
    assert "±" not in str(ev.Score("recall", 0.5, 10, "x")) and "real" not in str(
        ev.Score("recall", 0.5, 10, "x")
    )


def test_scores_compare_only_like_with_like():
    a, b = ev.Score("recall", 0.5, 10, "ours"), ev.Score("recall", 0.75, 10, "ours", floor=0.9)
    assert (
        a < b
        and b > a
        and a <= b
        and b >= a
        and not a > b
        and b - a == 0.25
        and min(b, a) is a
        and float(a) == 0.5
    )
    for other, what in (
        (ev.Score("recall", 0.75, 10, "theirs"), "extractor"),
        (ev.Score("precision", 0.75, 10, "ours"), "name"),
        (ev.Score("recall", 0.75, 20, "ours"), "n, not 10 and 20"),
    ):
        for operation in ("__lt__", "__le__", "__gt__", "__ge__", "__sub__"):
            with pytest.raises(ValueError, match=f"expected the same {what}"):
                getattr(a, operation)(other)
    with pytest.raises(ValueError, match="expected two scores"): a < 0.6  # noqa: B015


def test_real_scores_are_those_of_two_sets_without_a_common_picture():
    first, second = ev.split(30, 70)
    assert len(first) == len(second) == 30 and len(set(first.tolist()) | set(second.tolist())) == 60
    real = normal(70, 3)
    floor = ev.real_scores(real, 30, "numbers")
    assert set(floor) == {"Fréchet distance", "kernel distance", "precision", "recall"} and all(
        s.n == 30 for s in floor.values()
    )
    assert floor["Fréchet distance"].value == ev.frechet_distance(real[first], real[second])
    scores = ev.compare_features(real[first], real[second] + 5, "numbers", floor)
    assert (
        scores["Fréchet distance"].floor
        == floor["Fréchet distance"].value
        < scores["Fréchet distance"].value
    )
    assert scores["recall"] < floor["recall"]
    with pytest.raises(ValueError, match="n is 36: expected 1 to 35"): ev.split(36, 70)
    with pytest.raises(ValueError, match="30 real and 20 made images: expected equally many"):
        ev.compare_features(real[:30], real[:20], "numbers")


class Painter(nn.Module):
    "A model whose pictures have one known mean for each label."

    def __init__(self, means: torch.Tensor):
        super().__init__()
        self.means, self.n_labels, self.shape = nn.Parameter(means), len(means), (3, 8, 8)

    def forward(self, x, t, y=None):
        target = self.means[torch.as_tensor(y).clamp(max=self.n_labels - 1)][:, :, None, None]
        return (target - x) / (1 - t[:, None, None, None]).clamp_min(1e-3)  # all of the mass at one point


def test_evaluate_draws_every_label_and_keeps_to_its_seed():
    means = torch.tensor([[-0.5, 0.0, 0.5], [0.5, 0.0, -0.5]])
    model = Denoiser(Painter(means), Linear())
    y = torch.arange(100) % 2
    x = (
        (means[y][:, :, None, None] + 0.2 * torch.randn(100, 3, 8, 8, generator=rng())).clamp(-1, 1)
        * 127.5
        + 127.5
    ).byte()
    real = Images(x, y, ("low", "high"))
    blue_or_red = lambda x: torch.stack([x[:, 2] - x[:, 0], x[:, 0] - x[:, 2]], 1).mean((2, 3))
    run = lambda **k: ev.evaluate(model, blue_or_red, real, 40, steps=4, progress=False, **k)
    scores = run()
    assert set(scores) == {
        "Fréchet distance", "kernel distance", "precision", "recall", "label agreement", ev.TEXTURES
    }
    assert scores[ev.TEXTURES].extractor == "textures"
    assert scores["label agreement"].value == 1 and all(
        s.n == 40 and s.floor is not None for s in scores.values()
    )
    assert run(batch=7) == scores
    assert run(sampler="euler_maruyama") == run(sampler=euler_maruyama(), batch=11)
    broken = Denoiser(Painter(means * math.nan), Linear())
    with pytest.raises(ValueError, match="NaN or infinite"):
        ev.evaluate(broken, blue_or_red, real, 40, steps=2, progress=False)
    wrong = run(x=generate(model, 40, 4, "dpmpp_2m", seed=0, y=y[:40]), y=1 - y[:40])
    assert wrong["label agreement"].value == 0 and wrong["recall"] == scores["recall"]
    with pytest.raises(ValueError, match="x holds 3 images: expected n = 40"): run(x=x[:3])
    with pytest.raises(ValueError, match="n is 51: expected 1 to 50"):
        ev.evaluate(model, blue_or_red, real, 51)


# ---- copies ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("extractor", [None, lambda x: x.flatten(1)[:, ::3]], ids=["pixels", "features"])
def test_planted_copies_and_mirror_images_are_found(extractor):
    data = some_pictures(250)
    x = torch.stack([data[17], data[201].flip(2), some_pictures(1, seed=9)[0]])
    found = ev.nearest(x, data, extractor, k=2, batch=60)
    assert found.index[:2, 0].tolist() == [17, 201] and found.flipped[:2, 0].tolist() == [False, True]
    assert (
        found.distance[:2, 0].tolist() == [0, 0]
        and (found.distance[:, 1] > 0.3).all()
        and found.distance[2, 0] > 0.3
    )
    assert (found.distance.diff(dim=1) >= 0).all() and found.index.shape == (3, 2)
    straight = ev.nearest(x, data, extractor, flips=False)
    assert straight.distance[0] == 0 and straight.distance[1] > 0.3 and not straight.flipped.any()


def test_nearest_agrees_with_all_distances():
    x, data = some_pictures(5, seed=1), some_pictures(90)
    found = ev.nearest(to_float(x), data, k=90, flips=False, batch=17)
    distances = (to_float(x)[:, None] - to_float(data)[None]).flatten(2).square().mean(2).sqrt().double()
    torch.testing.assert_close(found.distance, distances.sort(1).values, rtol=1e-5, atol=1e-6)
    assert all(len(set(row.tolist())) == 90 for row in found.index)
    with pytest.raises(ValueError, match="k is 91: expected a whole number of neighbours, 1 to 90"):
        ev.nearest(x, data, k=91)
    with pytest.raises(ValueError, match="expected the same"): ev.nearest(x[:, :1], data)


# ---- likelihood ------------------------------------------------------------------------------------------------------

NARROW = GaussianMixture(normal(4, 8) * 0.4, [0.05, 0.1, 0.3, 0.2], labels=[0, 0, 1, 1])


@pytest.mark.parametrize("schedule", [Linear(), VariancePreserving()], ids=["linear", "VP"])
@pytest.mark.parametrize("mixture", [running_mixture(), NARROW], ids=["plane", "narrow"])
def test_log_prob_of_the_exact_model_is_the_exact_one(mixture, schedule):
    x, model = mixture.sample(25, rng()).double(), ExactDenoiser(mixture, schedule)
    torch.testing.assert_close(ev.log_prob(model, x, 40), mixture.log_prob(x), rtol=0, atol=0.02)
    torch.testing.assert_close(ev.log_prob(model, x, 40, y=1), mixture.log_prob(x, 1), rtol=0, atol=0.1)


def test_log_prob_converges_with_the_order_of_its_solver():
    x, model = NARROW.sample(20, rng()).double(), ExactDenoiser(NARROW, Linear())
    error = lambda n: (ev.log_prob(model, x, n, step=heun_step) - NARROW.log_prob(x)).abs().mean()
    assert 3 < error(30) / error(60) < 6


def test_random_signs_give_the_divergence_on_average():
    x, model = NARROW.sample(1, rng()).double().expand(1000, 8), ExactDenoiser(NARROW, Linear())
    signs = 2.0 * torch.randint(2, x.shape, generator=rng(1)).double() - 1
    guesses = ev.log_prob(model, x, 15, probe=signs)
    exact = ev.log_prob(model, x[:1], 15).item()
    assert guesses.std() > 0.01 and abs(guesses.mean() - exact) < 4 * guesses.std() / 1000**0.5


@pytest.mark.parametrize("probes", [0, 1, 3])
def test_bits_per_dim_of_the_exact_model(probes):
    data = NARROW.sample(80, rng())
    x = ((data + 1) * 128).floor().clamp(0, 255).byte()
    u = (x + torch.rand(x.shape, generator=rng(5))) / 128 - 1
    score = ev.bits_per_dim(
        ExactDenoiser(NARROW, Linear()), x, 30, probes=probes, generator=rng(5), batch=100
    )
    exact = 7 - NARROW.log_prob(u.double()) / (8 * math.log(2))
    if probes == 0: assert score.value == pytest.approx(exact.mean().item(), abs=0.003)
    assert abs(score.value - exact.mean()) < 4 * score.error and 0 < score.error < 0.3
    assert score.n == 80 and score.name == "bits per dimension" and "30 steps" in score.extractor


def test_bits_of_noise_spread_over_all_bytes_are_eight():
    even = GaussianMixture(torch.zeros(1, 4), [0.5])
    x = some_pictures(150, shape=(1, 2, 2)).flatten(1)
    score = ev.bits_per_dim(ExactDenoiser(even, Linear()), x, 20, probes=0)
    assert score.value > 8, "no model can be better than the 8 bits that such bytes hold"


def test_the_likelihood_keeps_away_from_an_end_where_a_model_cannot_be_asked():
    mixture = GaussianMixture(torch.tensor([[0.3, -0.2]]), [0.3])
    exact = ExactDenoiser(mixture, Linear())
    model = Denoiser(lambda x, t: exact(x, t).x1, Linear(), "x1")
    x = mixture.sample(40, rng()).double()
    torch.testing.assert_close(ev.log_prob(model, x, 40), mixture.log_prob(x), rtol=0, atol=0.05)


def test_likelihood_refuses():
    model, x = ExactDenoiser(running_mixture(), Linear()), some_pictures(3, shape=(1, 1, 2)).flatten(1)
    with pytest.raises(ValueError, match=r"x is torch.float32 of shape \(3, 2\): expected bytes"):
        ev.bits_per_dim(model, x.float())
    with pytest.raises(ValueError, match="probes is -1: expected a whole number, 0 or more"):
        ev.bits_per_dim(model, x, probes=-1)
    with pytest.raises(ValueError, match=r"y has shape \(2,\): expected \(3,\)"):
        ev.bits_per_dim(model, x, y=torch.zeros(2))
    with pytest.raises(ValueError, match="n is 0: expected a whole number of steps"):
        ev.log_prob(model, x.float(), 0)


# ---- where the bits go -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("log_snr", [-3.0, 0.0, 2.5])
@pytest.mark.parametrize("schedule", [Linear(), VariancePreserving()], ids=["linear", "VP"])
def test_information_rate_of_a_gaussian(schedule, log_snr):
    one = GaussianMixture(torch.tensor([[0.2, -0.1, 0.3]]), [0.5])
    rates = ev.information_rate(
        ExactDenoiser(one, schedule), one.sample(4000, rng()).double(), log_snr, generator=rng(1)
    )
    snr = math.exp(log_snr)
    expected = snr * 0.25 / (1 + snr * 0.25) / (2 * math.log(2))  # snr times the least mean square error
    assert rates.shape == (4000,) and abs(rates.mean() - expected) < 4 * rates.std() / 4000**0.5


def test_information_is_what_the_noisy_point_tells():
    levels, x, z = (
        torch.linspace(-12, 2, 57),
        running_mixture().sample(20_000, rng()),
        torch.randn(20_000, 2, generator=rng(1)),
    )
    rate = (
        torch.stack(
            [
                ev.information_rate(
                    ExactDenoiser(running_mixture(), Linear()), x, l, noise=z
                ).mean()
                for l in levels
            ]
        )
        * 2
    )
    t = float(Linear().t_from_log_snr(2.0))
    entropy = -marginal(running_mixture(), Linear(), t).log_prob(Linear().mix(x, z, t)).mean()
    told = (entropy - math.log(2 * math.pi * math.e * (1 - t) ** 2)) / math.log(2)
    assert torch.trapezoid(rate, levels) == pytest.approx(told.item(), abs=0.05)


def test_information_rate_refuses_an_end_of_the_path():
    with pytest.raises(ValueError, match="log_snr is inf: expected one that the schedule reaches"):
        ev.information_rate(ExactDenoiser(running_mixture(), Linear()), torch.zeros(2, 2), math.inf)


# ---- the distance of papers, which needs what isn't here -------------------------------------------------------------

def test_inception_fid_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ImportError, match="pip install torch-fidelity"):
        ev.inception_fid(some_pictures(), some_pictures())
    monkeypatch.setitem(sys.modules, "torch_fidelity", SimpleNamespace(calculate_metrics=None))
    with pytest.raises(
        FileNotFoundError,
        match=r"no file .*none.pth: expected the weights of Inception-v3, fetched from https",
    ):
        ev.inception_fid(some_pictures(), some_pictures(), tmp_path / "none.pth")


def test_inception_fid_hands_bytes_to_torch_fidelity(monkeypatch, tmp_path):
    calls, weights, x = [], tmp_path / "weights.pth", some_pictures(6)
    weights.touch()
    answer = lambda **given: calls.append(given) or {"frechet_inception_distance": 3.5}
    monkeypatch.setitem(sys.modules, "torch_fidelity", SimpleNamespace(calculate_metrics=answer))
    score = ev.inception_fid(to_float(x), some_pictures(9, seed=1), weights)
    assert score.value == 3.5 and score.n == 6 and "Inception" in score.extractor
    given, = calls
    assert (
        torch.equal(torch.stack([given["input1"][i] for i in range(len(given["input1"]))]), x)
        and len(given["input2"]) == 9
    )
    assert given["feature_extractor_weights_path"] == str(weights) and given["fid"] is True
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_: torch.device("cuda"))
    for device in ("auto", "cpu"): ev.inception_fid(x, x, weights, device=device)
    assert [call["cuda"] for call in calls[1:]] == [True, False], "what is asked for counts"
    with pytest.raises(ValueError, match="real has 1 channels: expected 3"):
        ev.inception_fid(x, x[:, :1], weights)


# ---- the command ---------------------------------------------------------------------------------------------------

def test_the_command_scores_a_model(monkeypatch, tmp_path, capsys):
    means = torch.linspace(-0.6, 0.6, 10)[:, None].repeat(1, 3)
    monkeypatch.setattr(
        ev,
        "cifar10",
        lambda part: Images(some_pictures(50), torch.arange(50) % 10, tuple("0123456789")),
    )
    judge = Classifier(ClassifierConfig(shape=(3, 8, 8), stem=8, widths=(8, 16), blocks=(0, 0))).eval()
    checkpoints.save(judge, tmp_path / "judge.safetensors")
    known = {"model": Denoiser(Painter(means), Linear())}
    monkeypatch.setattr(
        checkpoints, "load", lambda name, load=checkpoints.load: known.get(str(name)) or load(name)
    )
    flags = [
        "--n",
        "20",
        "--steps",
        "2",
        "--bits",
        "3",
        "--classifier",
        str(tmp_path / "judge.safetensors"),
        "--out",
        str(tmp_path / "s.json"),
    ]
    assert main(["evaluate", "model", "--guidance", "1.5", *flags]) == 0
    said = capsys.readouterr().out.splitlines()
    written = json.loads((tmp_path / "s.json").read_text("utf-8"))
    assert len(said) == len(written) == 7
    assert (
        [s["name"] for s in written][-3:] == ["label agreement", "Fréchet distance", "bits per dimension"]
        and written[0]["n"] == 20
        and written[-1]["n"] == 3
    )
    assert all(line.startswith(s["name"]) for line, s in zip(said, written, strict=True))
    assert (
        main(["evaluate", "model", "--n", "26", *flags[2:]]) == 2
        and "n is 26: expected 1 to 25" in capsys.readouterr().err
    )
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    assert (
        main(["evaluate", "model", *flags, "--fid", "true"]) == 2
        and "torch-fidelity" in capsys.readouterr().err
    )


# ---- what lesson 16 reads --------------------------------------------------------------------------------------------

def test_shipped_tables_belong_to_the_shipped_models():
    tables = json.loads((checkpoints.WEIGHTS / "tables.json").read_text("utf-8"))
    reference, of = checkpoints.read_tensors(checkpoints.WEIGHTS / "reference" / "cifar10.safetensors")
    name, images = ev.name_of(checkpoints.load("cifar10-classifier")), checkpoints.info("cifar10")["images"]
    again = "run tools/measure_tables.py again"
    assert not tables["about"]["quick"] and tables["about"]["images"] == images, again
    assert tables["about"]["extractor"] == of["extractor"] == name, again
    assert reference["features"].shape == (2000, 192) and reference["covariance"].shape == (192, 192)
    for table in ("guidance", "samplers", "best", "bits", "bits by steps", "levels", "copies"):
        assert any(
            row["images"] == images and row["extractor"] == name for row in tables[table]
        ), f"no {table} of this model: {again}"
    assert [row["log_snr"] for row in tables["reading"]] == [row["log_snr"] for row in tables["levels"]], again
    assert all(row["extractor"] == name for row in tables["new"]), again


def test_labels_without_images_are_refused():
    real = Images(torch.zeros(8, 1, 8, 8, dtype=torch.uint8), torch.zeros(8, dtype=torch.long), ("a",))
    with pytest.raises(ValueError, match="y is given without x"):
        ev.evaluate(ExactDenoiser(running_mixture(), Linear()), torch.nn.Flatten(), real, 4, y=torch.zeros(4))


@pytest.mark.parametrize("schedule, ts, message", [
    (VariancePreserving(), torch.linspace(1, 0, 5), "ts holds 1, where the model is singular"),
    (Linear(), torch.linspace(0, 1, 5), "ts rises from 0 to 1: expected falling times"),
])
def test_times_of_log_prob(schedule, ts, message):
    with pytest.raises(ValueError, match=message):
        ev.log_prob(ExactDenoiser(running_mixture(), schedule), torch.zeros(2, 2), ts)


@pytest.mark.parametrize("start, stop", [(0, 1), (1, 1), (2, 0), (1, -1)])
def test_likelihood_grid_falls_within_the_path(start, stop):
    with pytest.raises(ValueError, match="expected 0 <= stop < start <= 1"):
        ev.likelihood_grid(3, start, stop)


def test_name_of_knows_weights_of_any_dtype():
    net = torch.nn.Linear(2, 2)
    names = {ev.name_of(net.to(dtype)) for dtype in (torch.float32, torch.bfloat16, torch.float16)}
    assert len(names) == 3
