"""Images of one's own: a folder of files as data, models that fit them, and the three commands."""
from __future__ import annotations

import json
import re
import subprocess
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import rng
from PIL import Image, ImageDraw

from diffusion_course import evaluation, folders, training, vae
from diffusion_course.checkpoints import info, load, save
from diffusion_course.cli import main
from diffusion_course.evaluation import ClassifierRecipe, EvaluateConfig, as_bytes, own_classifier, scores_of
from diffusion_course.folders import list_folder, read_folder, read_image
from diffusion_course.generation import SampleConfig, sample_to_files
from diffusion_course.images import image_folder
from diffusion_course.latent import LatentRecipe
from diffusion_course.predictions import Denoiser
from diffusion_course.schedules import Linear
from diffusion_course.training import DenoiserRecipe, images_of, is_folder, label_names
from diffusion_course.unet import UNet, UNetConfig
from diffusion_course.vae import VAE, VAEConfig, VAERecipe
from diffusion_course.your_own import write_letters


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's cache, in a place of the test's own."""
    monkeypatch.setattr(folders.pooch, "os_cache", lambda name: tmp_path / "cache" / name)


def draw(folder: Path, labels: dict[str, int], size: tuple[int, int] = (40, 36), grey: bool = False) -> Path:
    """A folder of drawn images: discs and squares, so many of each label; "" is the folder itself."""
    for k, (label, n) in enumerate(labels.items()):
        place = folder / label
        place.mkdir(parents=True, exist_ok=True)
        for i in range(n):
            image = Image.new("RGB", size, "white")
            shape = ImageDraw.Draw(image).ellipse if k % 2 else ImageDraw.Draw(image).rectangle
            shape((8, 8, 22 + i % 9, 22 + i % 9), fill=(90,) * 3 if grey else (200, 6 * i % 200, 30 + 60 * k))
            image.save(place / f"{i}.png")
    return folder


# ---- one file ------------------------------------------------------------------------------------

def half_transparent(mode: str) -> Image.Image:
    """Red, of which the left half is invisible."""
    image = Image.new("RGBA", (16, 16), (255, 0, 0, 255))
    image.paste((0, 255, 0, 0), (0, 0, 8, 16))
    return image.convert(mode)


def palette() -> Image.Image:
    """A palette whose first colour is transparent."""
    image = Image.new("P", (16, 16), 1)
    image.putpalette([0, 255, 0, 255, 0, 0])
    image.paste(0, (0, 0, 8, 16))
    image.info["transparency"] = 0
    return image


RED, WHITE = [255, 0, 0], [255, 255, 255]


@pytest.mark.parametrize("image, left, right", [
    (half_transparent("RGBA"), WHITE, RED),
    (half_transparent("LA"), WHITE, [76] * 3),
    (palette(), WHITE, RED),
    (Image.new("RGB", (16, 16), "red"), RED, RED),
    (Image.new("L", (16, 16), 100), [100] * 3, [100] * 3),
    (Image.new("1", (16, 16), 1), WHITE, WHITE),
    (Image.fromarray(np.full((16, 16), 100 * 257, np.uint16)), [100] * 3, [100] * 3),
    (Image.fromarray(np.full((16, 16), 65535, np.uint16)), WHITE, WHITE),
], ids=["RGBA", "LA", "palette", "RGB", "grey", "one bit", "16 bits", "16 bits, white"])
def test_every_kind_of_image_is_read(
    image: Image.Image, left: list[int], right: list[int], tmp_path: Path,
) -> None:
    image.save(tmp_path / "a.png")
    x = read_image(tmp_path / "a.png", 16)
    assert x.shape == (3, 16, 16) and x.dtype == np.uint8
    assert x[:, 8, 2].tolist() == left and x[:, 8, 12].tolist() == right


def test_a_camera_s_orientation_is_followed_and_the_middle_taken(tmp_path: Path) -> None:
    image = Image.new("RGB", (64, 32), "black")
    image.paste((255, 255, 255), (0, 0, 64, 16))  # the upper half is white
    exif = image.getexif()
    exif[0x0112] = 6  # turned a quarter clockwise to be shown
    image.save(tmp_path / "a.jpg", exif=exif, quality=95)
    x = read_image(tmp_path / "a.jpg", 8).astype(int)
    assert x[:, :, 6].min() > 200 and x[:, :, 1].max() < 60, "the upper side comes to the right"
    wide = Image.new("RGB", (48, 16), "blue")
    wide.paste((255, 0, 0), (16, 0, 32, 16))
    wide.save(tmp_path / "b.png")
    assert read_image(tmp_path / "b.png", 16)[0].mean() > 250, "the middle square is red"


@pytest.mark.parametrize("data", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_a_file_that_is_no_image_is_named(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(ValueError, match="a.png can't be read as an image"):
        read_image(tmp_path / "a.png", 8)


# ---- a folder ------------------------------------------------------------------------------------

def test_labels_are_the_sorted_names_of_sub_folders(tmp_path: Path) -> None:
    folder = draw(tmp_path / "meine Bilder", {"zwei": 12, "eins ü": 12, unicodedata.normalize("NFD", "été"): 12})
    (folder / "leer").mkdir()
    (folder / ".git").mkdir()
    (folder / ".git" / "a.png").write_bytes(b"")
    (folder / "zwei" / ".DS_Store").write_bytes(b"")
    (folder / "zwei" / "notes.txt").write_text("hello", encoding="utf-8")
    listing = list_folder(folder)
    assert listing.names == ("eins ü", "été", "zwei") and listing.empty == ("leer",) and listing.others == 1
    found = read_folder(folder)
    assert found.x.shape == (36, 3, 32, 32) and found.y.bincount().tolist() == [12, 12, 12]
    assert found.held_out == 3 and found.split("test")[1].tolist() == [0, 1, 2]
    assert "leer" in found.notes[0] and "1 file of other kinds" in found.notes[1]
    assert "36 images of 3 labels (eins ü 12, été 12, zwei 12), 3 of them held out" in found.about()


def test_a_folder_without_sub_folders_has_no_labels(tmp_path: Path) -> None:
    for folder in (draw(tmp_path / "flat", {"": 30}), draw(tmp_path / "one", {"label": 30})):
        found = read_folder(folder)
        assert len(found.names) == 1 and not found.y.any() and found.held_out == 3
        assert any("without labels" in note for note in found.notes)
    images = image_folder(folder, "test")
    assert images.names == ("label",) and len(images) == 3


@pytest.mark.parametrize("side, size", [(20, 32), (28, 28), (31, 28), (40, 32), (64, 64), (300, 64)])
def test_the_size_is_that_of_a_preset_which_enlarges_nothing(side: int, size: int, tmp_path: Path) -> None:
    assert read_folder(draw(tmp_path, {"": 20}, (side + 9, side))).x.shape[2:] == (size, size)


def test_grey_images_get_one_channel_unless_asked(tmp_path: Path) -> None:
    folder = draw(tmp_path, {"": 20}, grey=True)
    assert read_folder(folder).x.shape == (20, 1, 32, 32)
    assert read_folder(folder, 28, 3).x.shape == (20, 3, 28, 28)
    colour = draw(tmp_path / "colour", {"": 20})
    assert read_folder(colour, 16, channels=1).x.shape == (20, 1, 16, 16)
    assert read_folder(colour).x.shape == (20, 3, 32, 32), "what was asked for before is not the folder's own"


@pytest.mark.parametrize("labels, message", [
    ({"": 19}, "holds 19 images: expected 20 or more"),
    ({}, "holds 0 images: expected 20 or more .*.png"),
    ({"a": 20, "b": 4}, r"too few images of b \(4\) in .*: expected 5 or more of each label"),
    ({"": 20, "a": 20}, "holds 20 images beside 1 sub-folders with images: expected"),
    ({"train": 20, "test": 20}, "sub-folders of .* are test, train: expected one for each label; name"),
])
def test_folders_that_say_nothing_certain_are_refused(
    labels: dict[str, int], message: str, tmp_path: Path,
) -> None:
    with pytest.raises(ValueError, match=message): read_folder(draw(tmp_path, labels))


@pytest.mark.parametrize("wrong, message", [
    (dict(size=0), "size is 0: expected a whole number of pixels"),
    (dict(channels=4), "channels is 4: expected 1 or 3"),
    (dict(on_error="ignore"), "on_error is 'ignore': expected one of stop, skip"),
])
def test_arguments_that_are_wrong(wrong: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message): read_folder(tmp_path, **wrong)
    with pytest.raises(FileNotFoundError, match="no folder .*nowhere"):
        read_folder(tmp_path / "nowhere")


@pytest.mark.parametrize("size", [None, 16])
def test_broken_files_stop_or_are_skipped(size: int | None, tmp_path: Path) -> None:
    folder = draw(tmp_path, {"a": 12, "b": 12})
    for name in ("a/3.png", "b/5.png"):
        path = folder / name
        path.write_bytes(path.read_bytes()[:60])
    (folder / "b" / "text.jpg").write_text("no image", encoding="utf-8")
    with pytest.raises(ValueError, match=r"3 of 25 image files in .*: a/3.png can't .*; nor can b/5.png, b/text.jpg"):
        read_folder(folder, size)
    for on_error in ("skip", "stop"):  # what was read with "skip" stays so
        found = read_folder(folder, size, on_error=on_error)
        assert len(found.x) == 22 and "a/3.png, b/5.png, b/text.jpg" in found.notes[0]
    for i in range(8): (folder / "a" / f"{i}.png").write_bytes(b"")
    with pytest.raises(ValueError, match="4 images of a in .* can be read: expected 5 or more"):
        read_folder(folder, size, on_error="skip")


# ---- what is kept --------------------------------------------------------------------------------

def no_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on files of images can't be opened."""
    def fail(*_: object) -> None: raise AssertionError("an image was read again")
    monkeypatch.setattr(folders, "read_image", fail)
    monkeypatch.setattr(folders, "_sides", fail)


