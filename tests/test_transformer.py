"""Transformers and text: patches, attention, blocks that begin as nothing, captions, guidance by captions, the program
that tells the truth about scenes, and the shipped model's table."""
from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers import normal, rng
from torch import Tensor

from diffusion_course import transformer
from diffusion_course.checkpoints import WEIGHTS, load, save, shipped
from diffusion_course.generation import generate
from diffusion_course.guidance import classifier_free
from diffusion_course.images import Images
from diffusion_course.matching import drop_conditions, matching_loss
from diffusion_course.predictions import Denoiser, cost
from diffusion_course.scenes import (
    RELATIONS, SIDE, Caption, Thing, all_captions, draw_captions, draw_scenes, judge, parse_caption, read_scene,
    verdict,
)
from diffusion_course.schedules import Linear
from diffusion_course.training import DATA, train
from diffusion_course.transformer import (
    N_WORDS, PRESETS, WORDS, DiT, DiTBlock, DiTConfig, MultiHead, TextEncoder, TransformerRecipe, attention_maps,
    attention_weights, patchify, positional_codes, prompted, tokens, unpatchify, waves,
)

TINY = DiTConfig((3, 20, 20), patch=4, width=16, depth=2, head=8)
LABELLED = DiTConfig((1, 8, 8), patch=2, width=16, depth=2, head=8, n_labels=3, n_cond=0, vocabulary=0)
NUMBERS = replace(LABELLED, n_cond=2)
CAPTIONS = ("a red circle", "two green triangles", "a small red circle above a large blue square")


def shaken(net: torch.nn.Module) -> torch.nn.Module:
    """The network with weights that are nowhere zero."""
    g = rng(0)
    with torch.no_grad():
        for p in net.parameters(): p.add_(0.2 * torch.randn(p.shape, generator=g))
    return net.eval().requires_grad_(False)


def reader(config: DiTConfig = TINY) -> Denoiser: return Denoiser(shaken(DiT(config)), Linear()).eval()


def pictures(n: int, config: DiTConfig = TINY, seed: int = 1) -> Tensor:
    return normal(n, *config.shape, seed=seed, dtype=torch.float32)


# ---- patches and attention -----------------------------------------------------------------------

@pytest.mark.parametrize(("shape", "p"), [((2, 3, 8, 12), 4), ((1, 1, 6, 4), 2), ((3, 2, 5, 5), 1), ((2, 3, 4, 4), 4)])
def test_patches_are_squares_row_by_row_and_come_together_again(shape, p):
    x = normal(*shape)
    found = patchify(x, p)
    columns = shape[3] // p
    for k in range(found.shape[1]):
        i, j = k // columns * p, k % columns * p
        assert torch.equal(found[:, k], x[:, :, i: i + p, j: j + p].flatten(1))
    assert torch.equal(unpatchify(found, shape[1:], p), x)


@pytest.mark.parametrize(("p", "message"), [
    (0, "expected a whole number, 1 or more"), (3, "expected a number that divides 8 and 8"),
    (5, "expected a number that divides 8 and 8"),
])
def test_a_patch_that_does_not_fit_is_refused(p, message):
    with pytest.raises(ValueError, match=message): patchify(normal(1, 1, 8, 8), p)
    with pytest.raises(ValueError, match=message): unpatchify(normal(1, 4, 16), (1, 8, 8), p)


def test_attention_is_that_of_pytorch_with_a_mask():
    layer = MultiHead(12, 4).double()
    h, context = normal(2, 5, 12), normal(2, 7, 12, seed=1)
    mask = torch.rand(2, 1, 1, 7, generator=rng(2)) < 0.6
    mask[..., 0] = True
    keys, values = layer.kv(context).chunk(2, -1)
    parts = (a.unflatten(-1, (3, 4)).transpose(1, 2) for a in (layer.q(h), keys, values))
    expected = layer.out(F.scaled_dot_product_attention(*parts, attn_mask=mask).transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(h, context, mask), expected)
    a = layer.weights(h, context, mask)
    torch.testing.assert_close(a.sum(-1), torch.ones(2, 3, 5).double())
    assert not a[~mask.expand_as(a)].any() and (a[mask.expand_as(a)] > 0).all()


