"""Figures and images: what they show, how they are written, and what they refuse."""
from __future__ import annotations

import io
import math
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import normal, rng
from matplotlib.text import Text
from PIL import Image

from diffusion_course.plots import (
    _apart,
    Film, as_images, compare, grid, mass_levels, save_grid, show_arrows, show_curves, show_density,
    show_field, show_histogram, show_images, show_paths, show_samples, show_stages, slope, tile,
)
from diffusion_course.style import LABELS, figure, figure_of, png


def gaussian(x): return (-x.square().sum(-1) / 2).exp() / (2 * math.pi)


POINTS = normal(200, 2, dtype=torch.float32)


# ---- figures -------------------------------------------------------------------------------------

@pytest.mark.parametrize("draw", [
    lambda: show_samples(POINTS),
    lambda: show_samples(POINTS, torch.arange(200) % 3, name="three"),
    lambda: show_density(gaussian),
    lambda: show_density(gaussian, fractions=None),
    lambda: show_field(lambda x, t: -x),
    lambda: show_paths(normal(5, 7, 2)),
    lambda: show_paths(normal(5, 7), dots=True),
    lambda: show_paths(normal(5, 7, 1), torch.linspace(0, 1, 5)),
    lambda: compare(gaussian, lambda x: gaussian(1.1 * x)),
    lambda: compare(lambda x, t: -x, lambda x, t: x, 0.5),
    lambda: show_images(torch.zeros(5, 3, 8, 8)),
    lambda: show_images(torch.zeros(1, 1, 8, 8), titles=["one"]),
    lambda: show_curves({"a": ([1, 2, 4], [1, 4, 16])}, slopes=True),
    lambda: show_histogram(normal(100), lambda x: x * 0),
    lambda: show_stages({"stem": (8, 16), "down": (8, 8), "middle": (8, 8), "up": (8, 16)}),
])
def test_every_figure_displays_itself(draw):
    data, size = draw()._repr_png_()
    shown = np.asarray(Image.open(io.BytesIO(data)).convert("L"))
    assert shown.std() > 3, "the figure is empty"
    assert size["width"] < shown.shape[1], "the figure is stored with fewer pixels than it is shown with"


def test_a_figure_says_in_words_what_it_shows():
    fig, axes = figure(3)
    assert repr(fig) == "figure"
    axes[0].set(title="noise", xlabel="x")
    axes[1].set(xlabel="steps", ylabel="error")
    axes[2].set(ylabel="bits")
    fig.colorbar(axes[0].imshow([[0, 1]]), ax=axes[0], label="density")
    assert repr(fig) == "figure: noise, error against steps, bits"
    fig.suptitle("Three things")
    assert repr(fig) == "figure: Three things, noise, error against steps, bits"


def test_samples_are_drawn_in_the_colours_of_their_labels():
    fig = show_samples(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1]), size=400)
    colours = np.asarray(Image.open(io.BytesIO(png(fig)))).reshape(-1, 3)[::7].astype(int)
    for label in (0, 1):
        rgb = np.array([int(LABELS[label][k: k + 2], 16) for k in (1, 3, 5)])
        blended = np.round(0.7 * rgb + 0.3 * 255)
        assert (np.abs(colours - blended).max(1) <= 2).any()


def test_level_sets_enclose_their_fraction_of_the_mass():
    values = gaussian(grid(6, 400)).reshape(400, 400).double().numpy()
    levels = mass_levels(values, (0.5, 0.9))
    for fraction, level in zip((0.9, 0.5), levels, strict=True):
        # for a Gaussian in the plane the level goes with the fraction left outside
        assert level == pytest.approx((1 - fraction) / (2 * math.pi), rel=0.01)
    assert mass_levels(np.ones((2, 2)), (0.3, 0.6, 1.0)) == [1.0], "equal levels are one"


def test_slope():
    h = torch.tensor([0.5, 0.25, 0.125])
    assert slope(h, 7 * h**3) == pytest.approx(3)
    for bad in (([1], [1]), ([1, 2], [1, 0]), ([1, 2], [1, math.nan]), ([1, 2, 3], [1, 2])):
        with pytest.raises(ValueError): slope(*bad)