def test_files_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = draw(tmp_path, {"a": 12, "b": 12})
    first = read_folder(folder)
    no_reading(monkeypatch)
    again = read_folder(folder)
    assert torch.equal(first.x, again.x) and torch.equal(first.y, again.y) and first.names == again.names
    assert torch.equal(read_folder(folder, 32, 3).x, first.x)
    (folder / "a" / "0.png").touch()
    with pytest.raises(AssertionError, match="read again"): read_folder(folder)


@pytest.mark.parametrize("file", ["scan.json", "32x32x3.safetensors"])
def test_a_damaged_cache_is_written_again(file: str, tmp_path: Path) -> None:
    folder = draw(tmp_path, {"": 24})
    first = read_folder(folder).x.clone()  # not what lies in the file that is cut
    kept = folder / ".diffusion_course" / file
    whole = kept.read_bytes()
    kept.write_bytes(whole[:40])
    assert torch.equal(read_folder(folder).x, first) and kept.read_bytes() == whole


def test_a_folder_that_can_not_be_written_is_kept_in_the_user_s_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = draw(tmp_path / "images", {"": 24})
    (folder / ".diffusion_course").write_text("in the way", encoding="utf-8")
    first = read_folder(folder)
    assert list((tmp_path / "cache").rglob("32x32x3.safetensors"))
    no_reading(monkeypatch)
    assert torch.equal(read_folder(folder).x, first.x)