def test_attention_does_not_know_an_order():
    layer = MultiHead(12, 6).double()
    h, context = normal(2, 5, 12), normal(2, 7, 12, seed=1)
    of_h, of_context = torch.randperm(5, generator=rng(3)), torch.randperm(7, generator=rng(4))
    torch.testing.assert_close(layer(h[:, of_h]), layer(h)[:, of_h])
    torch.testing.assert_close(layer(h, context[:, of_context]), layer(h, context))


def test_agreement_is_divided_by_the_root_of_its_length():
    q, k = 100 * normal(1, 3, 4), 100 * normal(1, 3, 4, seed=1)
    a = attention_weights(q, k)
    torch.testing.assert_close(a, (q @ k.mT / 2).softmax(-1))
    four = [torch.cat([a] * 4, -1) for a in (q, k)]
    torch.testing.assert_close(attention_weights(*four), (q @ k.mT).softmax(-1))


def test_positions_have_codes_of_their_own_that_fade_with_distance():
    codes = positional_codes(6, 5, 32)
    assert codes.shape == (30, 32) and (torch.cdist(codes, codes) + 9 * torch.eye(30) > 0.1).all()
    near = F.cosine_similarity(codes[0], codes[1], 0)
    assert near > F.cosine_similarity(codes[0], codes[4], 0)
    torch.testing.assert_close(waves(torch.arange(5), 16), codes[:5, 16:])
    with pytest.raises(ValueError, match="expected an even number"): waves(torch.arange(3), 5)


# ---- blocks and networks -------------------------------------------------------------------------

@pytest.mark.parametrize("words", [False, True])
def test_a_block_begins_as_the_identity(words):
    block = DiTBlock(16, 8, words)
    h, e = pictures(2)[:, 0, :, :16], normal(2, 16, dtype=torch.float32)
    given = (normal(2, 4, 16, dtype=torch.float32), torch.ones(2, 1, 1, 4, dtype=torch.bool)) if words else ()
    assert torch.equal(block(h, e, *given), h)
    assert not torch.equal(shaken(block)(h, e, *given), h)


@pytest.mark.parametrize("config", [TINY, LABELLED, NUMBERS], ids=["words", "labels", "numbers"])
def test_a_network_begins_as_zero_and_every_weight_learns(config):
    net = DiT(config)
    x, t = pictures(4, config), torch.rand(4, generator=rng(2))
    assert not net(x, t).any()
    net = shaken(net).requires_grad_(True)
    numbers = normal(4, 2, dtype=torch.float32) if config.n_cond else None
    cond = tokens([*CAPTIONS, ""]) if config.vocabulary else numbers
    net(x, t, torch.tensor([0, 1, 2, 3]) if config.n_labels else None, cond).square().sum().backward()
    unused = {name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()}
    assert not unused


def test_patches_in_another_order_with_their_codes_come_out_in_that_order():
    net = shaken(DiT(TINY))
    x, t, cond = pictures(2), torch.tensor([0.2, 0.7]), tokens(CAPTIONS[:2])
    order = torch.randperm(25, generator=rng(3))
    expected = patchify(net(x, t, cond=cond), 4)[:, order]
    mixed = unpatchify(patchify(x, 4)[:, order], TINY.shape, 4)
    assert not torch.allclose(patchify(net(mixed, t, cond=cond), 4), expected, atol=1e-3)
    net.codes = net.codes[order]
    torch.testing.assert_close(patchify(net(mixed, t, cond=cond), 4), expected)


