"""A vector as a condition beside the label: networks, forgetting, guidance, training, folders."""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from diffusion_course import expect, folders
from diffusion_course.checkpoints import load, save
from diffusion_course.cold import Restorer
from diffusion_course.edm import ScaledInput
from diffusion_course.evaluation import EvaluateConfig, scores_of
from diffusion_course.folders import read_attributes, read_folder
from diffusion_course.generation import generate, previews
from diffusion_course.guidance import classifier_free
from diffusion_course.images import Images, image_folder
from diffusion_course.latent import LatentRecipe
from diffusion_course.matching import MLP, ConditionEmbedding, drop_conditions, fit
from diffusion_course.predictions import Denoiser, ModelWrapper, n_cond
from diffusion_course.schedules import Linear
from diffusion_course.training import PRESETS, DenoiserRecipe, started, train
from diffusion_course.unet import UNet, UNetConfig

NAN = math.nan
SMALL = UNetConfig((1, 8, 8), (16,), attention=(), head=16, patch=1, n_labels=3, n_cond=2)


def shaken(net: nn.Module) -> Any:
    """The network with weights other than those it begins with, which are zero at the end."""
    g = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in net.parameters(): p += 0.1 * torch.randn(p.shape, generator=g)
    return net.eval()


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


NETS: dict[str, Callable[[], Any]] = {
    "MLP": lambda: shaken(MLP(2, 16, 2, n_labels=3, n_cond=2)),
    "UNet": lambda: shaken(UNet(SMALL)),
    "Restorer": lambda: shaken(Restorer(SMALL)),
    "ScaledInput": lambda: ScaledInput(shaken(UNet(SMALL)), Linear()),
}


@pytest.fixture(params=NETS)
def net(request: pytest.FixtureRequest) -> Any:
    """Each kind of network, with two numbers beside three labels."""
    return NETS[request.param]()


# ---- what networks make of it --------------------------------------------------------------------

def test_one_vector_for_all_is_one_for_each(net: Any) -> None:
    x, t, y = draw(4, *net.shape), torch.full((4,), 0.3), torch.tensor([0, 1, 2, 3])
    with torch.no_grad():
        each = net(x, t, y=y, cond=torch.tensor([[0.5, -1.0]]).expand(4, 2))
        assert torch.equal(net(x, t, y=y, cond=torch.tensor([0.5, -1.0])), each)
        assert torch.equal(net(x, t, y=y, cond=[0.5, -1.0]), each)
        assert torch.equal(net(x, t, y=y, cond=torch.tensor([[0.5, -1.0]], dtype=torch.float64).expand(4, 2)), each)
        none = net(x, t, y=y)
        assert torch.equal(net(x, t, y=y, cond=torch.tensor([NAN, NAN])), none)
        half = net(x, t, y=y, cond=torch.tensor([0.5, NAN]))
        zero = net(x, t, y=y, cond=torch.zeros(2))
    outputs = [each, none, half, zero]
    for i, a in enumerate(outputs):
        for b in outputs[i + 1:]: assert (a - b).abs().amax() > 1e-4, "unknown is not zero, nor are parts the whole"


