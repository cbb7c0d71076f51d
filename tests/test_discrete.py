"""Discrete diffusion: the path with masks, rates and the forward equation, exact posteriors, the bound as an equality,
samplers against known distributions, guidance, networks and their training, the text, and the shipped models' table."""
from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from helpers import rng
from torch import Tensor

from diffusion_course.checkpoints import WEIGHTS, load, save, shipped
from diffusion_course.discrete import (
    LETTERS, PRESETS, ExactTokens, GuidedTokens, TokenChain, TokenNet, TokenNetConfig, Tokens, TokenTable, as_tokens,
    binary_digits, bits, confident_step, decode, encode, fill, hidden, jump_step, likelihood, masked, masked_loss,
    pixels, reference_text, reveal_step, text_windows,
)
from diffusion_course.plots import text_image
from diffusion_course.solvers import rk4_step
from diffusion_course.training import DATA, train

TINY = TokenNetConfig(length=6, n_letters=3, width=16, depth=2, head=8)
LABELLED = TokenNetConfig(length=12, n_letters=2, width=16, depth=2, head=8, columns=4, n_labels=3)


def table(K: int = 3, L: int = 3, seed: int = 0) -> TokenTable:
    return TokenTable(torch.rand((K,) * L, generator=rng(seed), dtype=torch.float64) ** 2)


def chain(K: int = 4, L: int = 5, seed: int = 1) -> TokenChain:
    g = rng(seed)
    return TokenChain(torch.rand(K, generator=g), torch.rand(K, K, generator=g) ** 2, L)


def as_table(c: TokenChain) -> TokenTable:
    """The table of a small chain."""
    words = torch.cartesian_prod(*[torch.arange(c.n_letters)] * c.length)
    return TokenTable(c.log_prob(words).exp().reshape((c.n_letters,) * c.length))


def shaken(net: TokenNet, by: float = 0.3) -> TokenNet:
    """The network with weights that are nowhere zero."""
    g = rng(0)
    with torch.no_grad():
        for p in net.parameters(): p.add_(by * torch.randn(p.shape, generator=g))
    return net.eval().requires_grad_(False)


def last(*args, **kwargs) -> Tensor:
    *_, x = fill(*args, **kwargs)
    return x


def shares(x: Tensor, t: TokenTable) -> Tensor:
    """How often each sequence of the table is among samples."""
    place = t.n_letters ** torch.arange(t.length - 1, -1, -1)
    return torch.bincount(x @ place, minlength=t.n_letters**t.length).double() / len(x)


def distance(x: Tensor, t: TokenTable) -> float:
    return (shares(x, t) - t.p.flatten()).abs().sum().item() / 2


def floor(t: TokenTable, n: int) -> float:
    """Of the distance of exact samples: the largest of 300 draws."""
    g = rng(99)
    return max(distance(t.sample(n, g), t) for _ in range(300))


# ---- the path ------------------------------------------------------------------------------------

def test_a_fraction_t_is_revealed_and_nothing_is_changed():
    x1 = torch.randint(5, (400, 50), generator=rng(0))
    for t in (0.0, 0.3, 1.0):
        x = masked(x1, t, 5, rng(1))
        assert ((x == x1) | (x == 5)).all()
        assert abs((x == x1).double().mean().item() - t) < 4 * math.sqrt(max(t * (1 - t), 1e-12) / x.numel()) + 1e-12


def test_each_sequence_has_its_own_time():
    x1 = torch.zeros(3, 1000, dtype=torch.int64)
    found = (masked(x1, torch.tensor([0.0, 0.5, 1.0]), 2, rng(0)) == 0).double().mean(1)
    assert found[0] == 0 and 0.4 < found[1] < 0.6 and found[2] == 1


