"""Features without a network: what they notice, and what they don't."""
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers import rng

from diffusion_course import evaluation as ev
from diffusion_course.images import digits
from diffusion_course.textures import Textures


def waves(angle: float, length: float, n: int = 8, channels: int = 3) -> torch.Tensor:
    """Images of stripes at n phases, light along one direction: (n, channels, 32, 32)."""
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    across = x * torch.tensor(angle).cos() + y * torch.tensor(angle).sin()
    phase = torch.arange(n)[:, None, None] * 2 * torch.pi / n
    return (0.5 * torch.cos(2 * torch.pi * across / length + phase))[:, None].expand(-1, channels, -1, -1)


def test_each_direction_and_size_has_its_number() -> None:
    net = Textures()
    for k in range(4):
        strengths = net(waves(k * torch.pi / 4, 6.0, channels=1))[:, 4:8]
        assert (strengths.argmax(1) == k).all(), "the direction of the stripes"
        assert strengths.std(0).max() < 0.05, "wherever exactly they lie"
    for size, length in enumerate((6.0, 12.0, 24.0)):
        strongest = net(waves(0.0, length, channels=1))[:, 4:].unflatten(1, (3, 4)).mean(2).mean(0)
        assert strongest.argmax() == size


def test_an_even_image_has_no_edges_and_keeps_its_colour() -> None:
    net = Textures()
    grey = torch.zeros(1, 3, 16, 16)
    red = torch.tensor([0.6, 0.0, 0.0]).view(1, 3, 1, 1).expand_as(grey)
    for x in (grey, red):
        torch.testing.assert_close(net(x)[:, 12:], torch.full((1, 36), 0.02).log(), atol=1e-4, rtol=0)
    assert net(grey)[:, :12].abs().max() == 0
    brightness, opposed, yellow = net(red)[0, :12].view(3, 4).unbind()
    assert (brightness > 0.3).all() and (opposed > 0.4).all() and (yellow < -0.2).all()


def test_a_blur_and_noise_are_seen() -> None:
    x = digits("train").batch(slice(0, 1200))[0]
    a, b = x[::2], x[1::2]
    g = rng()
    blurred = lambda v: F.avg_pool2d(F.pad(v, (1, 1, 1, 1), mode="replicate"), 3, 1)
    noisy = lambda v: (v + 0.5 * torch.randn(v.shape, generator=g)).clamp(-1, 1)
    of = lambda v: ev.features(v, Textures())
    between = lambda v, w: ev.frechet_distance(of(v), of(w))
    assert between(a, blurred(b)) > 10 * between(a, b)
    assert between(blurred(a), noisy(blurred(b))) > 3 * between(blurred(a), blurred(b))


def test_nothing_is_learned_and_every_copy_is_the_same() -> None:
    assert not list(Textures().parameters()) and not Textures().training
    x = torch.rand(2, 3, 8, 12, generator=rng()) * 2 - 1
    assert torch.equal(Textures()(x), Textures()(x)) and Textures()(x).shape == (2, 48)
    assert Textures()(x[:, :1].double()).shape == (2, 16)


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 2, 8, 8), (2, 3, 6, 8)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected .B, C, H, W., 1 or 3 channels, sides that"):
        Textures()(torch.zeros(shape))
