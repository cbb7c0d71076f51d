"""The clinic: each patient is measurably ill, its repair is right, and every wrong diagnosis is told why."""

from __future__ import annotations

import ast
import difflib
import inspect
import math
import re
from functools import cache
from itertools import pairwise

import pytest
import torch
from conftest import NBS, read
from torch import Tensor

from diffusion_course import clinic
from diffusion_course.checking import check, exercise, questions
from diffusion_course.checks import clinic as solutions
from diffusion_course.clinic import FAULTS, Chart, examine, normals
from diffusion_course.distributions import running_mixture
from diffusion_course.evaluation import frechet_distance
from diffusion_course.images import digit_classifier
from diffusion_course.matching import matching_loss
from diffusion_course.metrics import energy_distance, strays, width
from diffusion_course.plots import slope
from diffusion_course.predictions import ExactDenoiser
from diffusion_course.samplers import heun, sample, uniform_grid
from diffusion_course.schedules import Linear, marginal

LESSON = NBS / "22_clinic.ipynb"
NUMBERS = range(1, 17)
EXACT = ExactDenoiser(running_mixture(), Linear())


def broken(k: int) -> object:
    """The function of a patient, as it came."""
    return solutions.EXERCISES[f"repair_{k}"].untouched


def right(k: int) -> object:
    """The repaired function."""
    return solutions.EXERCISES[f"repair_{k}"].reference


@cache
def both(k: int) -> tuple[Chart, Chart]:
    """The charts before and after the repair."""
    return examine(k, broken(k)), examine(k, right(k))


def spread(x: Tensor) -> tuple[float, float, float]:
    """Standard deviation, strays and width of points among those of the mixture."""
    m, x = running_mixture(), x.float()
    real = m.sample(20_000, torch.Generator().manual_seed(9))
    return (
        x.std().item(),
        strays(x, m.log_prob, real),
        width(x, m.means, m.stds, m.responsibilities(x)),
    )


def agreement(chart: Chart) -> float:
    """The fraction of digits that are those they were asked for."""
    return (digit_classifier()(chart.samples) == chart.labels).double().mean().item()


# ---- where the code stands -----------------------------------------------------------------------


def folded() -> dict[str, str]:
    """The folded cells of the lesson, by the name of the function that each begins with."""
    cells = [
        c for c in read(LESSON)["cells"] if c["metadata"].get("jupyter", {}).get("source_hidden")
    ]
    return {m[1]: c["source"] for c in cells if (m := re.match(r"def (\w+)\(", c["source"]))}


def parts_of(source: str) -> str:
    """Arguments and body of the first function in a source, without its name."""
    f = next(node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef))
    f.name = "f"
    return ast.dump(f)


@pytest.mark.parametrize("k", NUMBERS)
def test_a_patient_is_the_same_in_the_lesson_and_in_the_check(k: int) -> None:
    found = folded()[right(k).__name__]
    assert parts_of(found) == parts_of(inspect.getsource(broken(k)))
    assert f'check("clinic.repair_{k}", {right(k).__name__})' in found


@pytest.mark.parametrize("k", NUMBERS)
def test_one_line_is_wrong_and_two_of_the_last_patient(k: int) -> None:
    lines = [inspect.getsource(f(k)).splitlines()[1:] for f in (broken, right)]
    changed = [line for line in difflib.ndiff(*lines) if line[0] in "+-"]
    assert len(changed) == (4 if k == 16 else 2), changed
    assert 4 <= len(lines[0]) <= 12


def test_half_are_images_and_none_is_left_out() -> None:
    assert sorted(clinic._CHARTS) == list(NUMBERS)
    shapes = [exercise(f"clinic.repair_{k}") for k in NUMBERS]
    assert all(e.untouched is not None for e in shapes)
    assert len(folded()) == len(NUMBERS)