@pytest.mark.parametrize(("call", "message"), [
    (lambda: masked(torch.tensor([[0, 5]]), 0.5, 3), "expected letters 0 to 2, or 3 for the mask"),
    (lambda: masked(torch.tensor([0, 1]), 0.5, 3), "expected \\(B, L\\) tokens"),
    (lambda: masked(torch.tensor([[0.5, 1]]), 0.5, 3), "expected whole numbers"),
    (lambda: masked(torch.tensor([[0, 1]]), 1.5, 3), "expected times in \\[0, 1\\]"),
    (lambda: TokenTable(torch.ones(2, 3)), "expected L axes of K"),
    (lambda: TokenTable(-torch.ones(2, 2)), "0 or more"),
    (lambda: TokenChain(torch.ones(3), torch.ones(2, 2), 4), "expected \\(K,\\), \\(K, K\\)"),
    (lambda: TokenChain(torch.ones(2), torch.zeros(2, 2), 4), "expected probabilities"),
    (lambda: table().rate(1.0), "expected a time in \\[0, 1\\)"),
    (lambda: ExactTokens(table(), "noise"), "expected one of mask, uniform"),
    (lambda: ExactTokens(table(), "uniform")(torch.zeros(1, 3)), "expected a time"),
    (lambda: masked_loss(ExactTokens(table()), torch.zeros(1, 3), hide=torch.zeros(1, 3, dtype=torch.bool)),
     "one or more true in each row"),
    (lambda: fill(ExactTokens(table()), torch.full((2, 4), 3), 3), "expected \\(B, 3\\) tokens"),
    (lambda: fill(ExactTokens(table()), 2, 3, temperature=0.0), "expected a positive number"),
    (lambda: decode(torch.tensor([[28]])), "expected letters 0 to 26"),
    (lambda: pixels(torch.zeros(1, 10), 4), "expected a number that divides 10"),
    (lambda: TokenNetConfig(width=30), "expected a multiple of 4"),
    (lambda: TokenNetConfig(columns=7), "expected a number that divides 64"),
    (lambda: TokenNet(TINY)(torch.zeros(1, 5)), "expected \\(B, 6\\) tokens"),
    (lambda: TokenNet(TINY)(torch.zeros(1, 6), y=1), "expected None, for the network's n_labels is 0"),
    (lambda: TokenNet(LABELLED)(torch.zeros(1, 12), y=4), "expected 0 to 3"),
    (lambda: reference_text("all"), "expected one of train, test"),
    (lambda: replace(PRESETS["text"], flip=True), "tokens are no images"),
    (lambda: replace(PRESETS["text"], start="text").build(), "expected none"),
    (lambda: binary_digits().batch(slice(2), torch.tensor([True, False])), "no mirror image"),
    (lambda: text_image([]), "expected a line of one letter or more"),
    (lambda: text_image(["a"], rows=["b", "c"]), "expected 1, one for each line of text"),
])
def test_bad_input_is_told_what_is_expected(call, message):
    with pytest.raises(ValueError, match=message): call()


# ---- rates and the forward equation --------------------------------------------------------------

@pytest.mark.parametrize("t", [0.0, 0.3, 0.8])
def test_the_path_solves_the_forward_equation(t):
    found = table()
    R = found.rate(t)
    assert torch.allclose(R.sum(1), torch.zeros(len(R)).double(), atol=1e-12)
    assert (R - R.diag().diag() >= 0).all() and (found.path(t) - 1e-12 <= 1).all()
    h = 1e-5
    slope = (found.path(t + h) - found.path(max(0.0, t - h))) / (h + min(t, h))
    torch.testing.assert_close(found.path(t) @ R, slope, atol=2e-4 if t == 0 else 1e-8, rtol=0)


def test_the_forward_equation_ends_at_the_data():
    t = table(2, 2)
    p, n = t.path(0.0), 50
    for k in range(n):  # of order 4; at 1 the rate diverges
        p = rk4_step(lambda p, s: p @ t.rate(float(s)), p, 0.9 * k / n, 0.9 * (k + 1) / n)
    torch.testing.assert_close(p, t.path(0.9), atol=1e-5, rtol=0)
    assert torch.allclose(t.path(1.0)[(t.states < 2).all(1)], t.p.flatten())


def test_impossible_words_get_no_rate():
    p = torch.zeros(2, 2)
    p[0, 1] = 1
    R, states = TokenTable(p).rate(0.5), TokenTable(p).states.tolist()
    assert R[states.index([2, 2]), states.index([0, 2])] == 2 and R[states.index([2, 2]), states.index([1, 2])] == 0
    assert R.isfinite().all()


# ---- exact posteriors ----------------------------------------------------------------------------

def by_hand(t: TokenTable, x: list[int], seen) -> Tensor:
    """The posterior as a loop over all sequences."""
    found = torch.zeros(t.length, t.n_letters, dtype=torch.float64)
    for word in product(range(t.n_letters), repeat=t.length):
        weight = t.p[word] * math.prod(seen(a, b) for a, b in zip(word, x, strict=True))
        for i, a in enumerate(word): found[i, a] += weight
    return found / found.sum(1, keepdim=True)