def test_where_nothing_can_be_kept_images_are_read_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> None: raise OSError("no space left on device")

    folder = draw(tmp_path, {"": 24})
    monkeypatch.setattr(folders, "write_tensors", full)
    assert torch.equal(read_folder(folder).x, read_folder(folder).x)
    assert not list(tmp_path.rglob("*.safetensors")) and not list(tmp_path.rglob("scan.json"))


def test_what_is_held_out_follows_from_names_alone(tmp_path: Path) -> None:
    few, more = draw(tmp_path / "few", {"a": 30, "b": 30}), draw(tmp_path / "more", {"a": 31, "b": 30})
    (few / "a" / "0.png").touch()
    a, b = (image_folder(folder, "test", 16) for folder in (few, more))
    assert len(a) == len(b) == 6
    shared = sum((a.x[i] == b.x).flatten(1).all(1).any().item() for i in range(6))
    assert shared >= 5
    train = image_folder(few, "train", 16)
    assert len(train) == 54 and train.y.bincount().tolist() == [27, 27]


# ---- recipes -------------------------------------------------------------------------------------

def test_data_is_a_name_or_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path / "mine", {"a": 12, "b": 12}, (8, 8))
    monkeypatch.chdir(tmp_path)
    net = UNetConfig((3, 8, 8), (16,), attention=(), head=16, patch=1, n_labels=2)
    recipe = DenoiserRecipe(data="mine", net=net)
    assert recipe.data == str(tmp_path / "mine") and is_folder("mine") and not is_folder("digits")
    assert recipe.pictures().x.shape == (22, 3, 8, 8) and len(recipe.data_of("test")) == 2
    recipe.check_data(recipe.pictures())
    with pytest.raises(ValueError, match=r"images of shape \(3, 8, 16\): expected squares"):
        images_of("mine", "train", (3, 8, 16))