def test_it_reads_time_label_numbers_and_words():
    x = pictures(1, LABELLED).expand(2, -1, -1, -1)
    t, half = torch.tensor([0.2, 0.7]), torch.full((2,), 0.5)
    differ = lambda y: (y[0] - y[1]).abs().max() > 1e-3
    net = shaken(DiT(NUMBERS))
    assert differ(net(x, t)) and differ(net(x, half, torch.tensor([0, 1])))
    assert differ(net(x, half, cond=torch.tensor([[0.0, 1.0], [torch.nan, 1.0]])))
    x = pictures(1).expand(2, -1, -1, -1)
    pairs = [("a red circle", "a blue circle"), ("a red circle", ""), ("red a circle", "a red circle")]
    for pair in pairs: assert differ(shaken(DiT(TINY))(x, half, cond=tokens(pair))), pair


def test_empty_places_of_a_caption_make_no_difference():
    net = shaken(DiT(TINY))
    longer = shaken(DiT(replace(TINY, n_cond=14)))
    longer.load_state_dict(net.state_dict())
    x, t = pictures(3), torch.tensor([0.1, 0.5, 0.9])
    torch.testing.assert_close(net(x, t, cond=tokens(CAPTIONS)), longer(x, t, cond=tokens(CAPTIONS, 14)))


def test_no_caption_an_empty_one_and_an_unknown_one_are_the_same():
    net, x, t = shaken(DiT(TINY)), pictures(2), torch.tensor([0.1, 0.5])
    for cond in (tokens(["", ""]), torch.full((2, N_WORDS), torch.nan)):
        assert torch.equal(net(x, t, cond=cond), net(x, t))


def test_the_network_computes_in_double_and_in_half_precision():
    net, x, t = shaken(DiT(TINY)), pictures(3), torch.tensor([0.1, 0.5, 0.9])
    expected = net(x, t, cond=tokens(CAPTIONS))
    double = net.double()(x.double(), t.double(), cond=tokens(CAPTIONS))
    torch.testing.assert_close(double.float(), expected, atol=1e-4, rtol=1e-4)
    with torch.autocast("cpu", torch.bfloat16): low = net.float()(x, t, cond=tokens(CAPTIONS))
    assert (low.float() - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.parametrize(("change", "message"), [
    (dict(patch=3), "expected sides that the patch, 3, divides"), (dict(width=20), "expected a multiple of 8"),
    (dict(head=5), "multiple of 8 and of head, 5"), (dict(depth=0), "depth"), (dict(vocabulary=-1), "vocabulary"),
    (dict(n_cond=0), "expected how many words"), (dict(shape=(20, 20)), r"expected \(channels, height, width\)"),
])
def test_settings_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message): replace(TINY, **change)


def test_inputs_that_do_not_fit_are_refused():
    net, x, t = DiT(TINY), pictures(2), torch.tensor([0.1, 0.5])
    for cond in (torch.full((2, 10), 21.0), torch.full((2, 10), 0.5), torch.full((2, 10), -1.0)):
        with pytest.raises(ValueError, match="expected numbers of words, 1 to 20, or 0 for none"):
            net(x, t, cond=cond)
    with pytest.raises(ValueError, match=r"cond has shape \(2, 3\)"):
        net(x, t, cond=torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"expected \(B, 3, 20, 20\)"): net(x[..., :16], t)
    with pytest.raises(ValueError, match="y holds labels"): net(x, t, torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="n_cond is 0"):
        DiT(LABELLED)(pictures(2, LABELLED), t, cond=torch.zeros(2, 3))


@pytest.mark.parametrize("config", [TINY, LABELLED, NUMBERS], ids=["words", "labels", "numbers"])
def test_a_model_comes_back_from_a_file(config, tmp_path):
    model = reader(config)
    save(model, tmp_path / "m.safetensors", half=False)
    back = load(tmp_path / "m.safetensors")
    assert back.net.config == config
    x = pictures(2, config)
    cond = dict(cond=tokens(CAPTIONS[:2])) if config.vocabulary else dict(y=torch.tensor([0, 2]))
    torch.testing.assert_close(back(x, 0.3, **cond).x1, model(x, 0.3, **cond).x1)