def test_the_posterior_of_a_table_is_bayes_rule():
    t = table()
    for x in ([3, 3, 3], [1, 3, 0], [3, 2, 3], [0, 1, 2]):
        torch.testing.assert_close(t.posterior(torch.tensor([x]))[0], by_hand(t, x, lambda a, b: float(b in (a, 3))))
    for x in ([0, 1, 2], [2, 2, 1]):
        uniform = by_hand(t, x, lambda a, b: 0.3 * (a == b) + 0.7 / 3)
        torch.testing.assert_close(t.posterior(torch.tensor([x]), 0.3)[0], uniform)


def test_forward_backward_is_the_sum_over_all_sequences():
    c = chain()
    t = as_table(c)
    torch.testing.assert_close(c.posterior(t.states), t.posterior(t.states))
    torch.testing.assert_close(c.posterior(t.words, 0.4), t.posterior(t.words, 0.4))
    assert c.entropy() == pytest.approx(t.entropy())
    pairs = sum(t.p.sum([k for k in range(5) if k not in (i, i + 1)]) for i in range(4)) / 4
    torch.testing.assert_close(c.pairs(), pairs)


def test_under_masks_the_posterior_knows_no_time():
    t = table()
    x = torch.tensor([[3, 1, 3]])
    for s in (0.1, 0.5, 0.9):
        kept = likelihood(x, 3) * torch.tensor([1 - s, s, 1 - s])[:, None]
        weights = t.p.flatten() * kept[:, torch.arange(3), t.words].prod(-1)
        found = torch.stack([weights[:, t.words[:, 0] == a].sum() for a in range(3)]) / weights.sum()
        torch.testing.assert_close(found, t.posterior(x)[0, 0])


def test_samples_of_chain_and_table_have_their_frequencies():
    c = chain(3, 3)
    t = as_table(c)
    for x in (c.sample(4000, rng(2)), t.sample(4000, rng(3))): assert distance(x, t) <= floor(t, 4000)
    counted = TokenChain.counted(c.sample(20_000, rng(4)), 3)
    assert (counted.step - c.step).abs().max() < 0.02 and counted.length == 3


def test_a_long_chain_stays_finite():
    long = chain(4, 400)
    x = masked(long.sample(2, rng(5)), 0.3, 4, rng(6))
    p = long.posterior(x)
    assert p.isfinite().all() and torch.allclose(p.sum(-1), torch.ones(2, 400).double())
    assert long.posterior(long.sample(1, rng(7)), 0.5).isfinite().all()


# ---- the bound -----------------------------------------------------------------------------------

def test_numbers_of_masks_are_uniform_and_places_too():
    hide = hidden(6000, 6, rng(0))
    counts = torch.bincount(hide.sum(1), minlength=7)
    assert counts[0] == 0 and (counts[1:] == 1000).all()
    assert (hide.double().mean(0) - 3.5 / 6).abs().max() < 0.03


def test_with_the_exact_posterior_the_bound_is_an_equality():
    t = table()
    exact, words = ExactTokens(t), t.words
    total = torch.zeros(len(words), dtype=torch.float64)
    for m in (1, 2, 3):  # all sets of masks
        sets = [h for h in product((False, True), repeat=3) if sum(h) == m]
        for h in sets: total += masked_loss(exact, words, hide=torch.tensor([h] * len(words))) / len(sets) / 3
    torch.testing.assert_close(3 * total, -t.log_prob(words))


def test_a_wrong_posterior_costs_bits():
    t, other = table(), ExactTokens(table(seed=5))
    x = t.sample(3000, rng(0))
    own, foreign = (bits(m, x, 8, generator=rng(1)).mean() for m in (ExactTokens(t), other))
    assert own == pytest.approx(t.entropy() / 3 / math.log(2), abs=0.03)
    divergence = (t.p * (t.p / table(seed=5).p).log()).sum() / 3 / math.log(2)
    assert foreign - own == pytest.approx(divergence.item(), abs=0.03)


def test_the_weighted_integral_over_time_is_the_mean_over_numbers_of_masks():
    t = table()
    x1 = t.words[4:5].expand(40_000, -1)
    times = (torch.arange(40_000).double() + 0.5) / 40_000
    x = masked(x1, times, 3, rng(2))
    nll = -ExactTokens(t)(x).gather(2, x1[..., None])[..., 0].masked_fill(x != 3, 0).sum(1)
    by_time = (nll / (1 - times)).mean().item()
    assert by_time == pytest.approx(-t.log_prob(x1[:1]).item(), rel=0.05)


