"""The U-Net: sizes known from the literature, how it begins, what reaches what, precisions, export; bad input."""
from __future__ import annotations

import dataclasses
import io
import warnings

import pytest
import torch
import torch.nn.functional as F
from helpers import normal, rng
from torch import Tensor, nn

from diffusion_course.images import DenoiseNet
from diffusion_course.matching import MLP, matching_loss
from diffusion_course.predictions import Denoiser
from diffusion_course.schedules import Linear
from diffusion_course.unet import (
    Attention, ResidualBlock, Stage, TimeEmbedding, UNet, UNetConfig, Upsample, part_costs,
)

SMALL = UNetConfig(shape=(1, 8, 8), widths=(16, 32), attention=(4,), head=16, patch=1)
HO = UNetConfig(
    widths=(128, 256, 256, 256), blocks=2, attention=(16,), head=256, patch=1, n_labels=0, dropout=0.1, modulate=False,
)
VARIANTS = {
    "small": SMALL,
    "patches": dataclasses.replace(SMALL, shape=(3, 16, 8), patch=2),
    "unlabelled": dataclasses.replace(SMALL, n_labels=0),
    "deep": UNetConfig(
        shape=(1, 16, 16), widths=(16, 32, 32), blocks=2, attention=(8,), patch=1, modulate=False, embedding="fourier",
    ),
}
every = pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
LOW = [torch.float16, torch.bfloat16]


def single(*shape: int, seed: int) -> Tensor:
    """Standard normal numbers in single precision."""
    return normal(*shape, seed=seed, dtype=torch.float32)


def randomised(net: nn.Module) -> nn.Module:
    """The network with random numbers where it began as zero."""
    for k, p in enumerate(net.parameters()):
        if not p.any(): p.data = torch.randn(p.shape, generator=rng(k)) / max(1, p[0].numel()) ** 0.5
    return net


def batch(config: UNetConfig, n: int = 3) -> tuple[Tensor, Tensor]:
    """Noise and times."""
    return single(n, *config.shape, seed=1), torch.linspace(0.1, 0.9, n)


# ---- sizes and costs ---------------------------------------------------------------------------------

@pytest.mark.parametrize("config, size", [(UNetConfig(), 5_957_132), (HO, 35_746_307)], ids=["shipped", "DDPM"])
def test_size(config, size):
    assert sum(p.numel() for p in UNet(config).parameters()) == size
    assert sum(cost.parameters for cost in part_costs(config).values()) == size


def test_costs_of_a_part():
    config = UNetConfig(shape=(1, 8, 8), widths=(16, 32), attention=(), patch=1)
    costs = part_costs(config)
    assert list(costs) == ["embed_t", "embed_y", "stem", "down.0", "down.1", "down.2", "middle", "up.0", "up.1", "up.2",
                           "up.3", "norm", "last"]
    assert costs["stem"] == ((16, 8, 8), 9 * 16 + 16, 9 * 16 * 64)
    assert costs["down.1"] == ((16, 4, 4), 9 * 16 * 16 + 16, 9 * 16 * 16 * 16)
    assert costs["embed_y"] == ((64,), 11 * 64, 0)
    attention = 4 * 32 * 32 * 16 + 2 * 16**2 * 32  # three layers in one, one out, at 4 x 4 positions; N^2 twice
    block = 2 * 9 * 32 * 32 * 16 + 64 * 64
    assert costs["middle"].multiply_adds == attention + 2 * block


# ---- how it begins -----------------------------------------------------------------------------------

@every
def test_shapes_and_a_beginning_at_zero(config):
    x, t = batch(config)
    net = UNet(config)
    assert torch.equal(net(x, t), torch.zeros_like(x))
    out = randomised(net)(x, t)
    assert out.shape == x.shape and out.isfinite().all() and out.std() > 0.1


def test_the_first_loss_is_that_of_zero():
    x1 = torch.rand(500, 1, 8, 8, generator=rng(2))
    loss = matching_loss(Denoiser(UNet(SMALL), Linear()), x1, generator=rng(3))
    assert loss.item() == pytest.approx(1 + x1.square().mean().item(), rel=0.03)


@every
def test_blocks_begin_as_identity(config):
    x = single(2, 32, 4, 4, seed=4)
    e = single(2, 64, seed=5)
    assert torch.equal(ResidualBlock(32, 32, 64, modulate=config.modulate)(x, e), x)
    assert torch.equal(Attention(32, config.head)(x), x)
    wider = ResidualBlock(32, 48, 64, modulate=config.modulate)
    assert torch.equal(wider(x, e), wider.skip(x))