@pytest.mark.parametrize("shape, n", [
    ((1, 28, 28), 500), ((3, 32, 32), 500), ((3, 32, 32), 10_000), ((3, 64, 64), 500), ((3, 48, 48), 500),
])
def test_networks_fit_the_images(shape: tuple[int, int, int], n: int) -> None:
    recipe = training.PRESETS["images"].for_images(shape, 3, n)
    x, t = torch.zeros(2, *shape), torch.zeros(2)
    assert recipe.net.shape == shape and recipe.net.n_labels == 3
    assert recipe.build()(x, t, y=torch.tensor([0, 3])).x1.shape == x.shape
    assert shape[1] // recipe.net.patch <= 16, "more positions take too long on a laptop"
    classifier = evaluation.PRESETS["classifier"].for_images(shape, 3, n)
    assert classifier.build().eval()(x).shape == (2, 3)
    coder = vae.PRESETS["vae"].for_images(shape, 3, n)
    assert coder.net.latent[1] in (6, 7, 8) and coder.build().decode(coder.build().encode(x).mean).shape == x.shape


def test_a_model_of_latents_fits_its_autoencoder(tmp_path: Path) -> None:
    path = str(tmp_path / "vae.safetensors")
    save(VAE(VAEConfig((3, 28, 28), (2, 7, 7), (8, 8))), path)
    preset = replace(LatentRecipe(), net=replace(LatentRecipe().net, vae=path, decoder=""))
    recipe = preset.for_images((3, 28, 28), 3, 500)
    assert recipe.image_shape() == (3, 28, 28) and recipe.net.shape == (2, 7, 7) and recipe.net.n_labels == 3
    assert recipe.build()(torch.zeros(1, 2, 7, 7), 0.5, y=1).x1.shape == (1, 2, 7, 7)
    assert recipe.net.attention == (7,) and len(recipe.net.widths) == 1  # it can't be halved
    shipped = LatentRecipe().for_images((3, 32, 32), 10, 500)
    assert shipped.net.attention == (4,) and len(shipped.net.widths) == 2, "at the lowest of two resolutions"
    message = r"net.vae is .*: expected one for \(3, 32, 32\), as `diffusion-course train vae"
    with pytest.raises(ValueError, match=message):
        preset.for_images((3, 32, 32), 3, 500)


def test_one_label_is_none_for_a_classifier() -> None:
    with pytest.raises(ValueError, match="there is 1 label: expected 2 or more"):
        evaluation.PRESETS["classifier"].for_images((3, 32, 32), 1, 500)


def test_recipes_of_other_things_learn_from_no_folder(tmp_path: Path) -> None:
    from diffusion_course.few_step import PRESETS
    with pytest.raises(ValueError, match="expected another preset, for a ReflowRecipe learns from no folder"):
        replace(PRESETS["few-step"], data=str(draw(tmp_path, {"": 20}))).for_images((3, 32, 32), 3, 500)


# ---- a model to begin from -----------------------------------------------------------------------

SMALL = UNetConfig((1, 8, 8), (16,), attention=(), head=16, patch=1, n_labels=10)


def random_(net: torch.nn.Module) -> torch.nn.Module:
    """The network with weights of which none is zero."""
    for p in net.parameters(): torch.nn.init.normal_(p, std=0.1, generator=rng(sum(p.shape)))
    return net