def test_labels_guide_it_as_they_guide_a_unet():
    model, y = reader(LABELLED), torch.tensor([0, 1, 2])
    x = generate(model, 3, 3, "euler", 2.0, seed=0, y=y)
    assert x.shape == (3, 1, 8, 8) and x.isfinite().all()
    assert not torch.allclose(x, generate(model, 3, 3, "euler", 2.0, seed=0, y=y.flip(0)), atol=1e-3)


# ---- captions ------------------------------------------------------------------------------------

def test_words_become_numbers():
    found = tokens(["a red circle", "Two green triangles."])
    assert found.shape == (2, N_WORDS) and found.dtype == torch.float32
    words = [[WORDS[int(k) - 1] for k in row if k] for row in found]
    assert words == [["a", "red", "circle"], ["two", "green", "triangles"]]
    assert not tokens("").any() and torch.equal(tokens("a red circle"), found[:1])
    for captions in all_captions().values():
        for c in captions[::40]: assert len(str(c).split()) <= N_WORDS and tokens(str(c)).any()
    assert len(WORDS) == DiTConfig().vocabulary == len(set(WORDS))


@pytest.mark.parametrize(("caption", "message"), [
    ("a purple cat", "'purple', 'cat': expected words among a, two"), ("a " * 11, "11 words: expected at most 10"),
])
def test_a_caption_that_is_not_known_is_refused(caption, message):
    with pytest.raises(ValueError, match=message): tokens(caption)


def test_words_know_of_the_others_and_padding_is_masked():
    encoder = shaken(TextEncoder(20, N_WORDS, 16, 1, 8))
    h, mask = encoder(tokens(["a red circle", "a blue circle"]))
    assert h.shape == (2, 11, 16) and mask[:, 0, 0].sum(1).tolist() == [4, 4]
    assert (h[0, 3] - h[1, 3]).abs().max() > 1e-3  # the circle knows its colour


# ---- guidance by captions ------------------------------------------------------------------------

def test_guidance_is_a_line_between_two_predictions():
    model, x, cond = reader(), pictures(3), tokens(CAPTIONS)
    for t in (0.3, torch.tensor([0.1, 0.5, 0.9])):
        for negative in ("", "red", "three blue squares"):
            less = model(x, t, cond=tokens(negative))
            more = model(x, t, cond=cond)
            for w in (-1.0, 0.0, 0.4, 1.0, 3.0):
                found = prompted(model, w, negative)(x, t, cond=cond)
                torch.testing.assert_close(found.x1, (1 - w) * less.x1 + w * more.x1, atol=1e-4, rtol=1e-4)
                torch.testing.assert_close(found.eps, (1 - w) * less.eps + w * more.eps, atol=1e-4, rtol=1e-4)


def test_without_a_negative_prompt_it_is_classifier_free_guidance():
    model, x, cond = reader(), pictures(3), tokens(CAPTIONS)
    expected = classifier_free(model, 2.5)(x, 0.4, cond=cond)
    torch.testing.assert_close(prompted(model, 2.5)(x, 0.4, cond=cond).x1, expected.x1)
    drawn = [generate(model, 3, 3, "euler", 2.5, seed=0, cond=cond),
             generate(prompted(model, 2.5), 3, 3, "euler", seed=0, cond=cond)]
    torch.testing.assert_close(*drawn)


def test_guidance_counts_its_evaluations_and_alike_prompts_turn_it_off():
    model, x, cond = reader(), pictures(1), tokens("a red circle")
    assert [cost(prompted(model, w), 0.5) for w in (0.0, 1.0, 2.0)] == [1, 1, 2]
    same = prompted(model, 5.0, "a red circle")(x, 0.4, cond=cond).x1
    torch.testing.assert_close(same, model(x, 0.4, cond=cond).x1, atol=1e-4, rtol=1e-4)


