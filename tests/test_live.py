"""What pages compute, against Python: the loop, its steps, the models of the plane, and a build."""
from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from interface import NO_BROWSER, find_browser, open_browser

from diffusion_course.distributions import running_mixture
from diffusion_course.guidance import classifier_free, tilted_log_prob
from diffusion_course.matching import MLP
from diffusion_course.predictions import Denoiser, ExactDenoiser
from diffusion_course.samplers import ddim, dpmpp_2m, euler, euler_maruyama, sample, uniform_grid
from diffusion_course.schedules import Cosine, Linear

sys.path.insert(0, str(ROOT / "site"))

import live  # noqa: E402

in_browser = [pytest.mark.browser, pytest.mark.skipif(find_browser() is None, reason=NO_BROWSER)]
assembles = pytest.mark.skipif(not live.assembled(), reason="the extra `site` lacks wasmtime")
SCRIPTS = ROOT / "site" / "live"
SAMPLERS = {
    "euler": euler(), "ddim": ddim(), "dpmpp_2m": dpmpp_2m(), "churned": euler_maruyama(1.5),
}
SCHEDULES = {"linear": Linear(), "cosine": Cosine()}
RUN = """async ([noise, { path, steps, sampler, label, w, learned, loops }]) => {
  const table = TABLES.grids[path][steps], n = noise[0].length;
  const of = learned ? network({ ...NETWORK, loops: loops ? NETWORK.loops : "" }) : (y) => exact(MIXTURE, y);
  const none = of(null), own = of(label);
  const model = w === 1 ? own : (x, at) => guided(none(x, at), own(x, at), w);
  const step = sampler === "churned" ? churned(1.5) : STEPS[sampler];
  let used = 0, last = null;
  const begin = performance.now();
  const iterates = walk(model, Float32Array.from(noise[0]), table, step, () => noise[++used]);
  for await (const { x } of iterates) last = x;
  return { x: [...last], ms: performance.now() - begin };
}"""


def small_network() -> Denoiser:
    """A network of the plane as pages have it, with weights that are random but not zero."""
    net = MLP(width=64, n_labels=3, seed=1)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad(): net.last.weight.normal_(std=0.05, generator=g)
    return Denoiser(net, Linear()).eval()


@pytest.fixture(scope="module")
def page() -> Iterator:
    """An empty page with the scripts, the tables, and the models."""
    columns = vars(running_mixture()).items()
    mixture = {name: live.numbers(value.flatten()) for name, value in columns}
    net = live.layers(small_network().net) | dict(loops=live.assembled())
    constants = dict(TABLES=live.tables(), MIXTURE=mixture, NETWORK=net)
    with open_browser() as browser:
        opened = browser.new_page()
        for name, value in constants.items():
            opened.add_script_tag(content=f"const {name} = {json.dumps(value)};")
        opened.add_script_tag(path=SCRIPTS / "core.js")
        yield opened


def both(page, n: int = 100, **q) -> tuple[torch.Tensor, torch.Tensor, float, float]:
    """The points of the page and of Python from the same noise, and how many seconds both took."""
    schedule = SCHEDULES[q["path"]]
    steps, label, w = q["steps"], q["label"], q["w"]
    z = torch.randn(steps + 1, n, 2, generator=torch.Generator().manual_seed(3))
    model = small_network() if q["learned"] else ExactDenoiser(running_mixture(), schedule)
    cond = {} if label is None else dict(y=label)
    if w != 1: model = classifier_free(model, w)
    rest = iter(z[1:])
    x0 = z[0] * schedule.sigma(0.0).float()
    begin = time.perf_counter()
    stepper = SAMPLERS[q["sampler"]]
    x = sample(model, x0, uniform_grid(steps), stepper, noise=lambda x, t, s: next(rest), **cond)
    seconds = time.perf_counter() - begin
    found = page.evaluate(RUN, [[x0.flatten().tolist(), *z[1:].flatten(1).tolist()], q])
    return torch.tensor(found["x"]).reshape(n, 2), x, found["ms"] / 1000, seconds