def test_a_body_goes_on_with_other_labels(tmp_path: Path) -> None:
    path = str(tmp_path / "start.safetensors")
    save(Denoiser(random_(UNet(SMALL)), Linear()), path, half=False)
    old = load(path).net.state_dict()
    recipe = DenoiserRecipe(data="digits", net=replace(SMALL, n_labels=3, dropout=0.1), start=path)
    model = recipe.build()
    new, fresh = model.net.state_dict(), replace(recipe, start="").build().net.state_dict()
    assert model.training and new.keys() == old.keys()
    for name in old.keys() - {"embed_y.weight"}: assert torch.equal(new[name], old[name]), name
    assert torch.equal(new["embed_y.weight"][:3], fresh["embed_y.weight"][:3]), "labels begin anew"
    assert torch.equal(new["embed_y.weight"][3], old["embed_y.weight"][10]), "no label means no label still"
    without = replace(recipe, net=replace(SMALL, n_labels=0)).build().net.state_dict()
    assert without.keys() == old.keys() - {"embed_y.weight"}
    same = replace(recipe, net=SMALL).build().net.state_dict()
    assert torch.equal(same["embed_y.weight"], old["embed_y.weight"]), "the same labels go on"


@pytest.mark.parametrize(
    "change", [dict(widths=(32,)), dict(shape=(1, 16, 16)), dict(shape=(3, 8, 8)), dict(blocks=2)],
)
def test_another_body_is_refused(change: dict, tmp_path: Path) -> None:
    path = str(tmp_path / "start.safetensors")
    save(Denoiser(UNet(SMALL), Linear()), path)
    recipe = DenoiserRecipe(data="digits", net=replace(SMALL, n_labels=3, **change), start=path)
    with pytest.raises(ValueError, match="start is .*, a model of velocity with UNetConfig.*: expected velocity with"):
        recipe.build()


def test_a_classifier_goes_on_with_other_labels(tmp_path: Path) -> None:
    path = str(tmp_path / "start.safetensors")
    recipe = ClassifierRecipe(data="digits", shift=1).for_images((1, 8, 8), 10, 100)
    save(random_(recipe.build()), path, half=False)
    old = load(path).state_dict()
    new = replace(recipe, start=path, net=replace(recipe.net, n_labels=3)).build().state_dict()
    assert new["last.weight"].shape[0] == 3
    for name in old.keys() - {"last.weight", "last.bias"}: assert torch.equal(new[name], old[name]), name
    same = replace(recipe, start=path).build().state_dict()
    assert all(torch.equal(same[name], old[name]) for name in old)
    wide = replace(recipe.net, stem=8)
    with pytest.raises(ValueError, match="start is .*, a classifier with .*: expected a classifier with"):
        replace(recipe, start=path, net=wide).build()
    with pytest.raises(ValueError, match="start is 'vae-small', a VAE: expected a classifier with"):
        replace(recipe, start="vae-small").build()


# ---- samples and scores --------------------------------------------------------------------------

def test_labels_have_names_in_the_command_sample(tmp_path: Path) -> None:
    model = Denoiser(random_(UNet(replace(SMALL, n_labels=3))), Linear()).eval()
    names = ("eins", "été, mer", "zwei")
    draw_them = lambda **how: sample_to_files(
        model, SampleConfig(n=5, steps=2, scale=1, precision="fp32", out=str(tmp_path / "a.png"), **how),
        progress=False, names=names, named=True,
    )
    draw_them()
    with Image.open(tmp_path / "a.png") as all_labels: width, height = all_labels.size
    assert height == 3 * 9 - 1 and width > 2 * 9 + 10, "a row for each label, and its name beside it"
    draw_them(labels="zwei,eins")
    with Image.open(tmp_path / "a.png") as two: assert two.size[1] == 2 * 9 - 1
    for one in (dict(labels=unicodedata.normalize("NFD", "ÉTÉ, MER")), dict(label=1)):
        draw_them(**one)
        with Image.open(tmp_path / "a.png") as only: assert only.size[1] == 8
    with pytest.raises(ValueError, match="labels holds 'drei': expected of eins, été, mer, zwei"):
        draw_them(labels="eins,drei")
    with pytest.raises(ValueError, match="label is 1 beside labels 'zwei'"):
        draw_them(label=1, labels="zwei")


