"""Pictures out of noise: generate is the loop with parts by name; seeds, previews, cost, errors; files; a panel that
streams."""

import math
import re
import threading
import time

import pytest
import torch
from PIL import Image
from torch import nn

from diffusion_course.checkpoints import load
from diffusion_course.ddpm import linear_betas
from diffusion_course.generation import (
    SAMPLERS, InPrecision, SampleConfig, as_images, as_samples, generate, noise, previews, read_image, sample_to_files,
    stepper_of,
)
from diffusion_course.guidance import classifier_free
from diffusion_course.options import with_options
from diffusion_course.plots import tile
from diffusion_course.predictions import Denoiser
from diffusion_course.samplers import Recorder, ancestral, euler, heun, karras_grid, sample, uniform_grid
from diffusion_course.schedules import DDPM, Cosine, Linear, VarianceExploding
from diffusion_course.unet import UNet, UNetConfig
from diffusion_course.widgets import choice, panel, slider

CALLS = dict(euler=1, midpoint=2, heun=2, rk4=4, ddim=1, dpmpp_2m=1, ancestral=1, euler_maruyama=1)


def tiny(labels: int = 3, seed: int = 0) -> Denoiser:
    """A small U-Net with random weights, none of them zero."""
    net = UNet(UNetConfig(shape=(3, 8, 8), widths=(16, 16), attention=(), head=16, patch=1, n_labels=labels))
    g = torch.Generator().manual_seed(seed)
    for p in net.parameters(): p.data += 0.1 * torch.randn(p.shape, generator=g)
    return Denoiser(net.eval(), Linear())


class OneGaussian(nn.Module):
    """The exact velocity for data from N(m, s²), value by value, on the linear path."""

    def __init__(self, mean: float, std: float, shape: tuple[int, ...] = (1, 4, 4)):
        super().__init__()
        self.shape, self.mean, self.std, self.anchor = shape, mean, std, nn.Parameter(torch.zeros(()))

    def forward(self, x, t):
        t = t.reshape(-1, 1, 1, 1)
        variance = t**2 * self.std**2 + (1 - t) ** 2
        return self.mean + (t * self.std**2 - (1 - t)) / variance * (x - t * self.mean)


@pytest.fixture(scope="module")
def model() -> Denoiser:
    return tiny()


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler_maruyama"])
def test_batches_change_nothing_but_rounding(model, sampler):
    y = torch.tensor([2, 0, 1, 1, 0])
    draw = lambda **how: generate(model, 5, 4, sampler, 2.0, 3, precision="fp32", **how)
    for batch in (1, 2, 5, 9): torch.testing.assert_close(draw(y=y, batch=batch), draw(y=y))
    torch.testing.assert_close(draw(y=1, batch=2), draw(y=1))
    with pytest.raises(ValueError, match="batch is 0: expected a whole number, 1 or more"):
        draw(y=y, batch=0)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_generate_is_sample_with_parts_by_name(model, sampler):
    x, y = noise(model, 3, 7), torch.tensor([0, 1, 2])
    ours = generate(model, 3, 5, sampler, 2.5, 7, y=y, precision="fp32")
    if sampler not in ("ancestral", "euler_maruyama"):
        by_hand = sample(classifier_free(model, 2.5), x, uniform_grid(5), SAMPLERS[sampler](), y=y)
        torch.testing.assert_close(ours, by_hand)
    assert ours.shape == (3, 3, 8, 8) and ours.dtype == torch.float32 and not ours.requires_grad
    assert torch.equal(ours, generate(model, 3, 5, sampler, 2.5, 7, y=y, precision="fp32"))
    assert not torch.allclose(ours, generate(model, 3, 5, sampler, 2.5, 8, y=y, precision="fp32"), atol=1e-2)