def test_guidance_by_captions_needs_a_model_that_reads():
    with pytest.raises(ValueError, match="expected one that reads captions"):
        prompted(reader(LABELLED), 2.0)
    with pytest.raises(ValueError, match="expected one that reads captions"):
        attention_maps(reader(LABELLED), pictures(1, LABELLED), 0.5, tokens("a"))
    with pytest.raises(ValueError, match="'purple'"): prompted(reader(), 2.0, "purple")
    with pytest.raises(ValueError, match="w is inf"): prompted(reader(), torch.inf)


def test_dropped_captions_are_nan():
    cond = tokens(["a red circle"] * 4000)
    told = drop_conditions(None, cond, 0.1, 0, rng(0))["cond"]
    unknown = told.isnan().all(1)
    assert 0.08 < unknown.double().mean() < 0.12 and (unknown == told.isnan().any(1)).all()


def test_attention_maps_are_shares_of_words():
    model = reader()
    a = attention_maps(prompted(model, 3.0), pictures(3), 0.4, tokens(CAPTIONS))
    assert a.shape == (3, 1 + N_WORDS, 5, 5)
    torch.testing.assert_close(a.sum(1), torch.ones(3, 5, 5))
    assert not a[0, 4:].any() and (a[0, :4] > 0).all()
    assert all(not block.cross._forward_pre_hooks for block in model.net.blocks)


# ---- training ------------------------------------------------------------------------------------

@pytest.fixture
def few_scenes(monkeypatch: pytest.MonkeyPatch) -> Images:
    """A data set of 64 scenes in place of 100,000."""
    captions = draw_captions(64)
    words = tokens([str(c) for c in captions])
    data = Images(draw_scenes(captions), torch.zeros(64, dtype=torch.int64), ("scene",), words)
    monkeypatch.setitem(DATA, "scenes", lambda split: data)
    return data


def short(preset: str, **change) -> TransformerRecipe:
    few = dict(images=96, batch=32, warmup=32, log_every=32, save_every=64, stages=(64,))
    return replace(PRESETS[preset], **few | change)


def test_a_reader_trains_and_a_resumed_run_is_the_same(few_scenes, tmp_path):
    recipe = short("scenes", net=TINY, decay=0.0)
    model = train(recipe, tmp_path / "a", progress=False)
    assert (tmp_path / "a" / "samples" / "000000064.png").exists()
    train(replace(recipe, images=64), tmp_path / "b", progress=False)
    again = train(recipe, tmp_path / "b", resume=True, progress=False)
    for a, b in zip(model.parameters(), again.parameters(), strict=True): assert torch.equal(a, b)
    assert load(tmp_path / "a" / "model.safetensors").net.config == TINY


def test_a_few_steps_lower_the_loss(few_scenes):
    model = replace(PRESETS["scenes"], net=TINY, kind="velocity").build()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    x, _ = few_scenes.batch(slice(None))
    losses = []
    for k in range(30):
        loss = matching_loss(model, x, cond=few_scenes.cond, generator=rng(k))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.75 * losses[0]


def test_digits_and_images_of_ones_own_need_no_words(tmp_path):
    net = replace(PRESETS["transformer-digits"].net, width=16, depth=1, head=8)
    model = train(short("transformer-digits", net=net), tmp_path / "run", progress=False)
    assert generate(model, 2, 2, "euler", 2.0, seed=0, y=3).shape == (2, 1, 8, 8)
    for shape, patch in (((1, 28, 28), 4), ((3, 32, 32), 4), ((3, 64, 64), 8), ((1, 8, 8), 1)):
        own = PRESETS["scenes"].for_images(shape, 4, 100).net
        assert (own.shape, own.n_labels, own.vocabulary, own.n_cond, own.patch) == (shape, 4, 0, 0, patch)


