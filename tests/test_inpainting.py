"""Inpainting: masks, steppers and models made of others, what stays bit for bit, seams, latents, errors."""

import itertools

import pytest
from helpers import rng
import torch
from torch import nn

from diffusion_course.distributions import GaussianMixture, running_mixture
from diffusion_course.generation import generate
from diffusion_course.guidance import classifier_free
from diffusion_course.images import to_bytes, to_float
from diffusion_course.inpainting import (
    box, brush, as_mask, crop_around, half, known_region, latent_inpaint, latent_mask, noised_again, paste_back,
    reconstruction_guided, resampling, seam,
)
from diffusion_course.metrics import energy_distance
from diffusion_course.predictions import Denoiser, EmpiricalDenoiser, ExactDenoiser
from diffusion_course.samplers import Recorder, ddim, dpmpp_2m, euler_maruyama, heun, sample, trajectory, uniform_grid
from diffusion_course.schedules import Cosine, Linear, VarianceExploding, VariancePreserving, marginal
from diffusion_course.unet import UNet, UNetConfig
from diffusion_course.vae import VAE, VAEConfig

FIRST = torch.tensor([True, False])
HERE = torch.tensor([[0.55, 0.0]])


def tiny(shape: tuple[int, int, int] = (3, 8, 8)) -> Denoiser:
    """A small U-Net with random weights, none of them zero."""
    net = UNet(UNetConfig(shape=shape, widths=(16, 16), attention=(), head=16, patch=1, n_labels=3))
    for p in net.parameters(): p.data += 0.1 * torch.randn(p.shape, generator=rng(1))
    return Denoiser(net.eval(), Linear())


@pytest.fixture(scope="module")
def exact() -> ExactDenoiser:
    return ExactDenoiser(running_mixture(), Linear())


# ---- masks -----------------------------------------------------------------------------------------------------------

def test_masks_are_true_where_known():
    for side, k in (("left", (0, 0)), ("top", (0, 0)), ("right", (0, -1)), ("bottom", (-1, 0))):
        m = half(side, (4, 6))
        assert m.dtype == torch.bool and m.float().mean() == 0.5 and not m[k]
    m = box(1, 2, 2, 3, (5, 6))
    assert (~m).sum() == 6 and not m[1:3, 2:5].any()
    assert (~box(-1, 4, 3, 9, (5, 6))).nonzero().tolist() == [[r, c] for r in (0, 1) for c in (4, 5)]


def test_brush_is_all_within_its_radius():
    m = brush([(2, 2), (2, 9)], 1.5, (6, 12))
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(12.0), indexing="ij")
    away = torch.hypot(rows - 2, columns - columns.clamp(2, 9))
    assert torch.equal(m, away > 1.5)
    assert (~brush([(3, 3)], 1, (7, 7))).sum() == 5


def test_as_mask_takes_only_what_fits():
    x, m = torch.zeros(4, 3, 4, 4), torch.ones(4, 4, dtype=torch.bool)
    assert as_mask(m, x).shape == (1, 1, 4, 4)
    for shape in ((4, 1, 4, 4), (1, 3, 4, 4)): assert as_mask(torch.ones(shape, dtype=torch.bool), x).ndim == 4
    for shape in ((4, 4, 4), (3, 4, 4), (5, 5), (2, 1, 4, 4), (4,)):  # three dimensions could mean a batch or channels
        with pytest.raises(ValueError, match=r"mask has shape .* beside x of shape \(4, 3, 4, 4\): expected \(4, 4\)"):
            as_mask(torch.ones(shape, dtype=torch.bool), x)
    with pytest.raises(ValueError, match=r"mask is torch.float32: expected torch.bool"):
        as_mask(m.float(), x)
    with pytest.raises(ValueError, match=r"mask is list: expected torch.bool"): as_mask([True], x)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: half("up"), "side is 'up': expected one of left, right, top, bottom"),
        (
            lambda: box(40, 0, 3, 3),
            r"a box of 3 x 3 at row 40, column 0: expected one that meets \(32, 32\)",
        ),
        (lambda: brush([]), r"points has shape \(0,\): expected \(n, 2\)"),
        (lambda: brush([(1, 1)], 0), "radius is 0: expected a number > 0"),
        (
            lambda: resampling(ddim(), HERE, FIRST, 0),
            "repeats is 0: expected a whole number, 1 or more",
        ),
        (lambda: resampling(ddim(), HERE, FIRST, 2, 0.5), "jump is 0.5: expected a whole number"),
        (lambda: reconstruction_guided(None, HERE, FIRST, -1.0), None),
        (
            lambda: noised_again(Linear(), HERE, 0.3, 0.6, HERE),
            "from s = 0.3 to t = 0.6: expected 0 <= t <= s <= 1",
        ),
        (
            lambda: paste_back(HERE, HERE.double(), FIRST),
            r"edited is torch.float32 of shape \(1, 2\): expected the original's",
        ),
        (
            lambda: paste_back(HERE, HERE, FIRST, 2),
            "feather is 2, mask has 2 dimensions: expected 0 or more, and images",
        ),
        (
            lambda: crop_around(torch.ones(4, 4, dtype=torch.bool)),
            "mask is torch.bool .*: expected .*one pixel or more to fill",
        ),
        (
            lambda: crop_around(half(), size=(32, 8)),
            r"size is \(32, 8\): expected 16 to 32 pixels along side 1",
        ),
        (
            lambda: latent_mask(half(), (5, 8)),
            r"cells are \(5, 8\): expected numbers that divide 32 and 32",
        ),
        (
            lambda: seam(torch.zeros(1, 3, 4, 4), torch.ones(4, 4, dtype=torch.bool)),
            "expected a border",
        ),
    ],
)
def test_bad_input_is_named(exact, make, message):
    if message is None:
        with pytest.raises(ValueError, match=r"weight is -1.0: expected a number >= 0"):
            reconstruction_guided(exact, HERE, FIRST, -1.0)
    else:
        with pytest.raises(ValueError, match=message): make()