def test_a_seed_gives_its_weights_and_seeds_nothing_else():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    a, b, c = UNet(SMALL, seed=1), UNet(SMALL, seed=1), UNet(SMALL, seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.stem.weight, c.stem.weight)


def with_gradient(net: nn.Module) -> set[str]:
    """The names of the parameters whose gradient is not zero."""
    return {name for name, p in net.named_parameters() if p.grad is not None and p.grad.any()}


@every
def test_gradients_reach_every_parameter(config):
    net = randomised(UNet(config))
    y = torch.arange(3) if config.n_labels else None
    net(*batch(config), y).square().mean().backward()
    assert with_gradient(net) == {name for name, _ in net.named_parameters()}


def test_in_the_first_step_only_the_last_layer_learns():
    net = UNet(SMALL)
    x, t = batch(SMALL)
    (net(x, t, 1) - x).square().mean().backward()
    assert with_gradient(net) == {"last.weight", "last.bias"}


# ---- what reaches what -------------------------------------------------------------------------------

@every
def test_every_pixel_sees_every_other(config):
    net = randomised(UNet(config))
    x, t = batch(config, 1)
    x.requires_grad_()
    net(x, t)[0, 0, 0, 0].backward()
    assert (x.grad != 0).all()


def test_time_and_label_matter_and_none_is_the_null_label():
    net = randomised(UNet(SMALL))
    x, t = batch(SMALL)
    assert (net(x, t, 3) - net(x, t, 4)).abs().max() > 0.01
    assert (net(x, t, 3) - net(x, 1 - t, 3)).abs().max() > 0.01
    assert torch.equal(net(x, t), net(x, t, 10))
    together = net(x, t, torch.tensor([0, 5, 10]))
    for k, y in enumerate((0, 5, None)):
        alone = net(x[k: k + 1], t[k: k + 1], y)
        torch.testing.assert_close(together[k: k + 1], alone, rtol=1e-4, atol=1e-5)


def test_without_labels_only_the_null_label_is_taken():
    net = randomised(UNet(VARIANTS["unlabelled"]))
    x, t = batch(SMALL)
    assert torch.equal(net(x, t, 0), net(x, t))
    with pytest.raises(ValueError, match=r"labels \[1\]: expected 0 to 0"): net(x, t, 1)


def test_images_of_a_batch_dont_mix():
    net = randomised(UNet(SMALL))
    x, t = batch(SMALL)
    changed = torch.cat([x[:2], 9 * x[2:]])
    torch.testing.assert_close(net(changed, t, 1)[:2], net(x, t, 1)[:2])