def test_guidance_zero_one_and_none(model):
    plain = dict(n=2, steps=4, seed=1, precision="fp32")
    torch.testing.assert_close(generate(model, y=1, guidance=0, **plain), generate(model, **plain))
    null = sample(model, noise(model, 2, 1), uniform_grid(4), heun())
    torch.testing.assert_close(generate(model, guidance=0, **plain), null)
    by_hand = sample(model, noise(model, 2, 1), uniform_grid(4), heun(), y=1)
    torch.testing.assert_close(generate(model, y=1, **plain), by_hand)
    assert not torch.allclose(by_hand, generate(model, **plain), atol=1e-3)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_picture_does_not_depend_on_how_many_are_drawn(model, sampler):
    two, five = (generate(model, n, 4, sampler, seed=3, y=1, precision="fp32") for n in (2, 5))
    torch.testing.assert_close(two, five[:2], atol=1e-4, rtol=1e-4)
    assert torch.equal(noise(model, 2, 3), noise(model, 5, 3)[:2])


def test_noise_is_standard_normal_and_each_picture_its_own():
    big = Denoiser(OneGaussian(0, 1, (3, 64, 64)), Linear())
    z = noise(big, 8, 0)
    assert abs(z.mean()) < 0.02 and abs(z.std() - 1) < 0.02
    assert (torch.corrcoef(z.flatten(1)) - torch.eye(8)).abs().max() < 0.06
    assert abs(torch.corrcoef(torch.stack([z[0].flatten(), noise(big, 1, 1).flatten()]))[0, 1]) < 0.06
    assert not torch.equal(noise(big, 1), noise(big, 1)), "without a seed: new noise each time"


def test_noise_on_the_way_is_not_the_noise_of_the_start():
    seen = []

    def spying(model, x, t, s):
        seen.append(model.noise(x, t, s))
        return x

    model = Denoiser(OneGaussian(0, 1, (3, 32, 32)), Linear())
    generate(model, 2, 2, spying, seed=0)
    every = torch.stack([noise(model, 2, 0)[0].flatten(), *(z[0].flatten() for z in seen)])
    assert (torch.corrcoef(every) - torch.eye(3)).abs().max() < 0.08


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samples_of_a_gaussian_have_its_moments(sampler):
    model = Denoiser(OneGaussian(0.4, 0.5, (1, 32, 32)), Linear())
    x = generate(model, 8, 120, sampler, seed=0)
    assert abs(x.mean() - 0.4) < 0.03 and abs(x.std() - 0.5) < 0.03


def test_the_ode_of_a_gaussian_in_closed_form():
    model = Denoiser(OneGaussian(-0.3, 0.6), Linear())
    expected = -0.3 + 0.6 * noise(model, 4, 2)
    torch.testing.assert_close(generate(model, 4, 40, "rk4", seed=2, precision="fp32"), expected, atol=1e-4, rtol=1e-4)


def test_a_schedule_that_begins_wide_is_given_wide_noise():
    seen = []
    model = Denoiser(OneGaussian(0, 1), VarianceExploding(0.02, 5.0), "x1")

    def spying(m, x, t, s):
        seen.append(x)
        return x

    generate(model, 2, 2, spying, seed=0)
    torch.testing.assert_close(seen[0], 5 * noise(model, 2, 0))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_previews_end_with_what_generate_returns(model, sampler):
    options = dict(steps=4, sampler=sampler, guidance=2.0, seed=0, y=2, precision="fp32")
    run = list(previews(model, 2, **options))
    assert torch.equal(run[-1].x, generate(model, 2, **options)) and torch.equal(run[-1].x1, run[-1].x)
    assert [p.step for p in run] == [1, 2, 3, 4] and [p.t for p in run] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert [p.nfe for p in run] == [2 * CALLS[sampler] * k for k in (1, 2, 3, 4)], "guidance asks twice"
    assert not any(p.x.requires_grad for p in run)
    torch.testing.assert_close(run[0].x1, classifier_free(model, 2.0)(noise(model, 2, 0), 0.0, y=2).x1.detach())


def test_previews_say_what_is_wrong_before_they_begin(model):
    with pytest.raises(ValueError, match="sampler is 'ddmi'"): previews(model, 2, sampler="ddmi")


