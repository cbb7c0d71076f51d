"""The look of figures: colours by role, files of the right size."""
from __future__ import annotations

import io
from itertools import combinations

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from diffusion_course.style import COLORS, LABELS, color_of, figure, figure_of, png, shrink

# linear RGB as those see it who lack the pigment for green, or for red: Machado, Oliveira and Fernandes
# (2009), "A physiologically-based model for simulation of color vision deficiency", table 1, severity 1
SIGHT = {
    "all": np.eye(3),
    "no green": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                          [-0.011820, 0.042940, 0.968881]]),
    "no red": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                        [-0.003882, -0.048116, 1.051998]]),
}


def pixels(data: bytes) -> np.ndarray:
    """The colours in a PNG file."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def test_shrinking_keeps_the_image():
    fig, ax = figure()
    ax.imshow(np.random.default_rng(0).random((9, 9)), cmap="viridis", interpolation="bilinear")
    large = png(fig)
    small = shrink(large)
    assert len(small) < 0.6 * len(large)
    assert np.abs(pixels(large) - pixels(small)).mean() < 1.5


def test_axes_come_alone_or_as_an_array():
    assert figure()[1].get_xlim() == (0, 1)
    for size, shape in (((3,), (3,)), ((1, 2), (2,)), ((3, 2), (2, 3))):
        assert figure(*size)[1].shape == shape


def test_axes_know_their_whole_figure():
    fig, ax = figure()
    assert figure_of(ax) is fig
    outer, _ = figure()
    inner = outer.subfigures(1, 2)[0].subplots()
    assert figure_of(inner) is outer


def test_colours():
    assert color_of("data") == COLORS["data"] and color_of("#123456") == "#123456"
    with pytest.raises(ValueError, match="unknown colour 'leaned': expected one of noise, data"):
        color_of("leaned")


def lab(color: str, sight: np.ndarray) -> np.ndarray:
    """CIE L*a*b* (D65) of a colour, seen with such eyes."""
    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
                    [0.0193339, 0.1191920, 0.9503041]]) @ np.clip(sight @ linear, 0, 1)
    f = np.cbrt(xyz / [0.95047, 1, 1.08883])
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize("colors", [[*COLORS.values()], LABELS], ids=["roles", "labels"])
def test_colours_differ_for_all_eyes(colors: list[str], sight: str) -> None:
    seen = [lab(color, SIGHT[sight]) for color in colors]
    nearest = min((np.linalg.norm(a - b), i, j) for (i, a), (j, b) in combinations(enumerate(seen), 2))
    assert nearest[0] > 17, nearest