USES = {
    "known_region": lambda x1, mask: known_region(ddim(), x1, mask),
    "resampling": lambda x1, mask: resampling(ddim(), x1, mask, 2),
    "resampling once": lambda x1, mask: resampling(ddim(), x1, mask, 1),
    "reconstruction_guided": lambda x1, mask: reconstruction_guided(tiny(), x1, mask),
    "seam": seam,
}


@pytest.mark.parametrize("use", USES.values(), ids=list(USES))
def test_what_is_known_must_be_numbers_from_minus_1_to_1(use):
    image, mask = torch.rand(1, 3, 8, 8, generator=rng()), half("right", (8, 8))
    with pytest.raises(ValueError, match="is torch.uint8 of shape .*: expected floating-point numbers"):
        use((255 * image).byte(), mask)
    with pytest.raises(ValueError, match="runs from 0.* to 2.*: expected -1 to 1"):
        use(255 * (image + 1e-3), mask)
    image[..., 2] = torch.nan
    with pytest.raises(ValueError, match="holds 24 values that are NaN or infinite"):
        use(image, mask)


def test_what_is_unknown_may_be_anything():
    image, mask, model = torch.rand(1, 3, 8, 8, generator=rng()), half("right", (8, 8)), tiny()
    damaged, noise = torch.where(mask, image, torch.nan), torch.randn(1, 3, 8, 8, generator=rng(2))
    for use in (known_region, resampling):
        draw = lambda x1, use=use: sample(model, noise, uniform_grid(3), use(ddim(), x1, mask), generator=rng(3))
        assert torch.equal(draw(damaged), draw(image))
    a, b = (reconstruction_guided(model, x1, mask)(noise, 0.5).x1 for x1 in (damaged, image))
    assert torch.equal(a, b)


def test_masks_are_on_the_cpu_whatever_the_default_device_is():
    masks = lambda: torch.stack([half(), box(1, 2, 3, 4), brush([(1, 2), (3, 4)])])
    with torch.device("meta"): found = masks()
    assert torch.equal(found, masks())


def test_a_known_part_for_other_samples_is_named(exact):
    x = torch.zeros(5, 2)
    for stepper in (
        known_region(ddim(), torch.zeros(2, 2), FIRST),
        known_region(ddim(), torch.zeros(1, 3), torch.ones(3, dtype=torch.bool)),
    ):
        with pytest.raises(ValueError, match=r"x1 has shape .* beside x of shape \(5, 2\): expected one sample, or 5"):
            sample(exact, x, uniform_grid(2), stepper)


# ---- steppers --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(
    "stepper",
    [ddim(), heun(), dpmpp_2m(), euler_maruyama()],
    ids=["ddim", "heun", "dpmpp_2m", "em"],
)
@pytest.mark.parametrize("schedule", [Linear(), Cosine(), VariancePreserving()], ids=str)
def test_known_ends_exactly_where_the_path_ends_without_noise(stepper, schedule):
    model, x = ExactDenoiser(running_mixture(), schedule), torch.randn(20, 2, generator=rng())
    wraps = (known_region(stepper, HERE, FIRST), resampling(stepper, HERE, FIRST, 2, 2))
    for ours in wraps:
        end = sample(model, x, uniform_grid(6), ours, generator=rng(1))
        assert torch.equal(end[:, 0], HERE[0, 0].expand(20)) and end.isfinite().all()


