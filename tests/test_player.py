"""The trajectory player: what travels to the page is what was given, and nothing it is given breaks it."""
import base64
import io
import json
import re
import threading

import numpy as np
import pytest
import torch
from helpers import normal, rng
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from diffusion_course.style import COLORS, LABELS
from diffusion_course.panes import FRAMES, REACH, dequantise, quantise
from diffusion_course.player import Player, play


def cloud(frames=6, n=20, dim=2, seed=0):
    return normal(frames, n, dim, seed=seed, dtype=torch.float32)


def received(page: str) -> tuple[dict, bytes]:
    "The description and the bytes in a page, read back as the script in it does."
    call = r'^boot\("[\w-]+", (\{.*\}), "([A-Za-z0-9+/=]*)"\);$'
    meta, payload = re.search(call, page, re.M).groups()
    return json.loads(meta), base64.b64decode(payload)


def block(meta: dict | None, data: bytes) -> np.ndarray:
    "One array of the buffer."
    kind = np.dtype(meta["type"]).newbyteorder("<")
    return np.frombuffer(data, kind, int(np.prod(meta["shape"])), meta["at"]).reshape(meta["shape"])


# ---- numbers -------------------------------------------------------------------------------------

@given(st.lists(st.floats(-1, 1), min_size=1, max_size=20), st.floats(0.01, 1e3), st.floats(-1e3, 1e3))
def test_quantising_is_exact_to_half_a_unit(places, half, centre):
    view = (centre - half, centre + half)
    x = centre + half * np.array(places)
    unit = REACH * half / 32767
    rounding = 4e-7 * (abs(centre) + REACH * half)  # of float32
    assert np.abs(dequantise(quantise(x, view), view) - x).max() <= 0.5 * unit + rounding


def test_quantising_marks_nan_and_clips_what_is_far():
    x = np.array([np.nan, np.inf, -np.inf, 1e38, 0.0], dtype=np.float32)
    q = quantise(x, (-2.0, 2.0))
    assert q.dtype == np.dtype("<i2") and q.tolist() == [-32768, 32767, -32767, 32767, 0]
    assert np.allclose(dequantise(q, (-2.0, 2.0)), [np.nan, 16, -16, 16, 0], equal_nan=True)


def test_what_arrives_in_the_page_is_what_was_given():
    x = cloud()
    labels = torch.arange(20) % 3
    targets = normal(7, 2, seed=1)
    scene = play(x, labels=labels, targets=targets, titles="a < b </script>", extent=4.0)
    meta, data = received(scene.to_html(still=False))
    pane, = meta["panes"]
    for key, sent in (("paths", x), ("targets", targets)):
        assert np.abs(dequantise(block(pane[key], data), pane["view"]) - sent.numpy()).max() < 1e-3
    assert block(pane["ids"], data).tolist() == labels.tolist() and pane["palette"] == LABELS
    assert pane["title"] == "a < b </script>" and pane["view"] == [-4.0, 4.0]


def test_buffer_blocks_are_aligned_and_do_not_overlap():
    behind = dict(targets=torch.zeros(3, 2), field=lambda x, t: x, density=lambda x: x[:, 0] ** 2)
    meta, data = play([cloud(5, 7), cloud(9, 3)], **behind).pack()
    keys = ("paths", "ids", "density", "field", "targets")
    blocks = sorted((pane[k] for pane in meta["panes"] for k in keys), key=lambda b: b["at"])
    ends = [b["at"] + block(b, data).nbytes for b in blocks]
    assert len(blocks) == 10 and all(b["at"] % 4 == 0 for b in blocks)
    assert all(end <= b["at"] for end, b in zip(ends, blocks[1:], strict=False))
    assert ends[-1] <= len(data)


def test_positions_between_iterates_lie_on_the_chord():
    x = cloud(3)
    pane, = play(x, torch.tensor([0.0, 0.2, 1.0])).panes
    for t, place in ((0.1, (x[0] + x[1]) / 2), (0.6, (x[1] + x[2]) / 2), (-1, x[0]), (2, x[2])):
        assert np.allclose(pane.positions(t), place.numpy(), atol=2e-3)


# ---- what play accepts ---------------------------------------------------------------------------

@pytest.mark.parametrize("paths, shapes", [
    (cloud(6, 20), [(6, 20, 2)]),
    (cloud().double().numpy(), [(6, 20, 2)]),
    (cloud().bfloat16().requires_grad_(), [(6, 20, 2)]),
    (cloud(6, 20, 1), [(6, 20, 1)]),
    (cloud(6, 20, 1)[..., 0], [(6, 20, 1)]),
    (list(cloud(6, 20)), [(6, 20, 2)]),
    (list(cloud(6, 20, 1)[..., 0]), [(6, 20, 1)]),
    ([cloud(6), cloud(51)], [(6, 20, 2), (51, 20, 2)]),
    ([cloud(6, 20, 1)[..., 0], cloud(4)], [(6, 20, 1), (4, 20, 2)]),
    ({"a": cloud(6), "b": list(cloud(9))}, [(6, 20, 2), (9, 20, 2)]),
    ([list(cloud(6)), list(cloud(9))], [(6, 20, 2), (9, 20, 2)]),
])
def test_shapes(paths, shapes):
    assert [p.q.shape for p in play(paths).panes] == shapes