def test_names_of_labels_stand_beside_a_model() -> None:
    assert label_names(dict(labels=["a", "b"], config=dict(data="cifar10"))) == ("a", "b")
    assert label_names(info("cifar10"))[3] == "cat"
    assert label_names({}) == () and label_names(dict(config=dict(data="/somewhere"))) == ()


def test_own_images_are_scored_with_a_classifier_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    trained: list[ClassifierRecipe] = []

    def train(recipe: ClassifierRecipe, *_: object, **__: object) -> torch.nn.Module:
        trained.append(recipe)
        return random_(recipe.build()).eval()

    monkeypatch.setattr(evaluation, "train", train)
    folder, run = str(draw(tmp_path / "images", {"a": 24, "b": 24})), tmp_path / "run"
    model = Denoiser(UNet(replace(SMALL, shape=(3, 8, 8), n_labels=2)), Linear()).eval()
    config = EvaluateConfig(data=folder, steps=2, device="cpu", out=str(tmp_path / "scores.json"))
    scores = scores_of(model, config, progress=False, folder=run)
    assert {s.n for s in scores.values()} == {22}, "half of the 44 that are not held out"
    assert trained[0].net.shape == (3, 8, 8) and trained[0].net.n_labels == 2 and trained[0].data == folder
    classifier, test = load(run / "classifier.safetensors"), images_of(folder, "test", (3, 8, 8))
    held_out = classifier(test.batch(slice(None))[0]).argmax(1) == test.y
    assert scores["label agreement"].floor == held_out.double().mean()
    assert scores["nearest"].value > 3 * scores["nearest"].floor, "noise is no image that was learned"
    assert len(json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))) == len(scores)
    own_classifier(folder, (3, 8, 8), run, progress=False)
    assert len(trained) == 1, "it is trained once"
    draw(tmp_path / "images", {"a": 26})
    own_classifier(folder, (3, 8, 8), run, progress=False)
    assert len(trained) == 2, "and again for other images"
    other = Denoiser(UNet(replace(SMALL, shape=(3, 8, 8), n_labels=3)), Linear()).eval()
    with pytest.raises(ValueError, match="has 2 labels: expected 3, as the model knows"):
        scores_of(other, config, progress=False, folder=run)


def test_images_without_labels_are_scored_by_what_a_classifier_of_cifar10_sees(tmp_path: Path) -> None:
    folder = str(draw(tmp_path, {"": 20}, (8, 8), grey=True))
    extractor = own_classifier(folder, (1, 8, 8), tmp_path)
    assert evaluation.features(images_of(folder, "train", (1, 8, 8)), extractor).shape == (18, 192)
    assert not (tmp_path / "classifier.safetensors").exists()


@pytest.mark.parametrize("x", [torch.full((2, 1, 4, 4), 200.0), torch.linspace(0, 255, 32).reshape(2, 1, 4, 4)])
def test_numbers_from_0_to_255_are_no_images(x: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="x runs from .*: expected -1 to 1, or torch.uint8"):
        as_bytes(x)
    assert as_bytes(x.byte()).dtype == torch.uint8
    assert as_bytes(x / 127.5 - 1).max() >= 199 and as_bytes(3 * torch.ones(1, 1, 2, 2)).min() == 255


def test_stages_that_show_nothing_are_refused_at_once() -> None:
    images = training.Images(torch.zeros(20, 2, 8, 8).byte(), torch.zeros(20), ("a",))
    recipe = DenoiserRecipe(net=replace(SMALL, shape=(2, 8, 8), n_labels=0), stages=(128,))
    with pytest.raises(ValueError, match=r"images have shape \(2, 8, 8\): expected 1 or 3 channels, or no stages"):
        recipe.check_data(images)
    replace(recipe, stages=()).check_data(images)
    with pytest.raises(ValueError, match="expected 1 or 3"):
        VAERecipe(net=VAEConfig((2, 8, 8), (2, 2, 2), (8, 8)), stages=(128,)).check_data(images)


# ---- the commands --------------------------------------------------------------------------------