def test_known_part_holds_where_the_model_can_not_be_asked_at_the_ends():
    data = torch.randn(30, 2, generator=rng())
    end = sample(EmpiricalDenoiser(data, Linear()), torch.randn(9, 2, generator=rng(1)), uniform_grid(5),
                 known_region(heun(), HERE, FIRST), generator=rng(2))
    assert torch.equal(end[:, 0], HERE[0, 0].expand(9))


def test_known_region_gives_the_known_part_the_law_of_time_s(exact):
    recorder, x = Recorder(exact, generator=rng(3)), torch.randn(20_000, 2, generator=rng())
    y = recorder.step(known_region(ddim(), HERE, FIRST), x, 0.2, 0.7)
    assert abs(y[:, 0].mean() - 0.7 * 0.55) < 0.01 and abs(y[:, 0].std() - 0.3) < 0.01
    assert torch.equal(y[:, 1], recorder.step(ddim(), x, 0.2, 0.7)[:, 1])


def test_no_known_part_changes_nothing_and_all_of_it_everything(exact):
    x, none = torch.randn(8, 2, generator=rng()), torch.zeros(2, dtype=torch.bool)
    plain = sample(exact, x, uniform_grid(5), heun())
    assert torch.equal(sample(exact, x, uniform_grid(5), known_region(heun(), HERE, none)), plain)
    assert torch.equal(sample(exact, x, uniform_grid(5), known_region(heun(), HERE, ~none)), HERE.expand(8, 2))
    p, q = (m(x, 0.4) for m in (exact, reconstruction_guided(exact, HERE, none, 2.0)))
    torch.testing.assert_close(p.x1, q.x1)


@pytest.mark.parametrize("schedule", [Linear(), Cosine(), VarianceExploding()], ids=str)
def test_noised_again_leads_from_one_marginal_to_another(schedule):
    one = GaussianMixture([[1.0, -0.5]], [0.4])
    x = marginal(one, schedule, 0.9).sample(40_000, rng())
    up = noised_again(schedule, x, 0.9, 0.5, torch.randn(x.shape, generator=rng(1)))
    want = marginal(one, schedule, 0.5)
    torch.testing.assert_close(up.mean(0), want.means[0].float(), atol=0.03 * float(want.stds[0]), rtol=0)
    torch.testing.assert_close(up.std(0), want.stds[[0, 0]].float(), atol=0, rtol=0.02)
    assert torch.equal(noised_again(schedule, x, 0.9, 0.9, x), x)


@pytest.mark.parametrize("repeats, jump", [(1, 1), (3, 1), (2, 4)])
@pytest.mark.parametrize("stepper, calls", [(ddim(), 1), (heun(), 2)], ids=["ddim", "heun"])
def test_resampling_costs_what_it_says(exact, stepper, calls, repeats, jump):
    x = torch.randn(3, 2, generator=rng())
    run = trajectory(exact, x, uniform_grid(5), resampling(stepper, HERE, FIRST, repeats, jump), generator=rng())
    assert run.nfe == 5 * repeats * jump * calls
    guided = reconstruction_guided(exact, HERE, FIRST)
    last = calls == 2  # Heun would ask at the end, where this model can't be asked: there the step is DDIM's
    run = trajectory(guided, x, uniform_grid(5), known_region(stepper, HERE, FIRST), generator=rng())
    assert run.nfe == 2 * (5 * calls - last)


@pytest.mark.parametrize("stepper", [ddim, dpmpp_2m])
def test_one_repeat_is_known_region(exact, stepper):
    x = torch.randn(6, 2, generator=rng())
    a, b = (
        sample(exact, x, uniform_grid(8), s(stepper(), HERE, FIRST), generator=rng(1))
        for s in (known_region, lambda *a: resampling(*a, 1))
    )
    assert torch.equal(a, b)


def test_multistep_methods_start_afresh_when_resampled(exact):
    seen, before = [], dpmpp_2m()

    def spied(model, x, t, s):
        seen.append((round(t, 3), model.previous is None))
        return before(model, x, t, s)
    sample(
        exact,
        torch.randn(6, 2, generator=rng()),
        torch.tensor([0.2, 0.4, 0.6], dtype=torch.float64),
        resampling(spied, HERE, FIRST, 3, 2),
        generator=rng(1),
    )
    assert seen == [(t, True) for t in 3 * (0.2, 0.3) + 3 * (0.4, 0.5)]