def test_the_lesson_says_nothing_before_the_diagnosis() -> None:
    """Neither text nor open code names the fault of a patient that has not been diagnosed yet."""
    cells = read(LESSON)["cells"]
    starts = [i for i, c in enumerate(cells) if c["source"].startswith("## Patient ")]
    for k, i in zip(NUMBERS, starts, strict=True):
        shown = "\n".join(c["source"] for c in cells[i : i + 4] if not c["metadata"])
        for name in [f"diagnosis_{k}"] if k < 16 else ["diagnosis_16_pixels", "diagnosis_16_labels"]:
            assert f'"{exercise(f"clinic.{name}").answer}"' not in shown


# ---- questions -----------------------------------------------------------------------------------

QUESTIONS = dict(questions())


@pytest.mark.parametrize("name", QUESTIONS)
def test_every_other_fault_is_refused_with_its_own_hint(name: str) -> None:
    question = QUESTIONS[name]
    assert {question.answer, *question.hints} == set(FAULTS)
    assert check(name, question.answer)
    told = {fault: check(name, fault) for fault in question.hints}
    assert all(r.status == "not yet" and r.cause == "mistake" for r in told.values())
    assert len({r.message for r in told.values()}) == len(told), "two faults get the same hint"
    for fault, r in told.items():
        assert len(r.message.split()) >= 12 and f"not {fault}" not in r.message
        assert question.answer not in r.message.lower(), f"{fault}: the hint says the answer"


def test_answers_are_read_kindly() -> None:
    name = "clinic.diagnosis_1"
    assert check(name, ...).status == check(name, None).status == "not attempted"
    assert check(name, "  Start   SCALE ")
    report = check(name, "no such thing")
    assert (
        report.status == "not yet"
        and "is no name of the list" in report.message
        and "noise twice" in report.message
    )
    with pytest.raises(ValueError, match="was given int: expected a name of the list, in quotes"):
        check(name, 3)
    with pytest.raises(ValueError, match="was given str: expected a function"):
        check("clinic.repair_1", "x")


@pytest.mark.parametrize("k", NUMBERS)
def test_the_untouched_patient_is_not_attempted(k: int) -> None:
    report = check(f"clinic.repair_{k}", broken(k))
    assert report.status == "not attempted" and "when it came" in report.message
    assert check(f"clinic.repair_{k}", right(k))


def test_no_other_patient() -> None:
    with pytest.raises(ValueError, match="number is 17: expected 1 to 16"):
        examine(17, abs)


def test_normals_follow_from_the_seed() -> None:
    x = torch.zeros(1000, 2, dtype=torch.float64)
    a, b = normals(0), normals(0)
    first = a(x)
    assert first.dtype == x.dtype and torch.equal(first, b(x)) and not torch.equal(first, a(x))
    assert abs(first.std() - 1) < 0.1


# ---- the patients, one by one --------------------------------------------------------------------


def test_1_begins_with_the_wrong_spread() -> None:
    before, after = both(1)
    assert spread(before.samples)[0] < 0.2 and abs(spread(after.samples)[0] - 1.03) < 0.05
    assert before.model.schedule.sigma(0.0) == 20
    assert spread(before.samples)[1] < 0.01, "strays don't see it"
    for chart, std in ((before, 1), (after, 20)):
        assert chart.path.shape == (61, 2000, 2) and torch.equal(chart.path[-1], chart.samples)
        assert abs(chart.path[0].std() / std - 1) < 0.05


def test_2_keeps_the_values_and_loses_the_places() -> None:
    before, after = both(2)
    assert torch.equal(
        before.samples.flatten(1).sort().values, after.samples.flatten(1).sort().values
    )
    rough = [c.samples.float().diff(dim=3).abs().mean() for c in both(2)]
    assert rough[0] > 2 * rough[1]
    assert (after.samples.float() / 127.5 - 1 - after.real).abs().max() < 0.005


def test_3_is_grey_where_it_should_be_black() -> None:
    before, after = both(3)
    assert before.samples.min() == 0 and after.samples.min() == -1 == after.real.min()