def test_bits_gives_each_text_its_own():
    t = table()
    found = bits(ExactTokens(t), t.words, 3000, generator=rng(3))
    expected = -t.log_prob(t.words) / 3 / math.log(2)
    assert (found - expected).abs().max() < 0.15 and torch.corrcoef(torch.stack([found, expected]))[0, 1] > 0.99


# ---- samplers ------------------------------------------------------------------------------------

@pytest.mark.parametrize("step", [reveal_step, jump_step], ids=["reveal", "jump"])
def test_many_steps_sample_the_table(step):
    t = table()
    n = 3 if step is reveal_step else 200
    assert distance(last(ExactTokens(t), 4000, n, step, generator=rng(0)), t) <= floor(t, 4000)


@pytest.mark.parametrize("step", [reveal_step, jump_step, confident_step])
def test_one_step_has_the_right_letters_and_the_wrong_pairs(step):
    t = table()
    x = last(ExactTokens(t), 4000, 1, step, generator=rng(1))
    singles = torch.stack([torch.bincount(x[:, i], minlength=3) for i in range(3)]).double() / 4000
    exact = torch.stack([t.p.sum([k for k in range(3) if k != i]) for i in range(3)])
    assert (singles - exact).abs().max() < 0.035
    independent = exact[0][:, None, None] * exact[1][:, None] * exact[2]
    assert distance(x, TokenTable(independent)) <= floor(TokenTable(independent), 4000) < distance(x, t)


def test_the_error_of_many_at_once_falls_with_the_steps():
    c = chain(5, 16)

    def pairs(x):
        found = torch.bincount(x[:, :-1].flatten() * 5 + x[:, 1:].flatten(), minlength=25).double()
        return ((found / found.sum()).reshape(5, 5) - c.pairs()).abs().sum().item() / 2

    errors = [pairs(last(ExactTokens(c), 3000, n, generator=rng(n))) for n in (1, 2, 4, 8, 16)]
    assert all(a > b for a, b in zip(errors[:-1], errors[1:], strict=True)), errors
    g = rng(50)
    assert errors[-1] <= max(pairs(c.sample(3000, g)) for _ in range(300))


def test_confident_steps_write_what_is_more_probable():
    c = chain(4, 12)
    data, one, sure = (-c.log_prob(x).mean() for x in (
        c.sample(4000, rng(0)), last(ExactTokens(c), 4000, 12, generator=rng(1)),
        last(ExactTokens(c), 4000, 12, confident_step, generator=rng(2))))
    assert abs(data - one) < 0.2 and sure < data - 0.5


def test_so_many_become_letters_in_each_step():
    path = list(fill(ExactTokens(chain(4, 12)), 50, 6, generator=rng(3)))
    assert [int((x == 4).sum(1).unique()) for x in path] == [12, 10, 8, 6, 4, 2, 0]
    for old, new in zip(path[:-1], path[1:], strict=True): assert ((old == new) | (old == 4)).all()  # letters stay
    sure = list(fill(ExactTokens(chain(4, 12)), 50, 6, confident_step, generator=rng(3)))
    assert [int((x == 4).sum(1).unique()) for x in sure] == [12, 10, 8, 6, 4, 2, 0]


def test_what_is_given_stays_and_the_rest_is_conditional():
    t = table()
    x = torch.tensor([[3, 1, 3]]).expand(4000, -1)
    found = last(ExactTokens(t), x, 2, generator=rng(4))
    assert (found[:, 1] == 1).all()
    conditional = TokenTable(t.p * torch.tensor([0.0, 1.0, 0.0])[:, None])
    assert distance(found, conditional) <= floor(conditional, 4000)


def test_letters_replaced_at_random_are_sampled_by_the_same_step():
    t = table(3, 2)
    start = torch.randint(3, (4000, 2), generator=rng(5))
    x = last(ExactTokens(t, "uniform"), start, 200, jump_step, generator=rng(6))
    assert distance(x, t) <= floor(t, 4000)


def test_temperature_one_changes_nothing_and_a_low_one_takes_the_most_probable():
    t = table(3, 2)
    a, b = (last(ExactTokens(t), 500, 2, temperature=s, generator=rng(7)) for s in (1.0, 1.0))
    assert torch.equal(a, b)
    cold = last(ExactTokens(t), torch.tensor([[3, 0]] * 20), 1, temperature=1e-3, generator=rng(8))
    assert (cold[:, 0] == t.p[:, 0].argmax()).all()