def test_learned_and_exact_share_a_scale():
    """Half of a density looks half as dark; a field of double speed has arrows of double length."""
    densities = compare(lambda x: 0.5 * gaussian(x), gaussian)
    left, right = [image.get_clim() for ax in densities.axes[:2] for image in ax.images]
    assert left == right
    fields = compare(lambda x, t: 2 * x, lambda x, t: x, 0.5)
    left, right = [np.hypot(q.U, q.V).max() for ax in fields.axes[:2] for q in ax.collections]
    assert left == pytest.approx(2 * right)


def test_histograms_show_all_values_in_their_true_fraction():
    def area(fig): return sum(bar.get_height() * bar.get_width() for bar in fig.axes[0].patches)

    assert area(show_histogram(10 + 0.1 * normal(1000))) == pytest.approx(0.998, abs=0.003)
    assert area(show_histogram(5 * normal(10_000), extent=(-5, 5))) == pytest.approx(0.68, abs=0.02)
    show_histogram(torch.full((10,), 5.0))._repr_png_()


@pytest.mark.parametrize("call, message", [
    (lambda: show_samples(torch.full((4, 2), math.nan)), "x holds 8 values that are NaN"),
    (lambda: show_samples(torch.zeros(4, 3)), r"x has shape \(4, 3\)"),
    (lambda: show_samples(torch.zeros(0, 2)), r"x has shape \(0, 2\)"),
    (lambda: show_samples(POINTS, torch.zeros(3)), "labels has shape"),
    (lambda: show_samples(POINTS, color="leaned"), "unknown colour 'leaned'"),
    (lambda: show_field(lambda x, t: x, 5.0), "t is 5.0"),
    (lambda: show_field(lambda x, t: x[:, :1]), "the field returned shape"),
    (lambda: show_density(lambda x: x), "the function returned shape"),
    (lambda: show_paths(torch.zeros(4, 5, 3)), "xs has shape"),
    (lambda: slope([1, 1], [1, 2]), "at least two different numbers"),
])
def test_bad_input_to_figures(call, message):
    with pytest.raises(ValueError, match=message): call()


# ---- images --------------------------------------------------------------------------------------

def unit(*shape: int) -> torch.Tensor:
    """Numbers from -1 to 1, evenly spaced."""
    return torch.linspace(-1, 1, math.prod(shape)).reshape(shape)