def test_4_is_too_narrow_at_any_number_of_steps() -> None:
    start = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
    for steps in (50, 200):
        narrow, fine = (
            spread(f(4)(EXACT, start, uniform_grid(steps), normals(0))) for f in (broken, right)
        )
        assert narrow[2] < 0.95 and narrow[1] < 0.003
        assert 1.13 < fine[2] < 1.25 and fine[1] < 0.02
    jumps, kurtosis = increments(both(4)[0])
    assert abs(jumps - 1) < 0.05 and abs(kurtosis - 3) < 0.1


def increments(chart: Chart) -> tuple[float, float]:
    """Standard deviation and kurtosis of the steps of a path, divided by sqrt(g² h)."""
    h, t = chart.ts.diff()[:, None, None], chart.ts[:-1, None, None]
    z = chart.path.diff(dim=0) / (2 * (1 - t) * h).sqrt()
    return z.std().item(), ((z**4).mean() / (z**2).mean() ** 2).item()


def test_5_is_right_by_chance_alone() -> None:
    before, after = both(5)
    assert agreement(before) < 0.35 and agreement(after) == 1
    to_real = torch.cdist(before.samples.flatten(1), before.real.flatten(1)).amin(1)
    assert to_real.max() < 0.01, "each is a real digit"


def test_6_has_fresh_grain() -> None:
    before, after = both(6)
    edge = [c.samples[..., 0].std().item() for c in both(6)]
    assert edge[0] > 2 * edge[1] and edge[0] > 0.1 and before.real[..., 0].std() < 0.02
    assert agreement(before) > 0.95 and agreement(after) > 0.95
    x, y = (
        torch.randn(20, 1, 8, 8, generator=torch.Generator().manual_seed(5)),
        torch.arange(20) % 10,
    )
    with torch.no_grad():
        runs = [broken(6)(before.model, x, before.ts, normals(k), y) for k in (1, 2)]
    assert (runs[0] - runs[1])[..., 0].std() > 0.1, "another grain in each run"


@pytest.mark.slow
def test_7_does_not_know_the_time() -> None:
    before, after = both(7)
    x, t = before.real, torch.full((len(before.real),), 0.1)
    with torch.no_grad():
        assert torch.equal(before.model.net(x, t), before.model.net(x, t + 0.8))
        assert not torch.allclose(after.model.net(x, t), after.model.net(x, t + 0.8), atol=0.1)
        floor, ill, well = (
            matching_loss(m, before.real, generator=torch.Generator().manual_seed(0)).item()
            for m in (EXACT, before.model, after.model)
        )
    assert ill - floor > 3 * (well - floor) > 0
    assert before.history[-200:].mean() < before.history[:50].mean(), "its loss falls all the same"