def test_churn(model):
    options = dict(n=2, steps=5, seed=4, y=0, precision="fp32")
    ode = generate(model, sampler="euler_maruyama", churn=0.0, **options)
    torch.testing.assert_close(ode, generate(model, sampler="euler", **options))
    assert torch.equal(
        generate(model, sampler="euler_maruyama", **options),
        generate(model, sampler="euler_maruyama", churn=1.0, **options),
    )
    assert not torch.allclose(ode, generate(model, sampler="euler_maruyama", churn=1.0, **options), atol=1e-2)


def test_grid_and_stepper_of_your_own(model):
    options = dict(seed=0, y=1, precision="fp32")
    ts = karras_grid(6, Linear())  # begins at sigma / alpha = 80, where the noise is scaled by sigma = 80 / 81
    by_hand = sample(model, noise(model, 2, 0) * float(Linear().sigma(ts[0])), ts, heun(), y=1)
    torch.testing.assert_close(generate(model, 2, 6, grid="karras", **options), by_hand)
    torch.testing.assert_close(generate(model, 2, 6, euler(), **options), generate(model, 2, 6, "euler", **options))
    assert stepper_of(own := ancestral()) is own


def test_precision(model):
    x, y = noise(model, 2, 0), torch.tensor([0, 1])
    with torch.no_grad(): exact, close = (InPrecision(model, p)(x, 0.4, y=y).velocity.float() for p in ("fp32", "bf16"))
    with torch.no_grad(): assert torch.equal(exact, model(x, 0.4, y=y).velocity)
    assert not torch.equal(exact, close)
    assert (exact - close).square().mean().sqrt() < 0.03 * exact.std()
    a, b = (generate(model, 2, 4, seed=0, y=1, precision=p) for p in ("fp32", "bf16"))
    assert a.dtype == b.dtype == torch.float32 and (a - b).square().mean().sqrt() < 0.03 * a.std()


def test_precision_keeps_what_a_model_says_of_itself(model):
    guided = InPrecision(classifier_free(model, 3.0), "fp32")
    assert guided.schedule is model.schedule and guided.cost(0.5) == 2 and not guided.singular(0.0)
    assert InPrecision(Denoiser(model.net, Linear(), "eps")).singular(0.0)
    recorder = Recorder(guided, y=1)
    with torch.no_grad(): recorder(noise(model, 1, 0), 0.5)
    assert recorder.nfe == 2


def test_models_without_labels():
    model = tiny(labels=0)
    assert generate(model, 2, 2, seed=0).shape == (2, 3, 8, 8)
    with pytest.raises(ValueError, match="y is 1: expected None"): generate(model, 2, 2, y=1)