def test_bad_input_is_refused_before_the_first_iterate():
    with pytest.raises(ValueError, match="ts does not rise"):
        fill(ExactTokens(table()), 2, [0.0, 0.5, 0.5])


# ---- guidance ------------------------------------------------------------------------------------

class Labelled:
    """Exact, of two tables."""

    n_letters = length = 3

    def __call__(self, x, t=None, y=None):
        p = table(seed=10).p + table(seed=11).p if y is None else table(seed=11).p
        return ExactTokens(TokenTable(p))(x)


def test_guidance_is_a_line_through_logarithms():
    m, x = Labelled(), torch.tensor([[3, 1, 3], [3, 3, 3]])
    assert torch.equal(GuidedTokens(m, 0)(x, y=1), m(x)) and torch.equal(GuidedTokens(m, 1)(x, y=1), m(x, y=1))
    found = GuidedTokens(m, 2.5)(x, y=1)
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(2, 3).double())
    ratio = (found - (-1.5 * m(x) + 2.5 * m(x, y=1)))[1]
    torch.testing.assert_close(ratio, ratio[:, :1].expand(-1, 3))
    assert found[0, 1].exp().tolist() == pytest.approx([0, 1, 0])  # a letter that is there stays, whatever w


# ---- networks and their training -----------------------------------------------------------------

@pytest.mark.parametrize("config", [TINY, LABELLED], ids=["text", "pixels"])
def test_a_network_begins_without_an_opinion_and_every_weight_learns(config):
    net = TokenNet(config)
    x1 = torch.randint(config.n_letters, (8, config.length), generator=rng(0))
    assert torch.allclose(net(x1), torch.tensor(-math.log(config.n_letters)))
    net = shaken(net).requires_grad_(True)
    y = torch.arange(8) % 4 if config.n_labels else None
    loss = masked_loss(net, x1, y=y, generator=rng(1)).mean()
    loss.backward()
    unused = {name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()}
    assert not unused and loss.dtype == torch.float32


def test_a_network_predicts_letters_alone_and_no_time():
    net = shaken(TokenNet(TINY))
    x = torch.randint(4, (5, 6), generator=rng(2))
    assert net(x).shape == (5, 6, 3) and torch.allclose(net(x).exp().sum(-1), torch.ones(5, 6))
    assert torch.equal(net(x, 0.1), net(x, 0.9))


def test_the_letter_under_a_mask_makes_no_difference():
    net = shaken(TokenNet(TINY))
    hide = hidden(4, 6, rng(3))
    a, b = (torch.randint(3, (4, 6), generator=rng(s)) for s in (4, 5))
    b = torch.where(hide, b, a)
    assert torch.equal(net(a.masked_fill(hide, 3)), net(b.masked_fill(hide, 3)))


def test_labels_reach_the_network_and_the_null_label_is_none():
    net = shaken(TokenNet(LABELLED))
    x = torch.full((2, 12), 2)
    assert not torch.allclose(net(x, y=0), net(x, y=1)) and torch.equal(net(x), net(x, y=3))


def test_a_network_learns_a_chain_down_to_its_entropy():
    c = chain(3, 6)
    net, g = TokenNet(TINY), rng(6)
    adam = torch.optim.Adam(net.parameters(), 5e-3)
    for _ in range(400):
        loss = masked_loss(net, c.sample(128, g), generator=g).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    x1, hide = c.sample(4000, g), hidden(4000, 6, g)
    excess = masked_loss(net, x1, hide=hide).mean() - masked_loss(ExactTokens(c), x1, hide=hide).mean()
    assert 0 < excess < 0.03


def test_a_run_resumes_and_a_model_is_read_again(tmp_path):
    recipe = replace(PRESETS["binary-digits"], images=192, batch=32, warmup=0, decay=0.0, save_every=64, stages=(96,),
                     net=replace(PRESETS["binary-digits"].net, width=16, depth=1, head=8))
    net = train(recipe, tmp_path / "a", progress=False, device="cpu")
    assert (tmp_path / "a" / "samples" / "000000096.png").exists()
    train(replace(recipe, images=96), tmp_path / "b", progress=False, device="cpu")
    again = train(recipe, tmp_path / "b", resume=True, progress=False, device="cpu")
    x = masked(binary_digits("test").x[:4], 0.5, 2, rng(0))
    torch.testing.assert_close(net(x, y=3), again(x, y=3))
    save(net, tmp_path / "net.safetensors")
    torch.testing.assert_close(load(tmp_path / "net.safetensors")(x, y=3), net(x, y=3), atol=1e-2, rtol=0)