def test_a_trajectory_brings_its_own_times():
    class Trajectory:
        xs, ts = cloud(4), torch.tensor([0.0, 0.1, 0.5, 0.9])
    scene = play({"one": Trajectory, "two": cloud(3)})
    assert np.allclose(scene.panes[0].ts, Trajectory.ts) and scene.clock == (0.0, 1.0)
    assert [p.title for p in scene.panes] == ["one", "two"]


def test_panes_share_a_view_and_take_their_own_options():
    left, right = play([cloud(), 5 * cloud()], color=["noise", "#123456"],
                       labels=[None, torch.zeros(20)], ts=[None, torch.linspace(0.5, 1, 6)]).panes
    assert left.view == right.view and left.palette == [COLORS["noise"].lower()]
    assert right.palette == LABELS and right.ts[0] == 0.5
    left, right = play([cloud(), cloud()], extent=[(-1, 2), (0, 3)]).panes
    assert (left.view, right.view) == ((-1.0, 2.0), (0.0, 3.0))


def test_exploding_paths_do_not_hide_the_others():
    x = cloud(20, 100)
    sane = play(x).panes[0].view[1]
    x[5:, :10] *= torch.logspace(0, 38, 15)[:, None, None]
    x[:, 10:15] = torch.nan
    x[3:, 15] = torch.inf
    scene = play(x, density=lambda x: x[:, 0] / 0, field=lambda x, t: x / (1 - t) / 0)
    assert scene.panes[0].view[1] < 2 * sane
    assert scene.still(0.5).startswith(b"\x89PNG") and "NaN" not in json.dumps(scene.pack()[0])
    assert play(torch.full((3, 4, 2), torch.nan)).still()
    assert play(torch.full((3, 4), torch.inf)).still()


@pytest.mark.parametrize("dim", [1, 2])
def test_backgrounds_depend_on_time_only_where_they_do(dim):
    def density(p): return play(cloud(dim=dim), density=p).panes[0].density

    fixed = density(lambda x: torch.exp(-x.square().sum(1)))
    moving = density(lambda x, t: torch.exp(-(x - t).square().sum(1)))
    assert fixed.shape == (1, *{1: (160,), 2: (96, 96)}[dim])
    assert moving.shape == (FRAMES, *{1: (160,), 2: (64, 64)}[dim])
    assert fixed.max() > 100 and (moving[0] != moving[-1]).any()


def test_rows_of_a_density_run_from_the_bottom():
    p = play(cloud(), density=lambda x: torch.exp(x[:, 1])).panes[0].density[0].astype(int)
    assert (np.diff(p[:, 0]) >= 0).all() and p[-1, 0] == 255 and p[0, 0] < 100
    corner = torch.zeros(8, 8)
    corner[7, 0] = 1
    assert play(cloud(), density=corner).panes[0].density[0, 7, 0] == 255


