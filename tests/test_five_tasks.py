"""docs/five-tasks.md: its blocks run as they stand, its table counts them, ours are shortest."""
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
        lines = [line.strip() for line in self.code.split("\n")]
        return sum(bool(line) and not line.startswith("#") for line in lines)


def blocks() -> list[Block]:
    """All blocks of the page, in order."""
    found = []
    for part in re.split(r"^## ", TEXT, flags=re.M):
        task = part[0] if re.match(r"[a-e]\. ", part) else ""
        fenced = re.findall(r"^```python( given)?(?: (\w+))?\n(.*?)^```$", part, re.M | re.S)
        for given, library, code in fenced:
            found.append(Block(task, bool(given), library, code))
    return found


BLOCKS = blocks()
SIZE = {(b.task, b.library): b.lines for b in BLOCKS if not b.given}


def run(task: str, library: str) -> dict[str, Any]:
    """The names that a task's block leaves, after its givens (c has those of b)."""
    space: dict[str, Any] = {"__name__": "block"}
    tasks = ("", "b", "c") if task == "c" else ("", task)
    with torch.random.fork_rng(devices=[]):
        given = [b for b in BLOCKS if b.given and b.task in tasks and b.library in ("", library)]
        own = [b for b in BLOCKS if not b.given and (b.task, b.library) == (task, library)]
        for block in given + own: exec(block.code, space)
    return space


def distance(drawn: torch.Tensor, points: torch.Tensor) -> float:
    """The energy distance of samples from the points; about 0.005 for more of the points."""
    return float(energy_distance(drawn, points[:1000]))


def agreement(drawn: torch.Tensor, space: dict[str, Any]) -> float:
    """The fraction of samples in the quadrant of their label."""
    return (torch.cdist(drawn, space["centers"]).argmin(1) == space["y"]).float().mean().item()


# ---- the page ------------------------------------------------------------------------------------

def test_every_task_has_its_blocks() -> None:
    assert sorted(SIZE) == sorted((task, library) for task in TASKS for library in (OURS, *PEERS))
    assert sum(not b.given for b in BLOCKS) == len(SIZE)


def test_the_table_counts_the_blocks_and_ours_are_the_shortest() -> None:
    rows = {r[0]: [int(n) for n in r[1:]] for r in re.findall(
        r"^\| \[([a-e])\]\(#[\w-]+\) .* \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", TEXT, re.M)}
    assert rows == {task: [SIZE[task, library] for library in (OURS, *PEERS)] for task in TASKS}
    for task, (ours, *others) in rows.items(): assert ours <= min(others), task


def test_links_of_the_table_lead_to_headings() -> None:
    headings = re.findall(r"^## (.*)$", TEXT, re.M)
    anchors = [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings]
    assert re.findall(r"\(#([\w-]+)\)", TEXT) == anchors


@pytest.mark.parametrize("block", BLOCKS, ids=lambda b: f"{b.task or 'all'}-{b.library or 'given'}")
def test_blocks_are_formatted_at_100_columns(block: Block) -> None:
    pytest.importorskip("ruff")
    command = [sys.executable, "-m", "ruff", "format", "--isolated", "--line-length", "100", "-"]
    formatted = subprocess.run(
        command, input=block.code, capture_output=True, text=True, encoding="utf-8", check=True)
    assert formatted.stdout == block.code


# ---- ours ----------------------------------------------------------------------------------------

def test_a_flow_draws_samples_near_the_points() -> None:
    space = run("a", OURS)
    assert space["drawn"].shape == (1000, 2)
    assert distance(space["noise"], space["points"]) > 0.15
    assert distance(space["drawn"], space["points"]) < 0.03


def test_b_ddim_is_the_formula() -> None:
    space = run("b", OURS)
    schedule = space["model"].schedule
    x = space["noise"]
    ts = torch.linspace(0, 1, 21, dtype=torch.float64)
    for t, s in zip(ts[:-1], ts[1:], strict=True):
        alpha, sigma = schedule.weights(t.item())
        alpha_s, sigma_s = schedule.weights(s.item())
        x1 = space["estimate"](x, alpha, sigma)
        x = alpha_s * x1 + sigma_s * (x - alpha * x1) / sigma
    torch.testing.assert_close(space["drawn"], x, atol=1e-4, rtol=0)
    assert distance(space["drawn"], space["points"]) < 0.03
    same = dc.sample(space["model"], space["noise"], dc.uniform_grid(20), dc.ddim())
    assert torch.equal(space["drawn"], same)


def test_c_guidance_stresses_the_label() -> None:
    space = run("c", OURS)
    noise, ts = space["noise"], dc.uniform_grid(20)
    weighted = lambda w: dc.classifier_free(space["model"], w)
    drawn = {w: dc.sample(weighted(w), noise, ts, dc.ddim(), y=space["y"]) for w in (0.0, 1.0)}
    assert agreement(drawn[0.0], space) < 0.35
    assert 0.9 < agreement(drawn[1.0], space) < 0.985
    assert agreement(space["drawn"], space) > 0.995


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
    scale = max(1.0, x.abs().max().item())
    torch.testing.assert_close(space["drawn"], x, atol=1e-4 * scale, rtol=0)
    p = space["model"](space["images"], 0.5)  # what else a model can do
    torch.testing.assert_close(p.x, p.mix(*space["model"].schedule.weights(0.5)))


# ---- theirs --------------------------------------------------------------------------------------

@pytest.mark.parametrize("library", PEERS)
@pytest.mark.parametrize("task", TASKS)
def test_the_blocks_of_others_do_their_task(task: str, library: str) -> None:
    pytest.importorskip(library)
    if task == "e": pytest.importorskip("diffusers")
    space = run(task, library)
    drawn = space["drawn"].cpu()
    assert drawn.isfinite().all()
    if task == "a": assert distance(drawn, space["points"]) < 0.13  # half of what noise has
    if task == "b": assert distance(drawn, space["points"]) < 0.03
    if task in "cd": assert agreement(drawn, space) > 0.95
    if task == "e": assert drawn.shape == (4, 1, 8, 8)