@pytest.mark.parametrize("sampler", SAMPLERS)
class TestPoints:
    """Points of the page are those of Python."""

    pytestmark = in_browser

    @pytest.mark.parametrize("path", SCHEDULES)
    @pytest.mark.parametrize(
        "steps, label, w", [(1, None, 1.0), (10, None, 1.0), (10, 2, 1.0), (50, 1, 3.0)])
    def test_exact(
        self, page, path: str, sampler: str, steps: int, label: int | None, w: float,
    ) -> None:
        q = dict(path=path, sampler=sampler, steps=steps, label=label, w=w, learned=False)
        mine, expected, *_ = both(page, **q)
        torch.testing.assert_close(mine, expected, atol=1e-4, rtol=0)

    @pytest.mark.parametrize("loops", [pytest.param(True, marks=assembles), False], ids=["assembled", "javascript"])
    @pytest.mark.parametrize("n, steps, label, w", [(99, 10, None, 1.0), (100, 20, 1, 3.0)])
    def test_learned(
        self, page, sampler: str, n: int, steps: int, label: int | None, w: float, loops: bool,
    ) -> None:
        q = dict(path="linear", sampler=sampler, steps=steps, label=label, w=w, learned=True, loops=loops)
        mine, expected, *_ = both(page, n, **q)
        torch.testing.assert_close(mine, expected, atol=1e-4, rtol=0)


class TestPlane:
    """The rest of what is computed in the plane."""

    pytestmark = in_browser

    def test_latency_is_printed(self, page) -> None:
        for learned in (False, True):
            q = dict(path="linear", sampler="euler", steps=50, label=None, w=1.0, learned=learned, loops=True)
            pairs = [both(page, 500, **q)[2:] for _ in range(4)]
            mine, torchs = (min(times) for times in zip(*pairs, strict=True))
            print(f"500 points, 50 steps, {'network' if learned else 'exact'}: {1000 * mine:.0f} ms,"
                  f" {mine / torchs:.1f} times torch's time")

    @assembles
    def test_an_activation_far_from_zero_stays_finite(self, page) -> None:
        found = page.evaluate("""(xs) => {
          const memory = new WebAssembly.Memory({ initial: 1 }), x = new Float32Array(memory.buffer, 0, xs.length);
          x.set(xs);
          const bytes = Uint8Array.from(atob(NETWORK.loops), (c) => c.charCodeAt(0));
          const { silu } = new WebAssembly.Instance(new WebAssembly.Module(bytes), { page: { memory } }).exports;
          silu(0, 4096, xs.length);
          return [...new Float32Array(memory.buffer, 4096, xs.length)];
        }""", xs := [-1e30, -200.0, -88.0, -20.0, -1.0, -1e-9, 0.0, 0.3, 1.0, 20.0, 200.0, 1e30])
        expected = torch.nn.functional.silu(torch.tensor(xs, dtype=torch.float64))
        torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), expected, rtol=1e-6, atol=1e-6)

    def test_densities(self, page) -> None:
        x = 2 * torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        found = page.evaluate(
            "x => [null, 1].map((y) => [...logDensity(MIXTURE, x, { alpha: 1, sigma: 0 }, y)])", x.flatten().tolist())
        none, own = (torch.tensor(row, dtype=torch.float64) for row in found)
        torch.testing.assert_close(none, running_mixture().log_prob(x), atol=1e-5, rtol=1e-5)
        tilted = tilted_log_prob(running_mixture(), 1, 3.0)(x)
        torch.testing.assert_close(-2 * none + 3 * own, tilted, atol=1e-4, rtol=1e-5)

    def test_normal_numbers(self, page) -> None:
        z = torch.tensor(page.evaluate("[...normals(5)(20001)]"))
        assert z.isfinite().all() and abs(z.mean()) < 0.03 and abs(z.std() - 1) < 0.02
        assert abs((z**4).mean() - 3) < 0.2
        assert page.evaluate("normals(5)(3)[2] === normals(5)(4)[2] && normals(6)(1)[0] !== normals(5)(1)[0]")


# ---- what a build ships --------------------------------------------------------------------------

def test_there_is_no_second_library() -> None:
    assert len((SCRIPTS / "core.js").read_text(encoding="utf-8").splitlines()) <= 300


def test_without_a_network_pages_do_without_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    def cut(*args: object, **kwargs: object) -> str: raise ConnectionError("no network")

    monkeypatch.setattr(live, "find_spec", lambda name: True)
    monkeypatch.setattr(live.pooch, "retrieve", cut)
    monkeypatch.setattr(live, "small_model", small_network)
    why = live.build(SCRIPTS, tmp_path / "live")
    assert "could not be fetched" in why
    names = {path.name for path in (tmp_path / "live").iterdir()}
    assert {"tables.js", "plane-data.js", "core.js"} <= names and "ort.mjs" not in names
    monkeypatch.setattr(live, "find_spec", lambda name: None)
    assert "onnx is not installed" in live.build(SCRIPTS, tmp_path / "live")