@pytest.mark.parametrize("head", [16, 32])
def test_attention_is_scaled_dot_product_attention(head):
    layer = randomised(Attention(32, head))
    x = single(2, 32, 3, 5, seed=6)
    q, k, v = (a.reshape(2, 32 // head, head, 15).mT for a in layer.qkv(layer.norm(x)).chunk(3, 1))
    h = F.scaled_dot_product_attention(q, k, v).mT.reshape(2, 32, 3, 5)
    torch.testing.assert_close(layer(x), x + layer.out(h), rtol=1e-4, atol=1e-5)


def test_attention_doesnt_know_places():
    layer = randomised(Attention(32, 16))
    x = single(2, 32, 4, 4, seed=7)
    order = torch.randperm(16, generator=rng(8))
    shuffled = lambda x: x.flatten(2)[:, :, order].reshape(x.shape)
    torch.testing.assert_close(layer(shuffled(x)), shuffled(layer(x)), rtol=1e-4, atol=1e-5)


def test_second_and_forward_derivatives():
    net = randomised(UNet(SMALL)).double()
    x, t = (a.double() for a in batch(SMALL, 1))
    x.requires_grad_()
    v = normal(*x.shape, seed=11)
    [gradient] = torch.autograd.grad(net(x, t).square().sum(), x, create_graph=True)
    [second] = torch.autograd.grad(gradient.square().sum(), x)
    assert second.isfinite().all() and second.any()
    f = lambda x: net(x, t)
    _, forward = torch.func.jvp(f, (x.detach(),), (v,))
    h = 1e-6
    difference = (f(x.detach() + h * v) - f(x.detach() - h * v)) / (2 * h)
    torch.testing.assert_close(forward, difference, rtol=1e-5, atol=1e-6)


def test_a_blank_image_stays_blank_where_it_grows():
    up = Upsample(16)
    out = up(torch.ones(1, 16, 5, 5))[:, :, 1:-1, 1:-1]
    assert out.shape == (1, 16, 8, 8) and out.var((2, 3)).max() < 1e-10


def test_a_stage_tells_blocks_only():
    block, up = randomised(ResidualBlock(16, 16, 8)), Upsample(16)
    x = single(2, 16, 4, 4, seed=9)
    e = single(2, 8, seed=10)
    assert torch.equal(Stage(block, up)(x, e), up(block(x, e)))


@pytest.mark.parametrize("kind", ["sinusoidal", "fourier"])
def test_times_become_distinct_numbers(kind):
    embed = TimeEmbedding(32, kind)
    e = embed(torch.linspace(0, 1, 50))
    assert e.shape == (50, 128) and torch.cdist(e, e).add(torch.eye(50)).min() > 1e-4
    assert ("rates" in embed.state_dict()) == (kind == "fourier")


def test_dropout_only_while_training():
    net = UNet(dataclasses.replace(SMALL, dropout=0.5))
    x, t = batch(SMALL)
    randomised(net)
    assert not torch.equal(net(x, t), net(x, t))
    net.eval()
    assert torch.equal(net(x, t), net(x, t))


# ---- precisions, memory formats, export --------------------------------------------------------------

@pytest.mark.parametrize("config", [SMALL, VARIANTS["patches"]], ids=["small", "patches"])
def test_autocast_and_channels_last_agree(config):
    net = randomised(UNet(config))
    x, t = batch(config)
    with torch.no_grad():
        plain = net(x, t, 2)
        net = net.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(net(x, t, 2), plain, rtol=1e-3, atol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            for out in (net(x, t, 2), net(x.bfloat16(), t, 2)):
                assert (out - plain).square().mean().sqrt() < 0.02 * plain.std()


@every
@pytest.mark.parametrize("dtype, tolerance", [(torch.float16, 0.005), (torch.bfloat16, 0.03), (torch.float32, 1e-5)])
@torch.no_grad()
def test_network_in_every_precision(config, dtype, tolerance):
    x = normal(3, *config.shape, seed=12)
    t = torch.tensor([0.1, 0.5, 0.9985])
    y = 2 if config.n_labels else None
    expected = randomised(UNet(config)).double()(x, t.double(), y)
    net = randomised(UNet(config)).to(dtype)
    for times in (t, t.double()):
        out = net(x.to(dtype), times, y)
        assert out.dtype == dtype
        assert (out - expected).square().mean().sqrt() < tolerance * expected.std()


@pytest.mark.parametrize("kind", ["sinusoidal", "fourier"])
@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_times_are_rounded_no_more_than_they_came(kind, dtype):
    torch.manual_seed(0)
    embed = TimeEmbedding(64, kind).double()
    t = torch.linspace(0, 1, 60).to(dtype)
    torch.manual_seed(0)
    low = TimeEmbedding(64, kind).to(dtype)
    e = low(t)
    assert e.dtype == dtype
    expected = embed(t.double())
    assert (e - expected).abs().max() < 8 * torch.finfo(dtype).eps * expected.abs().max()


def test_fourier_rates_move_and_keep_their_precision():
    torch.manual_seed(0)
    embed = TimeEmbedding(16, "fourier")
    rates = embed.rates.clone()
    for dtype in LOW:
        assert torch.equal(embed.to(dtype).rates, rates) and embed.layers[0].weight.dtype == dtype
    assert torch.equal(embed.double().rates, rates.double())
    assert embed.to("meta").rates.is_meta
    assert embed.to_empty(device="cpu").rates.device.type == "cpu"


def test_network_refuses_another_precision():
    net = UNet(SMALL)
    x, t = batch(SMALL)
    said = "x is torch.float64 and the weights torch.float32: expected the same dtype"
    with pytest.raises(ValueError, match=said): net(x.double(), t)
    with pytest.raises(ValueError, match="x is torch.float32 and the weights torch.float16"):
        net.half()(x, t)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match=said): net.float()(x.double(), t)


def test_model_takes_points_of_any_precision():
    x, t = batch(SMALL)
    net = randomised(UNet(SMALL))
    expected = Denoiser(net, Linear())(x, t, y=1).x1
    for dtype in (*LOW, torch.float64):
        found = Denoiser(net, Linear())(x.to(dtype), t, y=1).x1
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.1)


def test_attention_can_be_exported_to_onnx():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter that takes tensors of any kind is deprecated
        try: torch.onnx.export(Attention(32, 16), (single(1, 32, 4, 4, seed=13),), io.BytesIO(), dynamo=False)
        except torch.onnx.OnnxExporterError as error:  # raised at the very end, when all has been translated
            assert "onnx is not installed" in str(error)


def test_network_compiles_into_one_graph():
    config = dataclasses.replace(VARIANTS["deep"], n_labels=0)  # looking at labels would be another graph
    net = randomised(UNet(config))
    x, t = batch(config)
    with torch.no_grad():
        out = torch.compile(net, backend="eager", fullgraph=True)(x, t)
        torch.testing.assert_close(out, net(x, t))


# ---- bad input ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("change, said", [
    (dict(shape=(8, 8)), r"shape is \(8, 8\): expected \(channels"),
    (dict(shape=(1, 9, 8)), r"shape is \(1, 9, 8\): .*2"),
    (dict(shape=(1, 8, 10), patch=4), "shape is"),
    (dict(widths=()), r"widths is \(\): expected multiples of 16"),
    (dict(widths=(16, 40)), "widths is .*: expected multiples of 16"),
    (dict(widths=(16, 48), head=32), "48: expected multiples of head, 32"),
    (dict(widths=(48, 64), head=64, attention=(8,)), "48: expected multiples of head, 64"),
    (dict(blocks=0), "blocks is 0: expected a whole number, 1 or more"),
    (dict(blocks=1.5), "blocks is 1.5: expected a whole number"),
    (dict(head=0), "head is 0: expected a whole number, 1 or more"),
    (dict(patch=0), "patch is 0"),
    (dict(n_labels=-1), "n_labels is -1: expected a whole number, 0 or more"),
    (dict(dropout=1.0), r"dropout is 1.0: expected a fraction in \[0, 1\)"),
    (dict(attention=(7,)), r"attention is \(7,\): expected heights .*8, 4"),
    (dict(attention=(8, 16)), "not 16"),
    (dict(embedding="fast"), "embedding is 'fast': expected one of sinusoidal, fourier"),
], ids=str)
def test_bad_configurations(change, said):
    with pytest.raises(ValueError, match=said): dataclasses.replace(SMALL, **change)


