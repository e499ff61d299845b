"""Charts of runs: spreads, budgets, ranks and learning rates."""

import time

import jax.numpy as jnp
import numpy as np
import pytest

from increlora_jax.core.schedule import rate_at
from increlora_jax.page.parts import Figures, Table
from increlora_jax.run.history import read_groups
from increlora_jax.run.rates import list_rates
from increlora_jax.run.report_charts import (
    budget_of,
    draw_curves,
    draw_importance,
    draw_parameters,
    draw_ranks,
    draw_rates,
    draw_total_rank,
    mark_rounds,
    spread,
)
from increlora_jax.run.report_page import build_page, write_report
from increlora_jax.run.report_tables import show_configuration, show_headline
from tests.run.test_history import DEV, FINISHED, GROWTH, STEPS, write

SETTINGS = {"max_steps": 100, "warmup_steps": 10, "learning_rate": 0.01, "target_rank": 1.5}


def groups_of(*folders):
    return read_groups(folders)


def loss(history):
    return history.train.get("loss", {})


def test_the_spread_has_the_mean_and_the_ends_at_common_steps():
    curves = [[(0, 1.0), (1, 2.0), (2, 9.0)], [(0, 3.0), (1, None), (2, 3.0), (3, 1.0)]]
    mean, band = spread(curves)
    assert mean == [(0, 2.0), (1, None), (2, 6.0)]
    assert band == [(0, 1.0, 3.0), (2, 3.0, 9.0)]


def test_seeds_are_one_curve_with_a_band(tmp_path):
    folder = write(tmp_path, [], seeds="1,2")
    for seed, shift in ((1, 0.0), (2, 1.0)):
        lines = [{**line, "loss": line["loss"] + shift} for line in STEPS]
        write(folder / f"seed-{seed}", lines)
    (line,) = draw_curves(groups_of(folder), "Loss", "", loss).lines
    assert [y for _, y in line.points] == pytest.approx([1.5 - n / 10 for n in range(5)])
    np.testing.assert_allclose(line.band, [(n, 1.0 - n / 10, 2.0 - n / 10) for n in range(5)])
    assert "2 runs" in line.label


def test_long_noisy_curves_are_averaged_over_pale_steps(tmp_path):
    steps = [{"step": n, "split": "train", "loss": float(n % 2)} for n in range(1000)]
    chart = draw_curves(groups_of(write(tmp_path, steps)), "", "", loss, is_noisy=True)
    raw, mean = chart.lines
    assert raw.style == "faint"
    assert mean.points[-1] == (999, 0.5)
    assert chart.note


def test_rounds_are_marked_for_all_runs_or_for_each(tmp_path):
    later = [GROWTH[0], {**GROWTH[1], "step": 4}]
    one, same = (write(tmp_path / name, [*STEPS, *GROWTH]) for name in ("one", "same"))
    other = write(tmp_path / "other", [*STEPS, *later])
    (marks,) = mark_rounds(groups_of(one, same))
    assert (list(marks.places), marks.color) == ([3], None)
    assert [(list(m.places), m.color) for m in mark_rounds(groups_of(one, other))] == [
        ([3], 0),
        ([4], 1),
    ]


def test_the_budget_is_known_before_the_end(tmp_path):
    running = write(tmp_path / "a", [*STEPS, *GROWTH], **SETTINGS)
    fixed = write(tmp_path / "b", [*STEPS, *GROWTH], growth=False)
    given = write(tmp_path / "c", [*STEPS, *GROWTH], target_total_rank=7)
    done = write(tmp_path / "d", [*STEPS, *GROWTH], {**FINISHED, "rank_budget": 9})
    groups = groups_of(running, fixed, given, done)
    assert [budget_of(group.members[0]) for group in groups] == [3, None, 7, 9]


def test_ranks_and_parameters_are_drawn_against_the_budget(tmp_path):
    groups = groups_of(write(tmp_path, [*STEPS, *GROWTH], **SETTINGS))
    ranks, limit = draw_total_rank(groups).lines
    assert limit.label == "budget 3"
    assert {y for _, y in limit.points} == {3}
    assert ranks.points[-1] == (4, 2)
    parameters, even = draw_parameters(groups).lines
    assert parameters.points == [(0, 64), (2, 64), (3, 96), (4, 96)]
    assert {y for _, y in even.points} == {96}


def test_the_heat_map_has_a_frame_before_growth_and_one_a_round(tmp_path):
    (group,) = groups_of(write(tmp_path, [*STEPS, *GROWTH], **SETTINGS))
    chart = draw_ranks(group)
    assert [frame.label for frame in chart.frames] == [
        "before growth · total rank 2 of 3",
        "step 3 · total rank 3 of 3",
    ]
    assert [frame.values for frame in chart.frames] == [{"a": 1, "b": 1}, {"a": 2, "b": 1}]
    assert [line.label for line in draw_importance(group).lines] == ["a"]