def given(x: float) -> GaussianMixture:
    """p(y | x) of the running mixture."""
    m = running_mixture()
    log = m.weights.log() - m.stds.log() - (x - m.means[:, 0]) ** 2 / (2 * m.stds**2)
    return GaussianMixture(m.means[:, 1:], m.stds, log.softmax(0))


def test_resampling_and_guidance_come_nearer_to_the_exact_conditional(exact):
    x, real = torch.randn(600, 2, generator=rng(1)), given(0.55).sample(600, rng(2))
    def away(stepper, model=exact):
        return energy_distance(
            sample(model, x, uniform_grid(30), stepper, generator=rng(3))[:, 1:], real
        )
    plain = away(known_region(ddim(), HERE, FIRST))
    assert plain > 10 * energy_distance(given(0.55).sample(600, rng(4)), real)
    assert away(resampling(ddim(), HERE, FIRST, 10)) < 0.6 * plain
    assert away(resampling(ddim(), HERE, FIRST, 5), reconstruction_guided(exact, HERE, FIRST, 2.0)) < 0.5 * plain


# ---- models ----------------------------------------------------------------------------------------------------------

def test_reconstruction_guidance_is_its_formula(exact):
    x, t, w = torch.randn(7, 2, generator=rng()), 0.6, 1.7
    at = x.clone().requires_grad_()
    slope, = torch.autograd.grad((exact(at, t).x1[:, 0] - 0.55).square().sum(), at)
    p, q = exact(x, t), reconstruction_guided(exact, HERE, FIRST, w)(x, t)
    torch.testing.assert_close(q.x1, p.x1 - w * t / 2 * slope)
    torch.testing.assert_close(q.mix(t, 1 - t), x)
    assert not q.x1.requires_grad and not q.eps.requires_grad


def test_reconstruction_guidance_is_bayes_rule_for_one_gaussian_in_the_limit():
    """Data that is spread far more widely than the noise: given x_t, x1 is N(x_t / alpha, (sigma / alpha)²), as is
    assumed."""
    wide = ExactDenoiser(GaussianMixture([[0.0, 0.0]], [1e3]), Linear())
    p = reconstruction_guided(wide, HERE, FIRST, 1.0)(torch.randn(5, 2, generator=rng()), 0.5)
    torch.testing.assert_close(p.x1[:, 0], HERE[0, 0].expand(5), atol=1e-4, rtol=0)


def test_weight_zero_is_the_model_itself(exact):
    x = torch.randn(4, 2, generator=rng())
    free = reconstruction_guided(exact, HERE, FIRST, 0.0)
    assert torch.equal(free(x, 0.3).x1, exact(x, 0.3).x1) and free.cost(0.3) == 1 and not free.singular(1.0)
    assert reconstruction_guided(exact, HERE, FIRST).singular(1.0)


def test_pictures_guided_by_label_and_by_what_is_known():
    model, x1, m = tiny(), torch.rand(2, 3, 8, 8, generator=rng()) * 2 - 1, half("left", (8, 8))
    guided = reconstruction_guided(model, x1, m, 2.0)
    out = generate(guided, 2, 3, known_region(ddim(), x1, m), 2.0, seed=0, y=torch.tensor([0, 2]), precision="fp32")
    assert torch.equal(out[..., m], x1[..., m]) and not out.requires_grad
    assert classifier_free(guided, 2.0).cost(0.5) == 4
    assert all(p.grad is None for p in model.parameters())
    many = generate(reconstruction_guided(model, x1[:1], m), 3, 3, known_region(ddim(), x1[:1], m), seed=0, y=1)
    assert torch.equal(many[..., m], x1[:1, :, m].expand(3, -1, -1)) and not torch.equal(many[0], many[1])