@pytest.mark.parametrize("args, message", [
    (["images"], "the preset images is for images of your own: expected --data PATH"),
    (["images", "--data", "no/where"], "no folder .*where: expected a folder of images"),
    (["digits", "--size", "28"], "--size and --channels are for a folder of images: expected --data PATH, not digits"),
    (["digits", "--steps", "3", "--images", "9"], "--steps is given beside --images"),
    (["digits", "--steps", "0"], "steps is 0: expected a whole number, 1 or more"),
])
def test_wrong_commands_are_one_clear_line(
    args: list[str], message: str, tmp_path: Path, capsys, monkeypatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", *args]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and re.search(message, said[0]), said
    assert not (tmp_path / "runs").exists()


def call_in(folder: Path, *args: str) -> subprocess.CompletedProcess:
    """What the command says, called in a folder."""
    command = [sys.executable, "-m", "diffusion_course.cli", *args]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, encoding="utf-8")


@pytest.mark.slow
def test_three_commands_with_odd_sizes_kinds_and_attributes(tmp_path: Path) -> None:
    """Grey, colour and transparent files of 24 to 60 pixels, names with spaces and accents, a table beside them."""
    folder = write_letters(tmp_path / "Schöne Buchstaben", each=20)
    (folder / "K").rename(folder / "lettre K é")
    table = folder / "attributes.csv"
    table.write_text(table.read_text(encoding="utf-8").replace("K/", "lettre K é/"), encoding="utf-8")
    how = "--steps", "4", "--size", "28", "--device", "cpu"
    trained = call_in(tmp_path, "train", "images", "--data", folder.name, *how)
    assert trained.returncode == 0, trained.stderr
    expected = "60 images of 3 labels (A 20, S 20, lettre K é 20)", "28 x 28 pixels, grey", "described by slant, weight"
    for text in expected:
        assert text in trained.stdout, trained.stdout
    noted = info(tmp_path / "runs" / "images" / "model.safetensors")
    assert noted["attributes"] == ["slant", "weight"] and noted["labels"] == ["A", "S", "lettre K é"]
    quick = ["runs/images", "--steps", "2", "--device", "cpu"]
    sampled = call_in(tmp_path, "sample", *quick, "--n", "3", "--cond", "weight=-1")
    assert sampled.returncode == 0 and (tmp_path / "samples.png").exists(), sampled.stderr
    wrong = call_in(tmp_path, "sample", *quick, "--cond", "height=1")
    assert wrong.returncode == 2 and "cond is 'height=1': expected numbers, as slant=0,weight=0" in wrong.stderr
    scored = call_in(tmp_path, "evaluate", *quick)
    assert scored.returncode == 0, scored.stderr
    assert "label agreement" in scored.stdout and "(27 images" in scored.stdout, scored.stdout


@pytest.mark.slow
def test_three_commands_train_sample_and_score(tmp_path: Path) -> None:
    folder = draw(tmp_path / "my images", {"disc é": 30, "square": 30, "third one": 30})
    (folder / "square" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    (folder / "square" / "2.png").rename(folder / "square" / "zwei – ü.png")

    def call(*args: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "diffusion_course.cli", *args]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, encoding="utf-8")

    train = ["train", "images", "--data", "my images", "--steps", "20", "--log-every", "64", "--device", "cpu"]
    stopped = call(*train)
    assert stopped.returncode == 2 and "square/broken.jpg can't be read" in stopped.stderr
    trained = call(*train, "--on-error", "skip")
    assert trained.returncode == 0, trained.stderr
    said = "90 images of 3 labels", "32 x 32 pixels, colour", "square/broken.jpg", "M weights"
    for text in said: assert text in trained.stdout, trained.stdout
    assert "640 images in batches of 32, on cpu" in trained.stderr, trained.stderr
    assert info(tmp_path / "runs" / "images" / "model.safetensors")["labels"] == ["disc é", "square", "third one"]
    quick = ["runs/images", "--steps", "3", "--device", "cpu"]
    sampled = call("sample", *quick, "--n", "6", "--labels", "square,disc é")
    assert sampled.returncode == 0, sampled.stderr
    with Image.open(tmp_path / "samples.png") as grid: assert grid.size[1] == 2 * (3 * 32 + 1) - 1
    scored = call("evaluate", *quick, "--data", "my images")
    assert scored.returncode == 0, scored.stderr
    for text in ("Fréchet distance", "label agreement", "distance to the nearest", "(40 images"):
        assert text in scored.stdout, scored.stdout
    assert (tmp_path / "runs" / "images" / "classifier.safetensors").exists()