def bytes_of(x: torch.Tensor) -> torch.Tensor:
    """What is seen of numbers from -1 to 1."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().byte()


def test_images_keep_their_colours():
    x = torch.rand(1, 3, 32, 32, generator=rng()) * 2 - 1
    shown = np.asarray(Image.open(io.BytesIO(show_images(x)._repr_png_()[0])))
    assert len(np.unique(shown.reshape(-1, 3), axis=0)) > 900


def test_tiles_are_the_images_pixel_by_pixel(tmp_path):
    x = unit(5, 3, 2, 4)
    sheet = torch.from_numpy(np.array(tile(x, 3, scale=2, gap=1)))
    assert sheet.shape == (2 * 4 + 1, 3 * 8 + 2, 3)
    for k in range(5):
        top, left = k // 3 * 5, k % 3 * 9
        assert torch.equal(sheet[top: top + 4: 2, left: left + 8: 2].permute(2, 0, 1), bytes_of(x[k]))
    assert (sheet[4] == 255).all() and (sheet[:, 8] == 255).all() and (sheet[5:, 18:] == 255).all()
    assert tile(9 * x[:, :1], 3).mode == "L" and np.array(tile(9 * x[-1:, :1])).max() == 255
    save_grid(x, tmp_path / "new" / "grid.png", 3)
    assert Image.open(tmp_path / "new" / "grid.png").size == (3 * 4 + 2, 2 * 2 + 1)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["grid.png"]


@pytest.mark.parametrize("x", [
    bytes_of(unit(2, 3, 4, 5)),
    bytes_of(unit(2, 3, 4, 5)).numpy(),
    unit(2, 3, 4, 5).double(),
    unit(2, 3, 4, 5).numpy().astype(np.float64),
    unit(2, 3, 4, 5).clone().requires_grad_(),
    unit(2, 3, 4, 5)[:, :, ::2].repeat_interleave(2, 2),
], ids=["uint8", "uint8 array", "float64", "float64 array", "with a gradient", "strided"])
def test_images_of_any_kind_are_shown_as_they_are(x):
    images = as_images(x)
    assert images.dtype == torch.float32 and not images.requires_grad and images.device.type == "cpu"
    expected = torch.as_tensor(x).detach()
    if expected.dtype != torch.uint8: expected = bytes_of(expected)
    sheet = torch.from_numpy(np.array(tile(x, 1, gap=0))).permute(2, 0, 1)
    assert torch.equal(sheet, torch.cat(list(expected), 1))
    drawn = [torch.from_numpy(np.array(ax.images[0].get_array())) for ax in show_images(x).axes]
    assert torch.equal(torch.stack(drawn), expected.permute(0, 2, 3, 1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_images_in_16_bits(dtype):
    x = unit(2, 1, 4, 4)
    assert torch.equal(as_images(x.to(dtype)), x.to(dtype).float())
    assert np.abs(np.array(tile(x.to(dtype))).astype(int) - np.array(tile(x))).max() <= 1


def test_all_bytes_survive():
    x = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert np.array_equal(np.array(tile(x)).reshape(-1), np.arange(256))


def test_numbers_beyond_the_range_are_clipped():
    """Noisy images and guided ones go far beyond [-1, 1]; a dark image is no image in bytes."""
    noisy = 80 * normal(2, 3, 8, 8)
    assert as_images(noisy).abs().max() > 80
    assert set(np.unique(np.array(tile(noisy)))) >= {0, 255}
    show_images(torch.full((1, 1, 4, 4), 1.9))


IMAGES = torch.zeros(2, 3, 8, 8)


@pytest.mark.parametrize("x, message", [
    (torch.full((2, 1, 2, 2), math.nan), "x holds 8 values that are NaN or infinite: expected none"),
    (torch.full((1, 1, 2, 2), -math.inf).half(), "x holds 4 values that are NaN or infinite"),
    (255 * torch.rand(2, 3, 8, 8, generator=rng()),
     r"x runs from 0\.\d+ to 25\d.*: expected -1 to 1, or torch.uint8"),
    (255 * np.ones((2, 3, 8, 8)), "x runs from 255 to 255: expected -1 to 1, or torch.uint8"),
    (torch.zeros(2, 3, 8, 8, dtype=torch.int64), "x is torch.int64: expected floating-point numbers"),
    (torch.zeros(2, 3, 8, 8, dtype=torch.bool), "x is torch.bool"),
    (torch.zeros(2, 3, 8, 8, dtype=torch.complex64), "x is torch.complex64"),
    (torch.zeros(8, 8), r"x has shape \(8, 8\): .* of one grey image make x\[None, None\]"),
    (torch.zeros(3, 8, 8), r"x has shape \(3, 8, 8\): .* of one image make x\[None\]"),
    (torch.zeros(9, 8, 8), r"x has shape \(9, 8, 8\): .* of grey images make x\[:, None\]"),
    (torch.zeros(2, 4, 8, 8), r"x has shape \(2, 4, 8, 8\): expected \(n, 1, H, W\) or \(n, 3, H, W\)"),
    (torch.zeros(2, 8, 8, 3), r"x has shape \(2, 8, 8, 3\)"),
    (torch.zeros(0, 3, 8, 8), r"x has shape \(0, 3, 8, 8\)"),
    (torch.zeros(2, 3, 0, 8), r"x has shape \(2, 3, 0, 8\)"),
    ([IMAGES[0], IMAGES[1]], r"x is list: expected a tensor of images \(n, C, H, W\)"),
    (None, "x is NoneType"),
])
def test_what_is_no_image_is_refused(x, message, tmp_path):
    for use in (show_images, tile, as_images, lambda x: save_grid(x, tmp_path / "a.png")):
        with pytest.raises(ValueError, match=message): use(x)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("call, message", [
    (lambda: show_images(IMAGES, titles=["a"]), "1 titles for 2 images: expected one each"),
    (lambda: tile(IMAGES, -1), "ncols is -1: expected a whole number, 1 or more"),
    (lambda: tile(IMAGES, scale=0.5), "scale is 0.5: expected a whole number, 1 or more"),
    (lambda: tile(IMAGES, gap=-1), "gap is -1: expected a whole number, 0 or more"),
    (lambda: show_images(IMAGES, 0), "ncols is 0"),
])
def test_bad_layouts_are_refused(call, message):
    with pytest.raises(ValueError, match=message): call()


# ---- files ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, kind, exact", [
    ("a.png", "PNG", True), ("a.PNG", "PNG", True), ("a", "PNG", True), ("a.webp", "WEBP", True),
    ("a.jpg", "JPEG", False), ("a.jpeg", "JPEG", False),
])
def test_files_are_what_their_names_say(tmp_path, name, kind, exact):
    x = unit(4, 3, 8, 8)
    save_grid(x, tmp_path / name, 2, scale=2)
    with Image.open(tmp_path / name) as image:
        difference = np.abs(np.array(image).astype(int) - np.array(tile(x, 2, scale=2)))
        assert image.format == kind
    assert difference.max() == 0 if exact else difference.mean() < 5


@pytest.mark.parametrize("name", ["a.bmp", "a.gif", "a.txt", "a.png.part"])
def test_a_grid_of_another_kind_is_refused_before_it_is_drawn(tmp_path, name):
    with pytest.raises(ValueError, match="ends in .*: expected .png, .jpg, .jpeg or .webp"):
        save_grid(torch.full((1, 1, 2, 2), math.nan), tmp_path / name)
    assert not list(tmp_path.iterdir())


FRAMES = [Image.new("RGB", (8, 6), (40 * k, 0, 0)) for k in range(5)]


@pytest.mark.parametrize("name, kind", [("a.gif", "GIF"), ("a", "GIF"), ("a.GIF", "GIF"), ("a.webp", "WEBP")])
def test_a_film_plays_all_its_frames(tmp_path, name, kind):
    film = Film(FRAMES, seconds=1.0, pause=0.5)
    film.save(tmp_path / name)
    times, reds = [], []
    with Image.open(tmp_path / name) as image:
        assert (image.format, image.n_frames, image.size, image.info["loop"]) == (kind, 5, (8, 6), 0)
        for k in range(5):
            image.seek(k)
            image.load()
            times.append(image.info["duration"])
            reds.append(image.convert("RGB").getpixel((0, 0))[0])
    assert times == [200] * 4 + [700]
    assert reds == [0, 40, 80, 120, 160]
    assert set(film._repr_mimebundle_()) == {"image/gif", "text/plain"}


def test_films_that_cannot_be(tmp_path):
    with pytest.raises(ValueError, match="no frames: expected one image or more"): Film([])
    with pytest.raises(ValueError, match="frames have sizes .*: expected images of one size"):
        Film([FRAMES[0], Image.new("RGB", (6, 8))])
    for name in ("a.png", "a.mp4"):
        with pytest.raises(ValueError, match="ends in .*: expected .gif or .webp"):
            Film(FRAMES).save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_an_error_counts_where_the_density_is():
    """A field that is wrong by 1 where x > 0, and a density that is 9 times as large there."""
    wrong = lambda x, t: x + (x[:, :1] > 0).float() * torch.tensor([1.0, 0.0])
    density = lambda x: torch.where(x[:, 0] > 0, 9.0, 1.0)
    plain = compare(wrong, lambda x, t: x, 0.5)
    weighted = compare(wrong, lambda x, t: x, 0.5, density=density)
    assert plain.axes[2].get_title() == "error (mean 0.5)"
    assert weighted.axes[2].get_title() == "error (mean 0.9)"
    on_the_right = compare(wrong, lambda x, t: x, 0.5, density=lambda x: (x[:, 0] > 0).float())
    shown = on_the_right.axes[2].images[0].get_array()
    assert np.isnan(shown.filled(np.nan)).mean() == pytest.approx(0.5, abs=0.01)


def test_arrows_have_their_true_length():
    fig = show_arrows(torch.tensor([1.0, 0.5]), torch.tensor([[1.0, 0.0], [0.0, -2.0]]), name="u")
    quiver = fig.axes[0].collections[0]
    assert np.allclose(np.hypot(quiver.U, quiver.V), [1, 2]) and quiver.scale == 1
    assert np.allclose(quiver.get_offsets(), [[1, 0.5], [1, 0.5]])


def test_labels_of_rows_and_columns():
    x = torch.zeros(6, 1, 8, 8)
    plain, labelled = tile(x, 3), tile(x, 3, rows=["first", "second"], columns="abc")
    assert labelled.width > plain.width and labelled.height > plain.height
    dx, dy = labelled.width - plain.width, labelled.height - plain.height
    cut = labelled.crop((dx, dy, labelled.width, labelled.height)).convert("L")
    assert cut.tobytes() == plain.convert("L").tobytes(), "the images themselves must not change"
    margins = np.asarray(labelled.convert("L")).copy()
    margins[dy:, dx:] = 255
    assert (margins[dy:, :dx] < 200).any() and (margins[:dy, dx:] < 200).any(), "no text was written"
    assert tile(x, 6, columns=["one to three", "four to six"]).width == tile(x, 6).width
    with pytest.raises(ValueError, match="3 labels of rows: expected 2"): tile(x, 3, rows="abc")
    with pytest.raises(ValueError, match="2 labels of columns: expected a number that divides 3"):
        tile(x, 3, columns="ab")


def test_curves_have_their_names_at_their_ends():
    x = torch.linspace(0, 1, 30)
    curves = {"low": (x, 0 * x), "a": (x, x), "b": (x, x**2), "with a name that is long": (x[:15], 1 - x[:15])}
    ax = show_curves(curves, colors={"low": "exact"}).axes[0]
    assert ax.get_legend() is None
    png(figure_of(ax))  # lays it out
    places = {t.get_text().replace("\n", " "): Text.get_window_extent(t) for t in ax.texts}
    assert list(places) == ["low", "with a name that is long", "b", "a"]  # from the bottom; b lies under a
    boxes = list(places.values())
    assert all(below.y1 <= above.y0 + 1 for below, above in pairwise(boxes)), "names overlap"
    right = ax.get_window_extent().x1
    assert all(box.x0 >= right for box in boxes), "a name lies on the curves"
    ax.set_ylim(-3, 1)  # names move along
    png(figure_of(ax))
    assert ax.texts[0].get_text() == "low" and ax.texts[0].xy[1] == 0.75 and len(ax.texts) == 4
    ax.set_ylim(0, 1)
    ends = [t.arrow_patch is not None for t in ax.texts]
    assert ends == [False, True, True, False]  # what was moved, or ends early, hangs on a string


@pytest.mark.parametrize("wanted", [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.2, 0.21, 0.9], [0.0, 0.5, 1.0]])
def test_labels_that_would_overlap_move_apart(wanted):
    heights = [0.05, 0.1, 0.05]
    places = _apart(wanted, heights)
    edges = [(p - h / 2, p + h / 2) for p, h in zip(places, heights, strict=True)]
    assert edges[0][0] >= -1e-9 and edges[-1][1] <= 1 + 1e-9
    assert all(a[1] <= b[0] + 1e-9 for a, b in pairwise(edges))
    assert max(abs(p - w) for p, w in zip(places, wanted, strict=True)) <= 0.176


def test_limits_far_from_a_curve_leave_its_name_at_the_edge():
    x = torch.linspace(0, 1, 30)
    ax = show_curves({"tiny": (x, 1e-9 + 0 * x), "one": (x, 1 + 0 * x)}, log="y").axes[0]
    ax.set_ylim(0.02, 30)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "constrained_layout not applied"
        png(figure_of(ax))
    assert [t.get_text() for t in ax.texts] == ["tiny", "one"]