def test_rows_do_not_mix(net: Any) -> None:
    x, t, cond = draw(3, *net.shape), torch.tensor([0.2, 0.5, 0.9]), draw(3, 2, seed=1)
    cond[1, 0] = NAN
    with torch.no_grad():
        together = net(x, t, y=torch.tensor([0, 1, 2]), cond=cond)
        alone = torch.cat([net(x[i:i + 1], t[i:i + 1], y=i, cond=cond[i]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cond, message", [
    (torch.zeros(3), r"cond has shape \(3,\): expected \(2,\) for all, or \(4, 2\)"),
    (torch.zeros(3, 2), r"cond has shape \(3, 2\): expected \(2,\) for all, or \(4, 2\)"),
    (torch.zeros(4, 3), r"cond has shape \(4, 3\): expected"),
    (torch.tensor([1.0, math.inf]), "cond holds infinite numbers: expected finite ones, or NaN for unknown"),
    ("a lot", "cond is 'a lot': expected numbers"),
])
def test_other_conditions_are_refused(cond: Any, message: str, net: Any) -> None:
    x, t = draw(4, *net.shape), torch.full((4,), 0.5)
    with pytest.raises(ValueError, match=message): net(x, t, y=0, cond=cond)


@pytest.mark.parametrize("make", [
    lambda: MLP(n_labels=3), lambda: UNet(replace(SMALL, n_cond=0)), lambda: Restorer(replace(SMALL, n_cond=0)),
])
def test_networks_without_it_say_so(make: Callable[[], Any]) -> None:
    net = make()
    with pytest.raises(ValueError, match=r"cond is \[1.0\]: expected None, for the network's n_cond is 0"):
        net(draw(2, *net.shape), torch.zeros(2), 0, cond=torch.ones(1))
    with pytest.raises(ValueError, match="cond is .*: expected None, for the model's network has no n_cond"):
        generate(Denoiser(net, Linear()), 2, 2, y=0, cond=torch.ones(1))


def test_tensors_of_other_shapes_are_flattened_and_one_number_is_enough() -> None:
    x = draw(3, 2)
    maps = draw(3, 2, 4, seed=1)
    assert torch.equal(expect.as_cond(maps, 8, x), maps.flatten(1))
    assert torch.equal(expect.as_cond(maps[0], 8, x), maps[0].flatten().expand(3, 8))
    three = torch.tensor([1.0, 2.0, 3.0])
    assert torch.equal(expect.as_cond(three, 1, x)[:, 0], three)
    assert torch.equal(expect.as_cond(2, 1, x), torch.full((3, 1), 2.0))
    square = torch.tensor([1.0, 2.0])
    assert torch.equal(expect.as_cond(square, 2, draw(2, 2)), square.expand(2, 2)), "B = k: one vector for all"


def test_the_embedding_is_its_formula() -> None:
    embed = ConditionEmbedding(2, 5)
    W1, b1, W2, b2 = embed.layers.parameters()
    cond = torch.tensor([[0.3, NAN], [NAN, NAN], [0.0, -2.0]])
    inputs = torch.tensor([[0.3, 0, 1, 0], [0, 0, 0, 0], [0, -2, 1, 1.0]])
    expected = nn.functional.silu(inputs @ W1.T + b1) @ W2.T + b2
    torch.testing.assert_close(embed(cond, draw(3, 2)), expected)
    assert embed.half()(cond, draw(3, 2)).dtype == torch.float16


def test_without_it_nothing_has_changed() -> None:
    plain = UNet(replace(SMALL, n_cond=0))
    for a, b in ((MLP(n_labels=3), MLP(n_labels=3, n_cond=2)), (plain, UNet(SMALL))):
        assert not any("cond" in name for name in a.state_dict())
        for name, value in a.state_dict().items():
            assert torch.equal(value, b.state_dict()[name]), name


# ---- forgetting ----------------------------------------------------------------------------------

@pytest.mark.parametrize("drop, joint", [(0.1, 0.05), (0.5, 0.25), (1.0, 1.0), (0.0, 0.0), (0.8, 0.6)])
def test_half_is_forgotten_together(drop: float, joint: float) -> None:
    g = torch.Generator().manual_seed(0)
    told = drop_conditions(torch.zeros(40_000).long(), torch.zeros(40_000, 2), drop, 5, g)
    no_label, no_numbers = told["y"] == 5, told["cond"].isnan()
    assert torch.equal(no_numbers[:, 0], no_numbers[:, 1])
    for lost, share in ((no_label, drop), (no_numbers[:, 0], drop), (no_label & no_numbers[:, 0], joint)):
        assert abs(lost.double().mean() - share) < 0.01


def test_one_condition_alone_is_forgotten_as_before() -> None:
    y, cond = torch.arange(50) % 3, draw(50, 2, 3)
    u = torch.rand(50, generator=torch.Generator().manual_seed(3)) < 0.3
    seeded = lambda: torch.Generator().manual_seed(3)
    assert torch.equal(drop_conditions(y, None, 0.3, 3, seeded())["y"], y.masked_fill(u, 3))
    told = drop_conditions(None, cond, 0.3, 3, seeded())
    assert told.keys() == {"cond"} and torch.equal(told["cond"].isnan().all((1, 2)), u)
    assert drop_conditions(None, None, 0.3, 3, seeded()) == {}


# ---- guidance ------------------------------------------------------------------------------------

@pytest.mark.parametrize("keep, less", [
    ("", dict(y=3, cond=torch.tensor([NAN, NAN]))), ("cond", dict(y=3)), ("y", dict(cond=torch.tensor([NAN, NAN]))),
])
def test_guidance_is_the_line_through_two_predictions(net: Any, keep: str, less: dict) -> None:
    model, x, told = Denoiser(net, Linear()), draw(2, *net.shape), dict(y=1, cond=torch.tensor([0.5, -1.0]))
    with torch.no_grad():
        guided = classifier_free(model, 2.5, keep=keep)(x, 0.4, **told)
        without, with_ = model(x, 0.4, **(told | less)), model(x, 0.4, **told)
        for name in ("x1", "eps"):
            expected = -1.5 * getattr(without, name) + 2.5 * getattr(with_, name)
            torch.testing.assert_close(getattr(guided, name), expected, rtol=1e-4, atol=1e-4)
        off = classifier_free(model, 0, keep=keep)(x, 0.4, **told)
        torch.testing.assert_close(off.x1, without.x1, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(classifier_free(model, 1)(x, 0.4, **told).x1, with_.x1, rtol=1e-4, atol=1e-4)


def test_guidance_by_numbers_alone() -> None:
    labelled = Denoiser(NETS["MLP"](), Linear())
    plain = Denoiser(shaken(MLP(2, 16, 2, n_cond=1)), Linear())
    x = draw(5, 2)
    with torch.no_grad():
        for model, cond in ((labelled, torch.tensor([0.5, 1.0])), (plain, torch.linspace(-1, 1, 5))):
            guided = classifier_free(model, 2.0)(x, 0.4, cond=cond).velocity
            expected = 2 * model(x, 0.4, cond=cond).velocity - model(x, 0.4).velocity
            torch.testing.assert_close(guided, expected, rtol=1e-4, atol=1e-4)
            with pytest.raises(ValueError, match="guidance w = 2 without a label: expected y or cond, a label"):
                classifier_free(model, 2.0)(x, 0.4)
    with pytest.raises(ValueError, match="keep is 'label': expected 'y', 'cond' or ''"):
        classifier_free(plain, 2.0, keep="label")


def test_wrappers_hand_it_on_and_say_how_many_numbers() -> None:
    model = Denoiser(NETS["MLP"](), Linear())
    assert n_cond(ModelWrapper(classifier_free(model, 2.0))) == 2 and n_cond(lambda x, t: x) == 0
    x, cond = draw(3, 2), draw(3, 2, seed=1)
    outer = ModelWrapper(classifier_free(ModelWrapper(model), 2.0))
    with torch.no_grad():
        inner = classifier_free(model, 2.0)(x, 0.4, y=1, cond=cond)
        assert torch.equal(outer(x, 0.4, y=1, cond=cond).x1, inner.x1)


# ---- sampling ------------------------------------------------------------------------------------

@pytest.mark.parametrize("guidance", [0.0, 1.0, 2.0])
def test_parts_of_a_batch_are_told_their_own(guidance: float) -> None:
    model = Denoiser(NETS["UNet"](), Linear())
    how = dict(n=4, steps=3, seed=0, guidance=guidance, y=torch.tensor([0, 1, 2, 0]), precision="fp32")
    for cond in (draw(4, 2), torch.tensor([1.0, -1.0])):
        whole = generate(model, **how, cond=cond)
        torch.testing.assert_close(generate(model, **how, cond=cond, batch=3), whole, rtol=1e-4, atol=1e-4)
        *_, last = previews(model, **how, cond=cond)
        assert torch.equal(last.x, whole)
    two = Denoiser(NETS["MLP"](), Linear())  # as many samples as numbers
    vector = torch.tensor([1.0, -1.0])
    a, b = (generate(two, 2, 3, seed=0, y=0, cond=c, batch=1) for c in (vector, vector.expand(2, 2)))
    assert torch.equal(a, b)


def test_generate_names_what_is_missing() -> None:
    model = Denoiser(NETS["MLP"](), Linear())
    with pytest.raises(ValueError, match="guidance is 2 without a label: expected y or cond"):
        generate(model, 2, guidance=2)
    with pytest.raises(ValueError, match=r"cond has shape \(3,\): expected \(2,\) for all, or \(5, 2\)"):
        generate(model, 5, cond=torch.zeros(3))


# ---- training ------------------------------------------------------------------------------------

def test_points_learn_to_follow_it() -> None:
    """Label y sets the height, the number the place along it; what is not told is spread."""
    g = torch.Generator().manual_seed(0)
    a, y = torch.rand(3000, 1, generator=g) * 2 - 1, torch.randint(0, 2, (3000,), generator=g)
    x = torch.cat([1.5 * a, (2.0 * y - 1)[:, None]], 1) + 0.15 * torch.randn(3000, 2, generator=g)
    net = Denoiser(MLP(2, 48, 2, n_labels=2, n_cond=1), Linear())
    model = fit(net, x, 500, labels=y, cond=a, drop=0.4, batch_size=256, progress=False).model
    mean = lambda **told: generate(model, 200, 10, seed=0, **told)
    both = mean(y=0, cond=[0.8])
    assert abs(both[:, 0].mean() - 1.2) < 0.2 and abs(both[:, 1].mean() + 1) < 0.2
    assert both.std(0).max() < 0.4
    assert mean(y=1)[:, 0].std() > 0.6, "the number was not told"
    assert mean(cond=[-0.8])[:, 1].std() > 0.7 and abs(mean(cond=[-0.8])[:, 0].mean() + 1.2) < 0.25


@pytest.mark.parametrize("how, message", [
    (dict(cond=torch.zeros(8, 3)), r"cond has shape \(8, 3\): expected \(2,\) for all, or \(8, 2\)"),
    (dict(cond=torch.zeros(7, 2)), r"cond has shape \(7, 2\): expected"),
    (dict(), r"cond is None: expected \(8, 2\) numbers, for the network takes them"),
    (dict(cond=torch.full((8, 2), 1300.0)), "cond holds 1300: expected numbers of about unit size"),
])
def test_fit_refuses_what_does_not_fit(how: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(Denoiser(MLP(2, 8, 1, n_cond=2), Linear()), draw(8, 2), 1, progress=False, **how)
    with pytest.raises(ValueError, match="cond is given, and the network's n_cond is 0"):
        fit(Denoiser(MLP(2, 8, 1), Linear()), draw(8, 2), 1, progress=False, cond=torch.zeros(8, 1))


def letters(folder: Path, n: int = 12, gap: bool = True) -> Path:
    """Two labels, a table of two numbers, one of them missing."""
    lines = ["slant,file,weight"]
    for k, label in enumerate(("c", "ä b")):
        (folder / label).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            Image.new("L", (12, 12), 20 * i + 5 * k).save(folder / label / f"{i}.png")
            lines.append(f"{i / 10},{label}/{i}.png,{'' if gap and i == 3 else -k}")
    (folder / "attributes.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's cache, in a place of the test's own."""
    monkeypatch.setattr(folders.pooch, "os_cache", lambda name: tmp_path / "cache" / name)


def test_a_folder_s_table_goes_with_its_images(tmp_path: Path) -> None:
    folder = letters(tmp_path / "mine")
    for found in (read_folder(folder, 8), read_folder(folder, 8)):  # the second from the cache
        assert found.attributes == ("slant", "weight") and found.cond.shape == (24, 2)
        assert found.about().endswith("described by slant, weight") and not found.notes
        for x, y, (slant, weight) in zip(found.x, found.y, found.cond, strict=True):
            i = round(float(slant) * 10)
            assert abs(int(x[0, 0, 0]) - 20 * i - 5 * int(y)) <= 1, "each row is its image's"
            assert weight.isnan() if i == 3 else weight == -y
    train_part, test_part = (image_folder(folder, split, 8) for split in ("train", "test"))
    filled = lambda *parts: torch.cat([part.cond for part in parts]).nan_to_num(9)
    assert torch.equal(filled(train_part, test_part), filled(found))
    assert torch.equal(filled(train_part.to("cpu")), filled(train_part))
    table = folder / "attributes.csv"
    table.write_text(table.read_text(encoding="utf-8").replace("0.7", "-0.7"), encoding="utf-8")
    assert (read_folder(folder, 8).cond == -0.7).any(), "a changed table is read again"


@pytest.mark.parametrize("text, message", [
    ("name,slant\nc/0.png,1\n", "has columns name, slant: expected file, and one or more of numbers"),
    ("file\nc/0.png\n", "has columns file: expected file, and one or more of numbers"),
    ("file,slant\nc/0.png,steep\n", "line 2: could not convert string to float: 'steep'; expected 1 numbers"),
    ("file,slant\nc/0.png,1\n", "says nothing of c/1.png, c/10.png, c/11.png and 20 more: expected a row"),
])
def test_tables_that_do_not_fit_are_refused(text: str, message: str, tmp_path: Path) -> None:
    folder = letters(tmp_path / "mine")
    (folder / "attributes.csv").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message): read_folder(folder, 8)
    assert read_attributes(tmp_path) == ((), {})


@pytest.mark.parametrize("cond, message", [
    (torch.zeros(3, 2), r"cond is torch.float32 of shape \(3, 2\): expected numbers \(4, k\)"),
    (torch.full((4, 1), 500.0), "cond holds 500: expected numbers of about unit size"),
    (torch.full((4, 1), math.inf), "cond holds inf: expected numbers of about unit size"),
])
def test_images_check_theirs(cond: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Images(torch.zeros(4, 1, 8, 8).byte(), torch.zeros(4), ("a",), cond)


def test_training_scoring_and_files(tmp_path: Path) -> None:
    folder = letters(tmp_path / "mine")
    recipe = replace(
        PRESETS["images"], data=str(folder), images=64, batch=16, precision="fp32", channels_last=False,
        net=replace(SMALL, n_labels=2), log_every=64,
    )
    model = train(recipe, tmp_path / "run", progress=False, device="cpu")
    again = load(tmp_path / "run" / "model.safetensors")
    assert again.net.config == recipe.net and again.net.n_cond == 2
    save(model, tmp_path / "m.safetensors", half=False)
    how = dict(n=2, steps=2, seed=0, y=1, cond=[0.3, NAN], precision="fp32")
    assert torch.equal(generate(load(tmp_path / "m.safetensors"), **how), generate(model, **how))
    classifier = str(classifier_file(tmp_path))
    config = EvaluateConfig(data=str(folder), n=10, steps=2, device="cpu", classifier=classifier)
    scores = scores_of(model, config, progress=False)
    assert {s.n for s in scores.values()} == {10}
    (folder / "attributes.csv").unlink()
    with pytest.raises(ValueError, match="net.n_cond is 2: expected 0, as the data have attributes"):
        recipe.check_data(recipe.pictures())
    with pytest.raises(ValueError, match="the data have no attributes: expected 2 for each image"):
        scores_of(model, config, progress=False)
    with pytest.raises(ValueError, match="net.n_cond is 1: expected 0, for latents carry no"):
        LatentRecipe(net=replace(LatentRecipe().net, n_cond=1))


def classifier_file(folder: Path) -> Path:
    """A classifier of two kinds of images of 8 x 8, with random weights."""
    from diffusion_course import evaluation
    recipe = replace(evaluation.PRESETS["classifier"], data="digits").for_images((1, 8, 8), 2, 100)
    save(recipe.build(), folder / "c.safetensors")
    return folder / "c.safetensors"


def test_the_loss_follows_the_condition() -> None:
    recipe = DenoiserRecipe(data="digits", net=SMALL, drop=0.0)
    model = Denoiser(NETS["UNet"](), Linear())
    x, y = draw(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    loss = lambda cond: recipe.loss(model, x, y, torch.Generator().manual_seed(0), cond).item()
    assert loss(torch.zeros(4, 2)) != loss(torch.ones(4, 2))


def test_a_start_keeps_what_fits(tmp_path: Path) -> None:
    path = str(tmp_path / "m.safetensors")
    old = Denoiser(NETS["UNet"](), Linear())
    save(old, path, half=False)
    fresh = lambda **change: Denoiser(UNet(replace(SMALL, **change), seed=5), Linear())
    same = started(path, fresh(n_labels=5)).net.state_dict()
    other = started(path, fresh(n_cond=1)).net.state_dict()
    for name, value in old.net.state_dict().items():
        if not name.startswith("embed_y"): assert torch.equal(same[name], value), name
        if not name.startswith("embed_cond"): assert torch.equal(other[name], value), name
    assert other["embed_cond.layers.0.weight"].shape == (64, 2)
    assert started(path, fresh(n_cond=0)).net.embed_cond is None