def test_lists_become_tuples():
    assert dataclasses.replace(SMALL, shape=[1, 8, 8], widths=[16, 32], attention=[4]) == SMALL


def test_bad_inputs():
    net = UNet(SMALL)
    x, t = batch(SMALL)
    for wrong in (x[:, :, :4], x[0], x.repeat(1, 3, 1, 1)):
        with pytest.raises(ValueError, match=r"x has shape .*: expected \(B, 1, 8, 8\)"):
            net(wrong, t)
    for wrong in (t[:2], t[:, None], t[0]):
        with pytest.raises(ValueError, match=r"t has shape .*: expected \(3,\), one for each image"): net(x, wrong)
    with pytest.raises(ValueError, match="kind is 'waves': expected one of sinusoidal, fourier"):
        TimeEmbedding(32, "waves")
    with pytest.raises(ValueError, match="width is 33: expected an even number"): TimeEmbedding(33)
    for head in (0, 24):
        with pytest.raises(ValueError, match=f"width is 32, head is {head}: expected"):
            Attention(32, head)


@pytest.mark.parametrize("net, x", [
    (MLP(n_labels=10), torch.zeros(3, 2)),
    (DenoiseNet((1, 8, 8), n_labels=10), torch.zeros(3, 1, 8, 8)),
    (UNet(SMALL), torch.zeros(3, 1, 8, 8)),
], ids=["MLP", "DenoiseNet", "UNet"])
def test_labels_out_of_range(net, x):
    t = torch.full((3,), 0.5)
    said = "y holds labels .*: expected 0 to 10, the last for none"
    for wrong in (11, -1, torch.tensor([0, 1, 12])):
        with pytest.raises(ValueError, match=said): net(x, t, wrong)
    with pytest.raises(ValueError, match=r"y has shape \(2,\)"): net(x, t, torch.tensor([0, 1]))