@pytest.mark.parametrize(("change", "message"), [
    (dict(n=0), "n is 0: expected a whole number of images"),
    (dict(n=1.5), "n is 1.5"),
    (dict(steps=0), "steps is 0: expected a whole number"),
    (dict(sampler="eulr"), "sampler is 'eulr': expected one of euler, "),
    (dict(sampler=["euler"]), "expected one of euler, "),
    (dict(churn=1.0), "churn is 1.0 with sampler 'heun': expected sampler 'euler_maruyama'"),
    (dict(sampler=euler(), churn=1.0), "churn is 1.0 with sampler"),
    (dict(sampler="euler_maruyama", churn=-1.0), "churn is -1.0"),
    (dict(guidance=math.nan), "guidance is nan: expected a finite number"),
    (dict(guidance=2.0, y=None), "guidance is 2.0 without a label"),
    (dict(grid="cosine"), "grid is 'cosine': expected 'uniform' or 'karras'"),
    (dict(precision="fp8"), "precision is 'fp8'"),
    (dict(seed=-1), "seed is -1: expected a whole number"),
    (dict(seed=0.5), "seed is 0.5"),
    (dict(y=9), "y holds labels"), (dict(y=3), "y holds labels [3]: expected 0 to 2"),
    (dict(y=torch.tensor([0, 1, 2])), "y has shape"),
])
def test_bad_settings_are_named(model, change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        generate(model, **dict(n=2, steps=2, seed=0, y=1) | change)


def test_a_model_of_something_else():
    with pytest.raises(ValueError, match="whose network has no .shape: expected net.shape"):
        generate(Denoiser(nn.Linear(2, 2), Linear()), 2)


# ---- image to image ----------------------------------------------------------------------------------

@pytest.mark.parametrize(
    "schedule", [Linear(), Cosine(), DDPM(linear_betas(100)), VarianceExploding(0.02, 5.0)], ids=repr)
@pytest.mark.parametrize("grid", ["uniform", "karras"])
def test_strength_0_is_the_image_and_1_is_noise(schedule, grid):
    model = Denoiser(OneGaussian(0, 1), schedule, "eps")
    image = torch.rand(2, 1, 4, 4) * 2 - 1
    options = dict(steps=6, seed=3, grid=grid, precision="fp32")
    assert torch.equal(generate(model, 2, start=image, strength=0, **options), image)
    plain = generate(model, 2, **options)
    assert torch.equal(generate(model, 2, start=image, strength=1, **options), plain)
    default, named = (generate(model, 2, start=image, **s, **options) for s in ({}, dict(strength=0.6)))
    assert torch.equal(default, named) and not torch.allclose(default, plain, atol=1e-3)


def test_images_move_away_as_strength_grows():
    """From a model whose data are N(0.4, 0.3²): the more noise, the less is left of an image beside them."""
    model = Denoiser(OneGaussian(0.4, 0.3, (1, 16, 16)), Linear())
    image = torch.full((1, 16, 16), -0.8)
    strengths = (0, 0.1, 0.25, 0.4, 0.6, 0.8, 0.95, 1)
    far = [(generate(model, 4, 20, seed=0, start=image, strength=s) - image).abs().mean().item() for s in strengths]
    assert far[0] == 0 and all(a < b for a, b in zip(far, far[1:], strict=False)) and abs(far[-1] - 1.2) < 0.1


def test_start_is_mixed_and_the_rest_of_the_grid_walked(model):
    image = torch.rand(3, 3, 8, 8) * 2 - 1
    y = torch.tensor([0, 1, 2])
    for strength, rest in ((0.5, [0.5, 0.75, 1.0]), (0.6, [0.4, 0.5, 0.75, 1.0]), (0.1, [0.9, 1.0])):
        x = Linear().mix(image, noise(model, 3, 7), 1 - strength)
        by_hand = sample(classifier_free(model, 2.0), x, rest, heun(), y=y)
        options = dict(steps=4, guidance=2.0, seed=7, y=y, start=image, strength=strength, precision="fp32")
        torch.testing.assert_close(generate(model, 3, **options), by_hand)
        torch.testing.assert_close(generate(model, 3, batch=2, **options), by_hand)
        run = list(previews(model, 3, **options))
        assert len(run) == len(rest) - 1 and torch.equal(run[-1].x, generate(model, 3, **options))
    [still] = previews(model, 3, start=image, strength=0, y=y)
    assert (still.step, still.t, still.nfe) == (0, 1.0, 0) and torch.equal(still.x, image)
    for_all, for_each = (
        generate(model, 2, 4, seed=0, y=1, start=z, precision="fp32") for z in (image[0], image[[0, 0]]))
    assert torch.equal(for_all, for_each)


@pytest.mark.parametrize(("change", "message"), [
    (dict(strength=0.5), "strength is 0.5 without start: expected start"),
    (dict(start=torch.zeros(3, 3, 8, 8)), "start has shape (3, 3, 8, 8): expected (2, 3, 8, 8), or (3, 8, 8) for all"),
    (dict(start=torch.zeros(3, 8, 8), strength=1.5), "strength is 1.5: expected a number in [0, 1]"),
    (dict(start=torch.zeros(3, 8, 8), strength=math.nan), "strength is nan"),
    (dict(start=torch.full((3, 8, 8), math.inf)), "start holds 192 values that are NaN or infinite"),
    (dict(start="cat.png"), "start is str: expected a tensor"),
])
def test_bad_starts_are_named(model, change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        generate(model, **dict(n=2, steps=2, y=1) | change)


def test_images_from_files(model, tmp_path):
    wide = Image.new("RGB", (40, 20), (0, 0, 255))
    wide.paste((255, 0, 0), (10, 0, 30, 20))
    wide.save(tmp_path / "wide.png")
    x = read_image(tmp_path / "wide.png", (3, 8, 8))
    red = torch.tensor([1.0, -1, -1])[:, None, None]
    assert x.shape == (3, 8, 8) and (x - red).abs().max() < 0.2, "its middle"
    assert (x - red)[..., 1:-1].abs().max() < 0.02
    grey = read_image(tmp_path / "wide.png", (1, 4, 8))
    assert grey.shape == (1, 4, 8) and abs(grey[0, 2, 4] - (2 * 0.299 - 1)) < 0.01
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (read_image(tmp_path / "clear.png", (3, 8, 8)) == 1).all(), "transparent: laid on white"
    (tmp_path / "text.png").write_text("no image", encoding="utf-8")
    with pytest.raises(ValueError, match="can't be read as an image"):
        read_image(tmp_path / "text.png", (3, 8, 8))
    with pytest.raises(ValueError, match="can't be read"):
        read_image(tmp_path / "none.png", (3, 8, 8))
    with pytest.raises(ValueError, match="1 or 3 channels"):
        read_image(tmp_path / "wide.png", (4, 8, 8))
    config = SampleConfig(n=2, steps=4, scale=1, label=1, out=str(tmp_path / "a.png"), precision="fp32",
                          start=str(tmp_path / "wide.png"), strength=0.5)
    sample_to_files(model, config, progress=False)
    expected = generate(model, 2, 4, "dpmpp_2m", 2.0, 0, y=1, precision="fp32", start=x, strength=0.5)
    with Image.open(tmp_path / "a.png") as grid: assert grid.tobytes() == tile(expected, 2, scale=1).tobytes()
    with pytest.raises(ValueError, match="strength is 0.5 without start"):
        sample_to_files(model, with_options(config, dict(start="")), progress=False)


def test_images_to_latents_and_back():
    latents = load("cifar10-latent")
    image = as_images(latents, generate(latents, 1, 5, seed=0, y=3))
    z = as_samples(latents, image)
    assert z.shape == (1, 4, 8, 8) and 0.3 < z.std() < 3
    assert (as_images(latents, z) - image).square().mean().sqrt() < 0.25
    x = torch.zeros(1, 3, 8, 8)
    assert as_samples(tiny(), x) is x


# ---- files -----------------------------------------------------------------------------------------------------------

def test_files(model, tmp_path):
    out, gif = tmp_path / "new" / "grid.png", tmp_path / "film.gif"
    config = SampleConfig(n=10, steps=3, guidance=1.5, scale=2, out=str(out), gif=str(gif), precision="fp32")
    sample_to_files(model, config, progress=False)
    with Image.open(out) as grid:
        assert grid.size == (8 * 17 - 1, 2 * 17 - 1)
        expected = generate(model, 10, 3, "dpmpp_2m", 1.5, 0, y=torch.arange(10) * 3 // 10, precision="fp32")
        assert grid.tobytes() == tile(expected, 8, scale=2).tobytes()
    with Image.open(gif) as film: assert film.n_frames == 3 and film.size == (2 * 8 * 16, 2 * 16 + 1)


def test_files_of_one_label_and_of_no_labels(model, tmp_path):
    for m, changes in (
        (model, dict(label=2)),
        (tiny(labels=0), {}),
        (model, dict(sampler="euler_maruyama", churn=0.5)),
    ):
        config = with_options(
            SampleConfig(n=2, steps=2, scale=1, out=str(tmp_path / "a.png"), precision="fp32"),
            changes,
        )
        sample_to_files(m, config, progress=False)
        with Image.open(tmp_path / "a.png") as grid: assert grid.size == (17, 8)


@pytest.mark.parametrize(("change", "message"), [
    (dict(n=0), "n is 0"), (dict(n=-3), "n is -3"), (dict(scale=0), "scale is 0"), (dict(label=7), "y holds labels"),
    (dict(sampler="x"), "sampler is 'x'"), (dict(steps=0), "steps is 0"),
    (dict(out="a.txt"), "out ends in '.txt': expected"), (dict(gif="a.mp4"), "gif ends in '.mp4': expected"),
])
def test_files_bad_settings(model, tmp_path, change, message):
    config = with_options(SampleConfig(n=2, steps=2, out=str(tmp_path / "a.png")), change)
    with pytest.raises(ValueError, match=message): sample_to_files(model, config, progress=False)
    assert not list(tmp_path.iterdir()), "nothing is written"


# ---- a panel that shows pictures as they come ----------------------------------------------------------------------

def wait_for(true) -> None:
    """Until it is true, or ten seconds have passed."""
    end = time.monotonic() + 10
    while not true() and time.monotonic() < end: time.sleep(0.005)
    assert true()


def streaming(model):
    """A panel whose drawing stops before each preview until it is let on; which previews were drawn; and the gate."""
    gate, drawn = threading.Semaphore(1000), []

    def draw(steps, label):
        for p in previews(model, 2, steps, seed=0, y=label, precision="fp32"):
            gate.acquire()
            drawn.append((steps, label, p.step))
            yield tile(p.x1), f"step {p.step}"

    return panel(draw, steps=slider(1, 9, 3), label=choice([0, 1, 2])), drawn, gate


def text_of(p) -> str: return p._views.children[1].value


def test_panel_streams_and_remembers(model):
    p, drawn, _ = streaming(model)
    assert drawn == [(3, 0, 1), (3, 0, 2), (3, 0, 3)] and text_of(p) == "step 3" and "step 3" in p.to_html()
    p.controls["label"].value = 1
    wait_for(lambda: len(drawn) == 6 and not p._busy)
    p.controls["label"].value = 0
    wait_for(lambda: not p._busy)
    assert len(drawn) == 6, "the first setting was remembered"


def test_panel_shows_each_preview_and_drops_a_run_for_a_newer_setting(model):
    p, drawn, gate = streaming(model)
    while gate.acquire(blocking=False): pass
    p.controls["steps"].value = 9
    gate.release()
    wait_for(lambda: text_of(p) == "step 1" and drawn[-1] == (9, 0, 1))
    gate.release()
    wait_for(lambda: text_of(p) == "step 2")
    p.controls["steps"].value = 2  # while the long run waits for its third preview
    for _ in range(9): gate.release()
    wait_for(lambda: drawn[-1] == (2, 0, 2) and not p._busy)
    assert [d for d in drawn if d[0] == 9] == [(9, 0, 1), (9, 0, 2), (9, 0, 3)] and text_of(p) == "step 2"
    assert p.controls["steps"].value == 2 and not p._message.value


def test_panel_turns_an_error_half_way_into_a_line(model):
    def draw(steps):
        yield "begun"
        if steps == 2: raise ValueError("steps is 2")

    p = panel(draw, steps=slider(1, 3, 1))
    p.controls["steps"].value = 2
    wait_for(lambda: not p._busy)
    assert "steps is 2" in p._message.value


# ---- the shipped model ---------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_shipped_model_draws_pictures():
    model = load("cifar10")
    x = generate(model, n=8, steps=20, sampler="dpmpp_2m", guidance=2.0, y=3, seed=0)
    assert x.shape == (8, 3, 32, 32) and x.isfinite().all() and 0.3 < x.std() < 0.9
    assert (x.abs() > 1).float().mean() < 0.2
    smooth = (x[..., 1:] - x[..., :-1]).square().mean() / (2 * x.var())
    assert smooth < 0.2, "neighbouring pixels are alike: no noise is left"
    a, b = (generate(model, 2, 10, seed=0, y=8, precision=p) for p in ("fp32", "bf16"))
    assert (a - b).square().mean().sqrt() < 0.05