def test_a_recipe_goes_on_with_a_model_of_the_same_network_only(tmp_path):
    recipe = short("scenes", net=TINY)
    save(Denoiser(shaken(DiT(TINY)), Linear(), recipe.kind), tmp_path / "m.safetensors", half=False)
    begun = replace(recipe, start=str(tmp_path / "m.safetensors")).build()
    torch.testing.assert_close(begun.net.stem.weight, shaken(DiT(TINY)).stem.weight)
    other = replace(recipe, start=str(tmp_path / "m.safetensors"), net=replace(TINY, depth=1))
    with pytest.raises(ValueError, match="expected a model of"): other.build()


def test_data_without_captions_are_refused():
    with pytest.raises(ValueError, match="net.n_cond is 10"):
        short("scenes", net=replace(TINY, shape=(1, 8, 8)), data="digits").check_data(DATA["digits"]("train"))


def test_the_scenes_of_a_seed_are_always_the_same():
    captions = draw_captions(50, 3)
    assert captions == draw_captions(50, 3) != draw_captions(50, 4)
    assert torch.equal(draw_scenes(captions, 3), draw_scenes(captions, 3))
    assert draw_scenes([]).shape == (0, 3, SIDE, SIDE)
    with pytest.raises(ValueError, match="expected one of"): transformer.scenes("all")


# ---- the truth -----------------------------------------------------------------------------------

@pytest.mark.parametrize("std", [0.0, 0.05, 0.1])
def test_the_program_is_right_about_scenes_that_were_drawn(std):
    captions = [c for part in all_captions().values() for c in part[::5]]
    x = draw_scenes(captions, 7).float() / 127.5 - 1
    x = x + std * torch.randn(x.shape, generator=rng(1))
    right = [verdict(image, c) == "right" for image, c in zip(x, captions, strict=True)]
    assert len(right) > 900 and sum(right) >= 0.995 * len(right)


def test_a_picture_of_another_caption_is_never_right():
    captions = list(all_captions()["unseen"][::9])
    others = captions[1:] + captions[:1]
    for image, other, own in zip(draw_scenes(captions), others, captions, strict=True):
        if other.composition != own.composition: assert verdict(image, other) != "right"


SCENE = "a small red circle above a large blue square"


@pytest.mark.parametrize(("caption", "found"), [
    (SCENE, "right"), ("a red circle above a blue square", "right"),
    ("a large blue square below a red circle", "right"), ("a red circle", "count"),
    ("three blue squares", "count"), ("two blue squares", "colour"),
    ("a red circle above a green square", "colour"), ("a red circle above a blue triangle", "shape"),
    ("a blue circle above a red square", "binding"), ("a large red circle above a blue square", "size"),
    ("a red circle below a blue square", "place"), ("a red circle left of a blue square", "place"),
])
def test_a_verdict_names_what_is_wrong(caption, found):
    assert {verdict(image, caption) for image in draw_scenes([SCENE] * 20, 1)} == {found}


@pytest.mark.parametrize("relation", RELATIONS)
def test_places_are_judged_by_the_larger_distance(relation):
    dx, dy = RELATIONS[relation]
    caption = parse_caption(f"a red circle {relation} a blue square")
    other = Thing("blue", "square", "small", 10, 10)
    at = lambda far, side: Thing("red", "circle", "small", 10 + far * dx + side * dy, 10 + far * dy + side * dx)
    assert judge([at(5, 3), other], caption) == "right" == judge([other, at(5, -3)], caption)
    for far, side in ((5, 6), (-5, 0), (3, -4)): assert judge([at(far, side), other], caption) == "place"


