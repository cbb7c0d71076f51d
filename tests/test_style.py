"""The look of figures: colours by role, files of the right size."""
from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from diffusion_course.style import COLORS, color_of, figure, figure_of, png, shrink


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