def test_8_has_lost_its_order() -> None:
    start = torch.randn(200, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    truth = sample(EXACT, start, uniform_grid(300, stop=0.95), heun())
    orders = []
    for f in (broken, right):
        ends = [f(8)(EXACT, start, uniform_grid(n, stop=0.95)) for n in (20, 40, 80)]
        orders.append(
            -slope([20, 40, 80], [(end - truth).norm(dim=1).mean().item() for end in ends])
        )
    assert abs(orders[0] - 1) < 0.15 and abs(orders[1] - 2) < 0.25
    assert spread(both(8)[0].samples)[1] < 0.02, "its samples look right"


def test_9_jumps_beside_0() -> None:
    sevens = [(digit_classifier()(c.samples) == 7).reshape(4, 10).double().mean(1) for c in both(9)]
    assert sevens[0][0] == 1 and sevens[0][1] < 0.5 and sevens[0][2] == 1
    assert sevens[1][0] < 0.5 and sevens[1][1] < 0.5 and sevens[1][2] == 1
    assert torch.equal(both(9)[0].samples[10:], both(9)[1].samples[10:])


def test_10_is_worse_than_its_raw_weights() -> None:
    before, after = both(10)
    start = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
    raw = sample(before.raw, start, uniform_grid(30), heun())
    assert (
        spread(before.samples)[1] > 0.2 and spread(raw)[1] < 0.1 and spread(after.samples)[1] < 0.1
    )
    size = [
        torch.nn.utils.parameters_to_vector(m.parameters()).norm()
        for m in (before.model, after.model)
    ]
    assert abs(size[0] / size[1] - (1 - 0.999**800)) < 1e-3
    assert before.history[-100:].mean() < 1.6, "the loss is that of the raw weights"


@pytest.mark.slow
def test_11_knows_no_label() -> None:
    before, after = both(11)
    asked = before.labels < 10
    away = [torch.cdist(c.samples.flatten(1), c.real.flatten(1)).amin(1) for c in both(11)]
    assert away[0][asked].mean() > 1.3 * away[0][~asked].mean()
    classify = digit_classifier()
    found = [
        (classify(c.samples)[asked] == c.labels[asked]).double().mean() for c in (before, after)
    ]
    assert found[0] < 0.4 and found[1] > 0.8


def test_12_begins_where_the_path_does_not() -> None:
    before, after = both(12)
    near = [c.model.mixture.responsibilities(c.samples)[:, 1].mean().item() for c in both(12)]
    assert near[0] > 0.55 and abs(near[1] - 0.3125) < 0.04
    starts = [
        marginal(c.model.mixture, c.model.schedule, 0.0).means.norm(dim=1).max() for c in both(12)
    ]
    assert starts[0] > 1 and starts[1] < 0.01
    assert abs(before.model.schedule.alpha(0.0) ** 2 - 0.60) < 0.01
    assert before.model.schedule.log_snr(0.0) > -5 > after.model.schedule.log_snr(0.0)


def test_12_accepts_every_repair_that_makes_as_much_noise() -> None:
    def line(n: int, times: float = 1.0) -> Tensor:
        return times * torch.linspace(1e-4, 0.02, n, dtype=torch.float64)

    assert check("clinic.repair_12", lambda n: (1 - line(n, 1000 / n)).cumprod(0))
    assert check("clinic.repair_12", lambda n: (1 - line(n)).cumprod(0) ** (1000 / n))
    assert check("clinic.repair_12", lambda n: (1 - line(1000)).cumprod(0)[1000 // n - 1 :: 1000 // n])
    assert not check("clinic.repair_12", lambda n: (1 - line(n, 700 / n)).cumprod(0))
    assert check("clinic.repair_12", lambda n: (1 - line(1000))[:: 1000 // n].cumprod(0)).status != "solved"


def test_13_has_old_grain() -> None:
    before, after = both(13)
    x, y = (
        torch.randn(20, 1, 8, 8, generator=torch.Generator().manual_seed(5)),
        torch.arange(20) % 10,
    )
    with torch.no_grad():
        runs = {n: broken(13)(before.model, x, uniform_grid(n), y) for n in (10, 40)}
        assert torch.equal(runs[10], broken(13)(before.model, x, uniform_grid(10), y))
        fine = right(13)(before.model, x, uniform_grid(10), y)
    edge = {n: run[..., 0].std() for n, run in runs.items()}
    assert edge[10] > 1.8 * edge[40] and edge[10] > 0.1 > 0.05 > fine[..., 0].std()


def test_14_praises_what_is_bad() -> None:
    before, _ = both(14)
    others = running_mixture().sample(2000, torch.Generator().manual_seed(5))
    for f, praised in ((broken(14), True), (right(14), False)):
        assert (f(before.samples, before.real) < f(others, before.real)) == praised
    assert (
        frechet_distance(before.samples, before.real) > 0.2 > frechet_distance(others, before.real)
    )
    assert energy_distance(before.samples, before.real) > 0.1


def test_15_looks_right_but_for_its_jumps() -> None:
    before, after = both(15)
    (std, kurtosis), (std_after, kurtosis_after) = map(increments, both(15))
    assert (
        abs(std - 1) < 0.06
        and kurtosis > 7
        and abs(std_after - 1) < 0.06
        and abs(kurtosis_after - 3) < 0.1
    )
    for chart in (before, after):
        of_points = spread(chart.samples)
        assert (
            abs(of_points[0] - 1.03) < 0.05 and of_points[1] < 0.02 and 1.13 < of_points[2] < 1.27
        )


def test_16_has_two_faults_and_one_hides_the_other() -> None:
    before, after = both(16)
    assert before.samples.min() == 0 and after.samples.min() == -1
    bright = digit_classifier()(2 * before.samples - 1)
    assert torch.equal(bright, (before.labels + 1) % 10), "each is the next digit"
    assert not torch.equal(digit_classifier()(before.samples), bright), "grey digits are misread"
    assert agreement(after) == 1


# ---- the panel -----------------------------------------------------------------------------------

# score, noise, ahead, steps: the width and the increments' standard deviation that the lesson's answers name
DOSES = {
    (1.0, 1.4, 0.0, 40): (1.22, 1.44), (1.0, 1.0, 0.0, 40): (0.91, 1.05), (0.5, 0.7, 0.0, 40): (0.95, 0.75),
    (0.5, 1.0, 0.9, 10): (1.40, 1.12), (0.5, 1.0, 0.9, 100): (1.21, 1.02), (0.5, 0.7, 0.0, 100): (0.95, 0.72),
}


def panel_function() -> object:
    """`dose` of the lesson's panel, in the names that it uses."""
    source = next(c["source"] for c in read(LESSON)["cells"] if c["source"].startswith("#| ahead"))
    f = next(node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef))
    mixture = running_mixture()
    space = dict(
        points=torch.randn(1000, 2, generator=torch.Generator().manual_seed(0)), exact=EXACT, mixture=mixture,
        real=mixture.sample(40_000, torch.Generator().manual_seed(9)).chunk(2)[1], pairwise=pairwise, math=math,
        torch=torch, width=width, strays=strays, normals=normals, uniform_grid=uniform_grid,
        show_samples=lambda *args, **options: None,
    )
    exec(compile(ast.Module([f], []), "panel", "exec"), space)
    return space["dose"]


@pytest.mark.parametrize("dose", DOSES)
def test_the_panel_shows_what_its_answers_say(dose: tuple) -> None:
    shown = [float(x) for x in re.findall(r"<b>([\d.]+)</b>", panel_function()(*dose)[1])]
    assert shown == pytest.approx(DOSES[dose], abs=0.011)


# ---- hints that say what a number is -------------------------------------------------------------


def test_what_hints_say_of_single_patients_is_so() -> None:
    """Claims in the hints of one patient, measured."""
    noise, digit_noise = torch.randn(4, 2), torch.randn(2, 1, 8, 8)
    grain = both(6)[0].samples[..., 0].double()
    kurtosis = ((grain - grain.mean()) ** 4).mean() / grain.var() ** 2
    assert abs(kurtosis - 3) < 0.4
    model = both(6)[0].model
    with torch.no_grad():
        assert torch.equal(model(digit_noise, 0.3).velocity, model(digit_noise, 0.3).velocity)
    assert EXACT.schedule.alpha(0.0) == 0 and EXACT.schedule.log_snr(0.0) < -5
    assert both(1)[0].model.schedule.log_snr(0.0) < -5
    assert torch.equal(EXACT(noise, 0.3).x1, EXACT(noise, 0.3).x1)
    raw = both(10)[0].raw
    with torch.no_grad():
        assert not torch.allclose(raw(noise, 0.1).velocity, raw(noise, 0.9).velocity, atol=0.1)
    images, labels = solutions.EXERCISES["repair_5"].untouched(*clinic._real_digits(), 0)
    same = (
        torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        .expand(10, -1, -1, -1)
        .clone()
    )
    _, ten = clinic._remembered(images, labels, torch.arange(10), same)
    assert torch.cdist(ten.flatten(1), ten.flatten(1)).add(torch.eye(10) * 9).min() > 0.1, (
        "ten different digits"
    )