def test_ranks_of_seeds_are_means_at_every_round_of_any(tmp_path):
    folder = write(tmp_path, [], seeds="1,2", target_rank=1.5)
    write(folder / "seed-1", [*STEPS, *GROWTH])
    write(folder / "seed-2", [*STEPS, GROWTH[0], {**GROWTH[1], "step": 4}])
    (group,) = groups_of(folder)
    frames = draw_ranks(group).frames
    assert [frame.values["a"] for frame in frames] == [1, 1.5, 2]


@pytest.mark.parametrize("shape", ["linear", "cosine", "constant_with_warmup"])
@pytest.mark.parametrize("restart", [True, False])
def test_learning_rates_are_those_of_the_schedule(shape, restart):
    settings = {**SETTINGS, "lr_scheduler_type": shape, "restart_warmup": restart}
    for born in (0, 40):
        found = dict(list_rates(settings, 100, born))
        assert min(found) == born
        assert max(found) == 99
        since = born if restart else 0
        assert found[50] == pytest.approx(_rate(shape, 50 - since, 100 - since), rel=1e-5)


def _rate(shape, age, horizon):
    if shape == "linear":
        return 0.01 * (horizon - age) / (horizon - 10)
    progress = (age - 10) / (horizon - 10) if shape == "cosine" else 0
    return 0.01 * 0.5 * (1 + np.cos(np.pi * progress))


def test_every_round_has_a_learning_rate_from_the_step_after_it(tmp_path):
    (group,) = groups_of(write(tmp_path, [*STEPS, *GROWTH], **SETTINGS))
    slots, own = draw_rates(group).lines
    assert slots.points[0] == (4, 0.0)
    assert dict(slots.points)[14] == pytest.approx(0.01)
    assert own.points[0][0] == 0
    expected = rate_at(jnp.int32(60), jnp.int32(4), learning_rate=0.01, warmup_steps=10,
                       total_steps=100)  # fmt: skip
    assert dict(slots.points)[60] == pytest.approx(float(expected), rel=1e-6)


def test_without_restarts_or_steps_there_is_the_run_alone(tmp_path):
    one = write(tmp_path / "a", [*STEPS, *GROWTH], **SETTINGS, restart_warmup=False)
    lines = [{**line, "learning_rate": 0.5} for line in STEPS]
    other = write(tmp_path / "b", [*lines, *GROWTH])
    plain, logged = groups_of(one, other)
    assert len(draw_rates(plain).lines) == 1
    (line,) = draw_rates(logged).lines
    assert {y for _, y in line.points} == {0.5}


def test_settings_that_differ_are_marked_and_first(tmp_path):
    one = write(tmp_path / "a", STEPS, learning_rate=1e-3, output_dir="x")
    other = write(tmp_path / "b", STEPS, learning_rate=2e-3, output_dir="x")
    table = show_configuration(groups_of(one, other))
    assert [list(table.rows[n]) for n in table.marked] == [["learning_rate", "0.001", "0.002"]]
    assert len(table.rows) > 70


def test_the_headline_is_side_by_side_for_one_run_and_a_table_for_several(tmp_path):
    running = write(tmp_path / "a", [*STEPS, *GROWTH, *DEV], **SETTINGS)
    done = write(tmp_path / "b", [*STEPS, *GROWTH, *DEV], FINISHED, **SETTINGS)
    alone = show_headline(groups_of(running))
    assert isinstance(alone, Figures)
    told = {one.label: (one.value, one.remark) for one in alone.figures}
    assert told["state"] == ("unfinished", "step 5 of 100")
    assert told["accuracy on dev"] == ("0.5000", "")
    assert told["total rank"] == ("3", "of a budget of 3")
    both = show_headline(groups_of(running, done))
    assert isinstance(both, Table)
    assert [row[1] for row in both.rows] == ["unfinished (step 5 of 100)", "finished (100 steps)"]


def test_a_run_without_ranks_or_steps_has_a_page(tmp_path):
    bare = write(tmp_path / "bare", [])
    flat = write(tmp_path / "flat", [{**line, "total_rank": 0} for line in STEPS], method="full")
    for folder in (bare, flat):
        page = build_page(groups_of(folder))
        assert "Ranks" not in [section.title for section in page.sections]
    assert build_page(groups_of(bare, flat)).title == "Report of 2 runs: bare, flat"


def test_a_long_run_is_reported_quickly(tmp_path):
    modules = [f"h.{layer}.{kind}" for layer in range(32) for kind in "abcdefg"]
    numbers = {"grad_norm": 1.0, "orth_loss": 0.1, "total_rank": 224, "learning_rate": 0.1}
    lines = [{"step": n, "split": "train", "loss": n % 7 / 7, **numbers} for n in range(5000)]
    lines += [
        {"step": 40 * n, "split": "growth", "total_rank": 224, "parameters": 9,
         "ranks": dict.fromkeys(modules, n + 1), "importance": dict.fromkeys(modules, 0.5)}
        for n in range(50)
    ]  # fmt: skip
    folder = write(tmp_path / "run", lines, **{**SETTINGS, "max_steps": 5000})
    write_report([folder], tmp_path / "first.html")
    begun = time.process_time()
    write_report([folder], tmp_path / "report.html")
    assert time.process_time() - begun < 2  # 0.4 s on an idle core
    assert (tmp_path / "report.html").stat().st_size < 1_000_000