def test_arrows_point_along_the_field_with_one_scale():
    def arrows(field): return play(cloud(), field=field).panes[0].field

    fixed = arrows(lambda x, t: torch.stack([-x[:, 1], x[:, 0]], 1))
    assert fixed.shape == (1, 17, 17, 2) and fixed.dtype == np.int8
    assert fixed[0, 8, 16, 1] > 50 and fixed[0, 16, 8, 0] < -50 and (fixed[0, 8, 8] == 0).all()
    growing = arrows(lambda x, t: t * torch.ones_like(x)).astype(int)[:, 0, 0, 0]
    assert len(growing) == FRAMES and abs(growing[FRAMES // 2] / growing[-1] - 0.52) < 0.03


X = cloud()


@pytest.mark.parametrize("arguments, message", [
    (dict(paths=torch.zeros(5, 4, 3)), r"paths has shape \(5, 4, 3\)"),
    (dict(paths=torch.zeros(1, 4, 2)), "at least two iterates"),
    (dict(paths=torch.zeros(5, 0, 2)), "paths has shape"),
    (dict(paths=torch.zeros(5)), "paths has shape"),
    (dict(paths=[]), "paths"),
    (dict(paths={}), "empty"),
    (dict(paths="circle"), "paths is a str"),
    (dict(paths=[torch.zeros(4, 2), torch.zeros(5, 2)]), "different shapes"),
    (dict(paths=X, ts=torch.linspace(0, 1, 5)), r"ts has shape \(5,\): expected \(6,\)"),
    (dict(paths=X, ts=torch.linspace(1, 0, 6)), "does not increase"),
    (dict(paths=X, ts=[0, 0.1, 0.2, float("nan"), 0.8, 1]), "does not increase"),
    (dict(paths=X, ts=torch.arange(6)), r"expected times in \[0, 1\]"),
    (dict(paths=X, color="lerned"), "lerned"),
    (dict(paths=X, labels=torch.zeros(19)), r"labels has shape \(19,\): expected \(20,\)"),
    (dict(paths=X, labels=torch.full((20,), 0.5)), "integers"),
    (dict(paths=X, labels=-torch.ones(20)), "integers"),
    (dict(paths=[X, X], color=["data"]), "color is a list of 1 for 2 panes"),
    (dict(paths=X, titles=["a", "b"]), "titles is a list of 2 for 1"),
    (dict(paths=[X, X], titles="a"), "titles is a list of 1 for 2"),
    (dict(paths=X, extent=0), "extent=0"),
    (dict(paths=X, extent=(2, 1)), "lo < hi"),
    (dict(paths=X, targets=torch.zeros(3, 3)), r"targets has shape \(3, 3\)"),
    (dict(paths=X, density=lambda x: x), "density returned shape"),
    (dict(paths=X, density=torch.zeros(3)), r"density has shape"),
    (dict(paths=X, field=lambda x, t: x[:, 0]), "field returned shape"),
    (dict(paths=X[..., 0], field=lambda x, t: x), "field is given for paths with D = 1"),
    (dict(paths=X, seconds=0), "seconds=0"),
    (dict(paths=X, tail=2), "tail=2"),
    (dict(paths=X, names="walkers"), "names is 'walkers': expected a dict"),
    (dict(paths=X, names={"arrows": "the velocity"}), r"names has \['arrows'\]: expected points, density"),
])
def test_bad_input_is_refused_with_a_reason(arguments, message):
    with pytest.raises(ValueError, match=message): play(**arguments)


# ---- pages, images, files ------------------------------------------------------------------------

# ---- what the marks are ----------------------------------------------------------------------------

def legends(scene) -> list[list[tuple[str, str]]]:
    "Kind and name of each entry, for each pane."
    return [[(kind, name) for kind, _, name in pane["legend"]] for pane in scene.pack()[0]["panes"]]


def test_a_legend_says_what_the_marks_are():
    moving, still = (lambda x, t: (-(x - t).square().sum(1)).exp()), (lambda x: (-x.square().sum(1)).exp())
    assert legends(play(X)) == [[]]
    assert legends(play([X, X], color=["exact", "learned"])) == [[("dot", "exact")], [("dot", "learned")]]
    scene = play(X, labels=torch.arange(20) % 3, density=moving, field=lambda x, t: -x, targets=X[0])
    dots = [("dot", name) for name in ("label 0", "1", "2", "data")]
    assert legends(scene) == [[*dots, ("shade", "density at this time"), ("arrow", "field")]]
    own = play(X, density=still, names=dict(points="walkers", density="where they settle"))
    assert legends(own) == [[("dot", "walkers"), ("shade", "where they settle")]]
    assert [color for _, color, _ in scene.panes[0].legend[:3]] == LABELS[:3]
    tall, plain = (Image.open(io.BytesIO(s.still())).height for s in (scene, play(X)))
    assert tall == plain and scene.still() != play(X, labels=torch.arange(20) % 3).still()


def test_a_clock_may_fall_and_have_a_name():
    rising, falling = (play(X, time="part of the way", falling=down) for down in (False, True))
    assert [s.pack()[0]["falling"] for s in (rising, falling)] == [False, True]
    assert rising._read(0.25) == "part of the way = 0.25" and falling._read(0.25) == "part of the way = 0.75"
    assert falling.still(0.25) != rising.still(0.25)


def test_the_page_needs_nothing_from_outside():
    page = play({"one": cloud(), "</script><!--": cloud()}).to_html()
    still, script = page.split("<script>")
    text = re.sub(r'[^"]{2000,}"', '"', still) + re.sub(r'"[A-Za-z0-9+/=]{2000,}"', '""', script)
    assert not re.search(r"https?:|//\w+\.|\bimport\b|\bexport\b|@import|url\(|fetch\(", text)
    assert re.findall(r'src="(.{22})', page) == ["data:image/png;base64,"]
    assert page.count("</script>") == page.count("<script>") == 1 and "<!--" not in page
    assert page.count("data:image/png;base64,") == 1
    assert "<img" not in play(cloud()).to_html(still=False)


def test_every_copy_has_its_own_name_and_equal_scenes_have_equal_data():
    pages = [play(cloud(seed=5)).to_html(still=False) for _ in range(2)]
    names = [re.search(r'data-dc="([^"]+)"', p)[1] for p in pages]
    assert names[0] != names[1] and names[0].split("-")[0] == names[1].split("-")[0]
    assert pages[0].replace(names[0], "") == pages[1].replace(names[1], "")


def test_mimebundle():
    bundle = play(cloud())._repr_mimebundle_()
    assert set(bundle) == {"text/html", "image/png", "text/plain"}
    assert base64.b64decode(bundle["image/png"]) == play(cloud()).still()
    assert bundle["text/plain"] == "Scene: 20 points at 6 times"
    assert repr(play({"a": cloud(9), "b": cloud(4)})) == "Scene: a 20 points at 9 times, b 20 points at 4 times"


@pytest.mark.parametrize("paths, options", [
    (cloud(51, 500), dict(density=lambda x: torch.exp(-x.square().sum(1)), field=lambda x, t: x,
                          targets=torch.zeros(5, 2))),
    ([cloud(6), cloud(51)], {}),
    (cloud(51, 500, 1), dict(density=lambda x: torch.exp(-x[:, 0] ** 2))),
    (cloud(51, 30, 1), dict(labels=torch.arange(30) % 4)),
])
def test_stills_are_small_images_that_change_with_time(paths, options):
    scene = play(paths, **options)
    early, late = scene.still(0.0), scene.still(1.0)
    assert early.startswith(b"\x89PNG") and late.startswith(b"\x89PNG")
    assert early != late
    assert max(len(early), len(late)) < 100_000


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_animations(tmp_path, suffix):
    path = play(cloud()).save(tmp_path / f"a{suffix}", frames=5, width=120)
    with Image.open(path) as image:
        assert image.format == suffix[1:].upper()
        assert image.n_frames == 5 and image.width == 120
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_animations_of_other_kinds_are_refused(tmp_path):
    with pytest.raises(ValueError, match="expected .gif or .webp"):
        play(cloud()).save(tmp_path / "a.mp4")
    with pytest.raises(ValueError, match="expected at least 2"):
        play(cloud()).save(tmp_path / "a.gif", frames=1)
    assert not list(tmp_path.iterdir())


# ---- live ----------------------------------------------------------------------------------------

def test_the_player_sends_each_scene_in_one_message():
    player, sent = Player(play(cloud())), []
    player.send_state = lambda key=None: sent.append({key} if isinstance(key, str) else set(key))
    player.show(play(cloud(9)))
    assert [keys for keys in sent if keys] == [{"_meta", "_data", "_revision"}]
    meta, data = play(cloud(9)).pack()
    assert player._meta == meta and player._data == data and player._revision == 1
    shown, _ = player._repr_mimebundle_()
    assert set(shown) >= {"image/png", "application/vnd.jupyter.widget-view+json"}


def test_scenes_shown_from_several_threads_arrive_whole():
    player = Player(play(cloud()))
    scenes = [play(cloud(k)) for k in (2, 5, 9)]
    packed = {len(s.panes[0].ts): s.pack()[1] for s in scenes}
    whole = []

    def receive(key=None):
        own = packed[len(player._meta["panes"][0]["ts"])]
        whole.append(own == player._data)

    def show(scene):
        for _ in range(30): player.show(scene)

    player.send_state = receive
    threads = [threading.Thread(target=show, args=(scene,)) for scene in scenes]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert player._revision == 90 and len(whole) >= 90 and all(whole)


def test_the_still_is_of_the_last_time_and_takes_titles_as_they_are():
    x = torch.randn(11, 5, generator=rng())
    scene = play(x, ts=torch.linspace(0, 0.5, 11), titles="cost $_$ <b>")
    assert scene.still() == scene.still(0.5) != scene.still(0.2)
    assert "<b>" not in scene.to_html().split("<script>")[0]
    middle = play(x, ts=torch.linspace(0, 0.5, 11), titles="cost $_$ <b>", still_at=0.2)
    assert middle.still() == scene.still(0.2) and middle.still(0.5) == scene.still()


def test_points_outside_the_view_are_counted_in_the_still():
    near = torch.zeros(3, 5)
    far = near.clone()
    far[-1] = 100.0
    assert play(near, extent=(-2, 2)).still() != play(far, extent=(-2, 2)).still()


def test_times_keep_double_precision_and_labels_may_be_a_list():
    ts = torch.tensor([0.0, 1 - 2e-8, 1.0], dtype=torch.float64)
    scene = play(torch.zeros(3, 4, 2), ts=ts, labels=list(np.zeros(4, dtype=int)))
    assert scene.panes[0].ts[1] == 1 - 2e-8
    with pytest.raises(ValueError, match="ts is str"): play(torch.zeros(3, 4, 2), ts="now")
