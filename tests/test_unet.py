"""The U-Net: sizes known from the literature, how it begins, what reaches what, number formats; bad input."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from diffusion_course.images import DenoiseNet
from diffusion_course.matching import MLP, matching_loss
from diffusion_course.predictions import Denoiser
from diffusion_course.schedules import Linear
from diffusion_course.unet import Attention, ResidualBlock, Stage, TimeEmbedding, UNet, UNetConfig, Upsample

SMALL = UNetConfig(shape=(1, 8, 8), widths=(16, 32), attention=(4,), head=16, patch=1)
HO = UNetConfig(
    widths=(128, 256, 256, 256),
    blocks=2,
    attention=(16,),
    head=256,
    patch=1,
    n_labels=0,
    dropout=0.1,
    modulate=False,
)
VARIANTS = {
    "small": SMALL,
    "patches": dataclasses.replace(SMALL, shape=(3, 16, 8), patch=2),
    "unlabelled": dataclasses.replace(SMALL, n_labels=0),
    "deep": UNetConfig(
        shape=(1, 16, 16),
        widths=(16, 32, 32),
        blocks=2,
        attention=(8,),
        patch=1,
        modulate=False,
        embedding="fourier",
    ),
}
every = pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)


def rng(seed: int) -> torch.Generator: return torch.Generator().manual_seed(seed)


def woken(net: nn.Module) -> nn.Module:
    "The network with random numbers where it began as zero."
    for k, p in enumerate(net.parameters()):
        if not p.any(): p.data = torch.randn(p.shape, generator=rng(k)) / max(1, p[0].numel()) ** 0.5
    return net


def batch(config: UNetConfig, n: int = 3) -> tuple:
    return torch.randn(n, *config.shape, generator=rng(1)), torch.linspace(0.1, 0.9, n)


@pytest.mark.parametrize("config, size", [(UNetConfig(), 5_957_132), (HO, 35_746_307)], ids=["shipped", "DDPM"])
def test_size(config, size):
    assert sum(p.numel() for p in UNet(config).parameters()) == size


@every
def test_shapes_and_a_beginning_at_zero(config):
    x, t = batch(config)
    net = UNet(config)
    assert torch.equal(net(x, t), torch.zeros_like(x))
    out = woken(net)(x, t)
    assert out.shape == x.shape and out.isfinite().all() and out.std() > 0.1


def test_the_first_loss_is_that_of_zero():
    x1 = torch.rand(500, 1, 8, 8, generator=rng(2))
    loss = matching_loss(Denoiser(UNet(SMALL), Linear()), x1, generator=rng(3))
    assert loss.item() == pytest.approx(1 + x1.square().mean().item(), rel=0.03)


@every
def test_blocks_begin_as_identity(config):
    x, e = torch.randn(2, 32, 4, 4, generator=rng(4)), torch.randn(2, 64, generator=rng(5))
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


@every
def test_gradients_reach_every_parameter(config):
    net, (x, t) = woken(UNet(config)), batch(config)
    y = torch.arange(3) if config.n_labels else None
    net(x, t, y).square().mean().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_in_the_first_step_only_the_last_layer_learns():
    net, (x, t) = UNet(SMALL), batch(SMALL)
    (net(x, t, 1) - x).square().mean().backward()
    assert {name for name, p in net.named_parameters() if p.grad is not None and p.grad.any()} == {
        "last.weight",
        "last.bias",
    }


@every
def test_every_pixel_sees_every_other(config):
    net, (x, t) = woken(UNet(config)), batch(config, 1)
    x.requires_grad_()
    net(x, t)[0, 0, 0, 0].backward()
    assert (x.grad != 0).all()


def test_time_and_label_matter_and_none_is_the_null_label():
    net, (x, t) = woken(UNet(SMALL)), batch(SMALL)
    assert (net(x, t, 3) - net(x, t, 4)).abs().max() > 0.01
    assert (net(x, t, 3) - net(x, 1 - t, 3)).abs().max() > 0.01
    assert torch.equal(net(x, t), net(x, t, 10))
    each = net(x, t, torch.tensor([0, 5, 10]))
    for k, y in enumerate((0, 5, None)):
        torch.testing.assert_close(each[k: k + 1], net(x[k: k + 1], t[k: k + 1], y), rtol=1e-4, atol=1e-5)


def test_without_labels_only_the_null_label_is_taken():
    net, (x, t) = woken(UNet(VARIANTS["unlabelled"])), batch(SMALL)
    assert torch.equal(net(x, t, 0), net(x, t))
    with pytest.raises(ValueError, match=r"labels \[1\]: expected 0 to 0"): net(x, t, 1)


def test_pictures_of_a_batch_dont_mix():
    net, (x, t) = woken(UNet(SMALL)), batch(SMALL)
    changed = torch.cat([x[:2], 9 * x[2:]])
    torch.testing.assert_close(net(changed, t, 1)[:2], net(x, t, 1)[:2])


@pytest.mark.parametrize("head", [16, 32])
def test_attention_is_scaled_dot_product_attention(head):
    layer, x = woken(Attention(32, head)), torch.randn(2, 32, 3, 5, generator=rng(6))
    q, k, v = (a.reshape(2, 32 // head, head, 15).mT for a in layer.qkv(layer.norm(x)).chunk(3, 1))
    h = F.scaled_dot_product_attention(q, k, v).mT.reshape(2, 32, 3, 5)
    torch.testing.assert_close(layer(x), x + layer.out(h), rtol=1e-4, atol=1e-5)


def test_attention_doesnt_know_places():
    layer, x = woken(Attention(32, 16)), torch.randn(2, 32, 4, 4, generator=rng(7))
    order = torch.randperm(16, generator=rng(8))
    shuffled = lambda x: x.flatten(2)[:, :, order].reshape(x.shape)
    torch.testing.assert_close(layer(shuffled(x)), shuffled(layer(x)), rtol=1e-4, atol=1e-5)


def test_a_blank_picture_stays_blank_where_it_grows():
    up = Upsample(16)
    out = up(torch.ones(1, 16, 5, 5))[:, :, 1:-1, 1:-1]
    assert out.shape == (1, 16, 8, 8) and out.var((2, 3)).max() < 1e-10


def test_a_stage_tells_blocks_only():
    block, up = woken(ResidualBlock(16, 16, 8)), Upsample(16)
    x, e = torch.randn(2, 16, 4, 4, generator=rng(9)), torch.randn(2, 8, generator=rng(10))
    assert torch.equal(Stage(block, up)(x, e), up(block(x, e)))


@pytest.mark.parametrize("kind", ["sinusoidal", "fourier"])
def test_times_become_distinct_numbers(kind):
    embed, t = TimeEmbedding(32, kind), torch.linspace(0, 1, 50)
    e = embed(t)
    assert e.shape == (50, 128) and torch.cdist(e, e).add(torch.eye(50)).min() > 1e-4
    assert ("rates" in embed.state_dict()) == (kind == "fourier")


@pytest.mark.parametrize("config", [SMALL, VARIANTS["patches"]], ids=["small", "patches"])
def test_sixteen_bits_and_channels_last_agree(config):
    net, (x, t) = woken(UNet(config)), batch(config)
    with torch.no_grad():
        plain = net(x, t, 2)
        net = net.to(memory_format=torch.channels_last)
        torch.testing.assert_close(
            net(x.contiguous(memory_format=torch.channels_last), t, 2), plain, rtol=1e-3, atol=1e-4
        )
        with torch.autocast("cpu", torch.bfloat16): half = net(x.contiguous(memory_format=torch.channels_last), t, 2)
    assert (half - plain).square().mean().sqrt() < 0.02 * plain.std()


def test_dropout_only_while_training():
    net, (x, t) = woken(UNet(dataclasses.replace(SMALL, dropout=0.5))), batch(SMALL)
    assert not torch.equal(net(x, t), net(x, t))
    net.eval()
    assert torch.equal(net(x, t), net(x, t))


@pytest.mark.parametrize(
    "change, said",
    [
        (dict(shape=(8, 8)), r"shape is \(8, 8\): expected \(channels"),
        (dict(shape=(1, 9, 8)), r"shape is \(1, 9, 8\): .*2"),
        (dict(shape=(1, 8, 10), patch=4), "shape is"),
        (dict(widths=()), r"widths is \(\): expected multiples of 16"),
        (dict(widths=(16, 40)), "widths is .*: expected multiples of 16"),
        (dict(widths=(16, 48), head=32), "48: expected multiples of head, 32"),
        (dict(widths=(48, 64), head=64, attention=(8,)), "48: expected multiples of head, 64"),
        (dict(blocks=0), "blocks is 0: expected a whole number, 1 or more"),
        (dict(head=0), "head is 0: expected a whole number, 1 or more"),
        (dict(patch=0), "patch is 0"),
        (dict(n_labels=-1), "n_labels is -1: expected a whole number, 0 or more"),
        (dict(dropout=1.0), r"dropout is 1.0: expected a share in \[0, 1\)"),
        (dict(blocks=1.5), "blocks is 1.5: expected a whole number"),
        (dict(attention=(7,)), r"attention is \(7,\): expected heights .*8, 4"),
        (dict(attention=(8, 16)), "not 16"),
        (dict(embedding="fast"), "embedding is 'fast': expected one of .*sinusoidal"),
    ],
    ids=str,
)
def test_bad_configurations(change, said):
    with pytest.raises(ValueError, match=said): dataclasses.replace(SMALL, **change)


def test_lists_become_tuples():
    assert dataclasses.replace(SMALL, shape=[1, 8, 8], widths=[16, 32], attention=[4]) == SMALL


def test_bad_inputs():
    net, (x, t) = UNet(SMALL), batch(SMALL)
    for wrong in (x[:, :, :4], x[0], x.repeat(1, 3, 1, 1)):
        with pytest.raises(ValueError, match=r"x has shape .*: expected \(B, \*\(1, 8, 8\)\)"): net(wrong, t)
    for wrong in (t[:2], t[:, None], t[0]):
        with pytest.raises(ValueError, match=r"t has shape .*: expected \(3,\)"): net(x, wrong)
    with pytest.raises(ValueError, match="kind is 'waves': expected one of"): TimeEmbedding(32, "waves")
    with pytest.raises(ValueError, match="width is 33: expected an even number"): TimeEmbedding(33)
    for head in (0, 24):
        with pytest.raises(ValueError, match=f"width is 32, head is {head}: expected"): Attention(32, head)


@pytest.mark.parametrize(
    "net, x",
    [
        (MLP(n_labels=10), torch.zeros(3, 2)),
        (DenoiseNet((1, 8, 8), n_labels=10), torch.zeros(3, 1, 8, 8)),
        (UNet(SMALL), torch.zeros(3, 1, 8, 8)),
    ],
    ids=["MLP", "DenoiseNet", "UNet"],
)
def test_labels_out_of_range(net, x):
    for wrong in (11, -1, torch.tensor([0, 1, 12])):
        with pytest.raises(
            ValueError, match=r"y holds labels .*: expected 0 to 10, the last for none"
        ):
            net(x, torch.full((3,), 0.5), wrong)
    with pytest.raises(ValueError, match=r"y has shape \(2,\)"): net(x, torch.full((3,), 0.5), torch.tensor([0, 1]))