def test_blots_and_mixed_colours_are_not_taken_for_shapes():
    x = draw_scenes(["a large red square"], 2)[0]
    blot = x.clone()
    (thing,) = read_scene(x)
    row, column = int(thing.y), int(thing.x)
    blot[:, row - 5: row + 1, column - 1: column + 1] = x[:, row, column][:, None, None]
    blot[:, row, :] = x[:, row, column][:, None]
    assert verdict(blot, "a large red square") != "right"
    half = x.clone()
    red = x[:, row, column][:, None, None]
    blue = torch.tensor([48, 96, 206], dtype=torch.uint8)[:, None, None]
    half[:, :, column:] = torch.where(half[:, :, column:] == red, blue, half[:, :, column:])
    assert [t.colour for t in read_scene(half)] == ["mixed"] and verdict(half, "a large red square") == "colour"
    assert read_scene(torch.full((3, SIDE, SIDE), 230, dtype=torch.uint8)) == []


@pytest.mark.parametrize("image", [
    torch.zeros(3, 8, 8), torch.zeros(1, SIDE, SIDE), [1, 2], torch.full((3, SIDE, SIDE), torch.nan),
])
def test_what_is_no_scene_is_refused(image):
    with pytest.raises(ValueError, match="image"): read_scene(image)


@pytest.mark.parametrize("text", ["red", "a purple cat", "two red circle", "a red circles", "", "a red circle above",
                                  "a red circle above two blue squares", "a circle above a circle"])
def test_a_caption_of_another_form_is_refused(text):
    with pytest.raises(ValueError, match="expected one as"): parse_caption(text)


def test_captions_read_back_and_parts_do_not_overlap():
    parts = all_captions()
    everything = [c for captions in parts.values() for c in captions]
    assert len(set(everything)) == len(everything) and len(parts["held-out"]) >= 1000
    for c in everything[::17]: assert parse_caption(str(c)) == c == parse_caption(f"  {str(c).upper()} ")
    trained = {c.composition for c in parts["pair"]}
    unseen = {c.composition for c in parts["unseen"]}
    assert not trained & unseen and {c.composition for c in parts["held-out"]} <= trained
    for composition in unseen:  # the twin with exchanged colours is trained on
        (c, s), (d, r) = composition
        assert c != d and s != r and frozenset({(c, r), (d, s)}) in trained
    drawn = set(draw_captions(3000))
    assert not drawn & {*parts["held-out"], *parts["unseen"]}
    assert Counter(len(c.things) for c in drawn).keys() == {1, 2, 3} and all(isinstance(c, Caption) for c in drawn)


# ---- the shipped one -----------------------------------------------------------------------------

needs_scenes = pytest.mark.skipif("scenes" not in shipped(), reason="the reader isn't part of this copy")


@needs_scenes
def test_the_table_is_of_the_shipped_model_and_whole():
    table = json.loads((WEIGHTS / "scenes.json").read_text("utf-8"))
    assert not table["about"]["quick"]
    parts = {r["part"]: r for r in table["parts"]}
    assert parts["held-out"]["n"] == 1000 and parts["unseen"]["n"] == len(all_captions()["unseen"])
    for r in (*table["parts"], *table["guidance"], *table["steps"]):
        assert sum(r["verdicts"].values()) == r["n"] and abs(r["verdicts"]["right"] / r["n"] - r["right"]) < 1e-9


@needs_scenes
def test_it_draws_what_it_is_asked_for_here_too():
    table = json.loads((WEIGHTS / "scenes.json").read_text("utf-8"))
    expected = next(r["right"] for r in table["parts"] if r["part"] == "held-out")
    captions = all_captions()["held-out"][::20]
    cond = tokens([str(c) for c in captions])
    x = generate(prompted(load("scenes"), table["about"]["best"]), len(captions), 12, "dpmpp_2m", seed=5, cond=cond)
    right = sum(verdict(image, c) == "right" for image, c in zip(x, captions, strict=True)) / len(captions)
    assert right > expected - 4 * (expected * (1 - expected) / len(captions)) ** 0.5 - 0.02