@pytest.mark.parametrize(("change", "message"), [
    (dict(data="digits"), "expected python-reference or binary-digits"),
    (dict(data="python-reference", net=TokenNetConfig(length=32)), "expected net.length"),
    (dict(net=replace(PRESETS["binary-digits"].net, n_labels=4)), "expected 10, or 0 for none"),
])
def test_data_that_do_not_fit_are_refused(change, message):
    recipe = replace(PRESETS["binary-digits"], **change)
    with pytest.raises(ValueError, match=message): recipe.check_data(recipe.pictures())


# ---- data ----------------------------------------------------------------------------------------

def test_letters_and_numbers():
    assert decode(encode("The  q-Quick, 2 fox\n")[None]) == ["the q quick fox"]
    assert encode("a z").tolist() == [1, 0, 26] and decode(torch.tensor([[27, 1]]), mask="?") == ["?a"]
    assert "".join(LETTERS[k] for k in range(27)) == LETTERS


def test_the_text_is_prose_in_two_parts_that_share_no_paragraph():
    train_text, test_text = reference_text(), reference_text("test")
    assert set(train_text) | set(test_text) == set(LETTERS)
    assert len(train_text) > 150_000 and 0.05 < len(test_text) / len(train_text) < 0.25
    words = [text.split() for text in (train_text, test_text)]
    long = [{" ".join(w[k: k + 12]) for k in range(len(w) - 12)} for w in words]
    assert len(long[0] & long[1]) < 0.1 * len(long[1])  # formulas that paragraphs share
    windows = text_windows("test", 10)
    assert decode(windows.x[5:6])[0] == test_text[5:15] and len(windows) == len(test_text) - 9


def test_digits_have_two_shades():
    data = binary_digits()
    assert len(data) == 1500 and set(data.x.unique().tolist()) == {0, 1} and data.x.shape == (1500, 64)
    x, y = data.batch(slice(3))
    assert x.dtype == torch.int64 and y.tolist() == data.y[:3].tolist()
    shown = pixels(torch.tensor([[0, 1, 2, 0]]), 2)
    assert shown.flatten().tolist() == [-1, 1, 0, -1] and shown.shape == (1, 1, 2, 2)
    assert isinstance(DATA["binary-digits"]("test"), Tokens)
    assert as_tokens("x", [[0, 1]], 2).dtype == torch.int64


def test_text_is_drawn_with_boxes_for_masks():
    image = text_image(["ab_", "c"], before=["a__", "c"], rows=["first", "second"])
    colors = {c for _, c in image.getcolors(10_000)}
    assert len(colors) > 10 and image.height == 2 * round(19.5) + 8
    assert text_image(["abc"]).width < text_image(["abcdef"]).width


# ---- the shipped models --------------------------------------------------------------------------

needs_models = pytest.mark.skipif(not {"text", "binary-digits"} <= set(shipped()), reason="not part of this copy")


@needs_models
def test_the_shipped_models_are_what_the_table_says():
    rows = json.loads((WEIGHTS / "discrete.json").read_text(encoding="utf-8"))
    text = load("text")
    windows = text_windows("test").x
    x1 = windows[torch.linspace(0, len(windows) - 1, 100).long()].long()
    found = bits(text, x1, 8, generator=rng(0))
    said = next(r for r in rows["text"] if r["part"] == "held out")["bits"]
    assert abs(found.mean() - said["mean"]) < 4 * (said["error"] + found.std() / 10)
    assert said["mean"] < next(r for r in rows["counted"] if r["order"] == 2)["bits"]["mean"]
    net, test = load("binary-digits"), binary_digits("test")
    found = bits(net, test.x.long(), 4, y=test.y, generator=rng(1))
    said = next(r for r in rows["digits"] if r["seed"] == 0)["told"]
    assert abs(found.mean() - said["mean"]) < 4 * (said["error"] + found.std() / len(test) ** 0.5)


@needs_models
def test_the_table_is_whole_and_says_what_it_is():
    rows = json.loads((WEIGHTS / "discrete.json").read_text(encoding="utf-8"))
    assert not rows["about"]["quick"] and len(rows["digits"]) == 3 and len(rows["counted"]) == 7
    assert {r["seed"] for r in rows["chain"]} == {0, 1, 2} and all(r["excess"]["mean"] > 0 for r in rows["chain"])
    assert all((WEIGHTS / f"{name}.safetensors").stat().st_size < 2e6 for name in ("text", "binary-digits"))