# ---- pixels ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", [torch.uint8, torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize("feather", [0, 3])
def test_twenty_edits_leave_untouched_pixels_bit_for_bit(kind, feather):
    x = torch.randint(0, 256, (2, 3, 16, 16), generator=rng(), dtype=torch.uint8)
    first = state = x if kind == torch.uint8 else to_float(x).to(kind)
    untouched = torch.ones(16, 16, dtype=torch.bool)
    for k in range(20):
        m = box(k % 7, 3 * k % 11, 4, 5, (16, 16))
        ruined = (state.float() * 0.9 + 3 * torch.randn(state.shape, generator=rng(k))).to(kind)
        state, untouched = paste_back(ruined, state, m, feather), untouched & m
    same = (state == first).all(1)
    assert same[:, untouched].all() and not same[:, ~untouched].all() and state.dtype == kind
    assert 0 < untouched.float().mean() < 1
    if kind == torch.float32: assert torch.equal(to_bytes(state)[..., untouched], x[..., untouched])


def test_paste_back_takes_nan_and_infinity_from_nowhere():
    x, bad = torch.zeros(1, 1, 4, 4), torch.full((1, 1, 4, 4), float("nan"))
    assert paste_back(bad, x, half("left", (4, 4)), 2)[..., 2:].eq(0).all()


def test_feathering_fades_out_inside_the_hole_alone():
    m, new, old = half("right", (8, 8)), torch.ones(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    row = paste_back(new, old, m, 3)[0, 0, 4]
    torch.testing.assert_close(row, torch.tensor([0, 0, 0, 0, 0.25, 0.5, 0.75, 1]))


def test_crop_around_holds_the_hole():
    for top, left, margin in itertools.product((0, 7, 28), (0, 9, 25), (0, 2, 50)):
        m = box(top, left, 4, 7)
        rows, columns = crop_around(m, margin)
        assert (~m[rows, columns]).sum() == (~m).sum()
        assert rows.stop - rows.start == min(4 + 2 * margin, 32) and 0 <= rows.start and rows.stop <= 32
        rows, columns = crop_around(m, size=(16, 24))
        assert m[rows, columns].shape == (16, 24) and (~m[rows, columns]).sum() == (~m).sum()


def test_seam_sees_a_jump_and_not_a_slope():
    m, ramp = half("right", (8, 8)), torch.linspace(-1, 1, 8).expand(2, 3, 8, 8)
    torch.testing.assert_close(seam(ramp, m), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(seam(torch.where(m, ramp, ramp + 0.5), m), torch.full((2,), 0.5))
    noise = torch.randn(400, 3, 16, 16, generator=rng())
    values = seam(noise, box(4, 4, 8, 8, (16, 16)))
    assert values.shape == (400,) and values.mean().abs() < 4 * values.std() / 20
    torch.testing.assert_close(seam(ramp.mT, m.mT), seam(ramp, m))


# ---- latents ---------------------------------------------------------------------------------------------------------

def test_a_cell_is_known_if_all_of_its_pixels_are():
    m = brush([(5, 5), (20, 9)], 2)
    cells = latent_mask(m, (8, 8))
    for r, c in itertools.product(range(8), range(8)): assert cells[r, c] == m[4 * r: 4 * r + 4, 4 * c: 4 * c + 4].all()
    assert torch.equal(latent_mask(m[None, None].expand(2, 1, 32, 32), (8, 8)), cells.expand(2, 1, 8, 8))


def test_latent_inpaint_damages_all_and_pasting_mends_it():
    vae, model = VAE(VAEConfig((3, 8, 8), (4, 2, 2), (8, 8), (0, 0), (0, 0))).eval(), Denoiser(LatentNet(), Linear())
    x, m = torch.rand(2, 3, 8, 8, generator=rng()) * 2 - 1, half("right", (8, 8))
    plain, pasted = (
        latent_inpaint(model, vae, x, m, uniform_grid(4), ddim(), paste=p, generator=rng(1))
        for p in (False, True)
    )
    assert torch.equal(pasted[..., m], x[..., m]) and torch.equal(pasted[..., ~m], plain[..., ~m])
    assert not (plain[..., m] == x[..., m]).any()
    everything = latent_inpaint(
        model, vae, x, torch.ones_like(m), uniform_grid(4), ddim(), paste=False, generator=rng(1)
    )
    torch.testing.assert_close(everything, vae.decode(vae.encode(x).mode))


class LatentNet(nn.Module):
    """A velocity for latents of any shape."""

    def forward(self, x, t): return torch.tanh(x) - x * (1 - t.reshape(-1, 1, 1, 1))


def test_a_mask_for_each_channel_means_what_is_known_in_all_of_them():
    x, mask = torch.rand(2, 3, 8, 8, generator=rng()), torch.ones(1, 3, 8, 8, dtype=torch.bool)
    mask[:, 1, 2:6, 2:6] = False
    assert torch.equal(seam(x, mask), seam(x, box(2, 2, 4, 4, (8, 8))))
