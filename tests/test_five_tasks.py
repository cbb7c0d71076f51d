"""docs/five-tasks.md: its blocks run as they stand, its table counts them, and ours are the shortest."""
from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import diffusion_course as dc
from diffusion_course.metrics import energy_distance

TEXT = (Path(__file__).parents[1] / "docs" / "five-tasks.md").read_text(encoding="utf-8")
OURS, PEERS = "ours", ("azula", "smalldiffusion", "diffusers")
TASKS = "abcde"


@dataclass(frozen=True)
class Block:
    """A block of Python of the page.

    Attributes:
        task: its letter; "" for what is given to all tasks.
        given: whether it is a given.
        library: whose it is; "" for what is given to all libraries.
        code: its text.
    """

    task: str
    given: bool
    library: str
    code: str

    @property
    def lines(self) -> int:
        """How many are neither blank nor a comment."""
        return sum(bool(line.strip()) and not line.strip().startswith("#") for line in self.code.split("\n"))


def blocks() -> list[Block]:
    """All blocks of the page, in order."""
    found = []
    for part in re.split(r"^## ", TEXT, flags=re.M):
        task = part[0] if re.match(r"[a-e]\. ", part) else ""
        for given, library, code in re.findall(r"^```python( given)?(?: (\w+))?\n(.*?)^```$", part, re.M | re.S):
            found.append(Block(task, bool(given), library, code))
    return found


BLOCKS = blocks()
SIZE = {(b.task, b.library): b.lines for b in BLOCKS if not b.given}


def run(task: str, library: str) -> dict[str, Any]:
    """The names that a task's block leaves, after what is given to it (task c has the givens of b)."""
    space: dict[str, Any] = {"__name__": "block"}
    tasks = ("", "b", "c") if task == "c" else ("", task)
    with torch.random.fork_rng(devices=[]):
        for block in BLOCKS:
            if block.given and block.task in tasks and block.library in ("", library): exec(block.code, space)
        for block in BLOCKS:
            if not block.given and (block.task, block.library) == (task, library): exec(block.code, space)
    return space


def distance(drawn: torch.Tensor, points: torch.Tensor) -> float:
    """The energy distance of samples from the points; that of two sets of such points is about 0.005."""
    return float(energy_distance(drawn, points[:1000]))


def agreement(drawn: torch.Tensor, space: dict[str, Any]) -> float:
    """The fraction of samples in the quadrant of their label."""
    return (torch.cdist(drawn, space["centers"]).argmin(1) == space["y"]).float().mean().item()


# ---- the page ----------------------------------------------------------------------------------------

def test_every_task_has_its_blocks() -> None:
    assert sorted(SIZE) == sorted((task, library) for task in TASKS for library in (OURS, *PEERS))
    assert sum(not b.given for b in BLOCKS) == len(SIZE)


def test_the_table_counts_the_blocks_and_ours_are_the_shortest() -> None:
    rows = {r[0]: [int(n) for n in r[1:]] for r in re.findall(
        r"^\| \[([a-e])\]\(#[\w-]+\) .* \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", TEXT, re.M)}
    assert rows == {task: [SIZE[task, library] for library in (OURS, *PEERS)] for task in TASKS}
    for task, (ours, *others) in rows.items(): assert ours <= min(others), task


def test_links_of_the_table_lead_to_headings() -> None:
    anchors = [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^## (.*)$", TEXT, re.M)]
    assert re.findall(r"\(#([\w-]+)\)", TEXT) == anchors


@pytest.mark.parametrize("block", BLOCKS, ids=lambda b: f"{b.task or 'all'}-{b.library or 'given'}")
def test_blocks_are_formatted_at_100_columns(block: Block) -> None:
    pytest.importorskip("ruff")
    command = [sys.executable, "-m", "ruff", "format", "--isolated", "--line-length", "100", "-"]
    formatted = subprocess.run(command, input=block.code, capture_output=True, text=True, encoding="utf-8", check=True)
    assert formatted.stdout == block.code


# ---- ours --------------------------------------------------------------------------------------------

def test_a_flow_draws_samples_near_the_points() -> None:
    space = run("a", OURS)
    assert space["drawn"].shape == (1000, 2)
    assert distance(space["drawn"], space["points"]) < 0.03 < 0.15 < distance(space["noise"], space["points"])


def test_b_ddim_is_the_formula() -> None:
    space = run("b", OURS)
    schedule = space["model"].schedule
    x = space["noise"]
    ts = torch.linspace(0, 1, 21, dtype=torch.float64)
    for t, s in zip(ts[:-1], ts[1:], strict=True):
        alpha, sigma, alpha_s, sigma_s = (float(f(r)) for r in (t, s) for f in (schedule.alpha, schedule.sigma))
        x1 = space["estimate"](x, alpha, sigma)
        x = alpha_s * x1 + sigma_s * (x - alpha * x1) / sigma
    torch.testing.assert_close(space["drawn"], x, atol=1e-4, rtol=0)
    assert distance(space["drawn"], space["points"]) < 0.03
    same = dc.sample(space["model"], space["noise"], dc.uniform_grid(20), dc.ddim())
    assert torch.equal(space["drawn"], same)


def test_c_guidance_stresses_the_label() -> None:
    space = run("c", OURS)
    plain = {w: dc.sample(dc.classifier_free(space["model"], w), space["noise"], dc.uniform_grid(20), dc.ddim(),
                          y=space["y"]) for w in (0.0, 1.0)}
    assert agreement(plain[0.0], space) < 0.35
    assert 0.9 < agreement(plain[1.0], space) < 0.985 < 0.995 < agreement(space["drawn"], space)


def test_d_a_network_of_your_own_learns_labels() -> None:
    space = run("d", OURS)
    unguided = dc.generate(space["model"], 1000, steps=20, guidance=0.0, seed=0)
    plain = dc.generate(space["model"], 1000, steps=20, y=space["y"], seed=0)
    assert agreement(unguided, space) < 0.35
    assert distance(plain, space["points"]) < 0.05
    assert agreement(space["drawn"], space) > agreement(plain, space) > 0.8


def test_e_a_unet_of_diffusers_is_a_model() -> None:
    diffusers = pytest.importorskip("diffusers")
    space = run("e", OURS)
    ddim = diffusers.DDIMScheduler.from_config(
        space["scheduler"].config, clip_sample=False, timestep_spacing="trailing")
    ddim.set_timesteps(20)
    x = space["images"]
    with torch.no_grad():
        for t in ddim.timesteps: x = ddim.step(space["unet"](x, t).sample, t, x).prev_sample
    torch.testing.assert_close(space["drawn"], x, atol=1e-4 * float(x.abs().max().clamp(min=1)), rtol=0)
    p = space["model"](space["images"], 0.5)  # what else a model can do
    torch.testing.assert_close(p.x, p.mix(space["schedule"].alpha(0.5), space["schedule"].sigma(0.5)))


# ---- theirs ------------------------------------------------------------------------------------------

@pytest.mark.parametrize("library", PEERS)
@pytest.mark.parametrize("task", TASKS)
def test_the_blocks_of_others_do_their_task(task: str, library: str) -> None:
    pytest.importorskip(library)
    if task == "e": pytest.importorskip("diffusers")
    space = run(task, library)
    drawn = space["drawn"].cpu()
    assert drawn.isfinite().all()
    if task == "a": assert distance(drawn, space["points"]) < distance(space["noise"], space["points"]) / 2
    if task == "b": assert distance(drawn, space["points"]) < 0.03
    if task in "cd": assert agreement(drawn, space) > 0.95
    if task == "e": assert drawn.shape == (4, 1, 8, 8)
