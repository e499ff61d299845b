"""Histories of runs, read back from folders that are written by hand."""

import json
import subprocess
import sys

import pytest

import increlora_jax as il
from increlora_jax.config import RunConfig
from increlora_jax.run import folder as run_folder
from increlora_jax.run import history
from increlora_jax.run.command_line import write_run
from increlora_jax.run.history import read_groups

STEPS = [{"step": n, "split": "train", "loss": 1.0 - n / 10, "total_rank": 2} for n in range(5)]
DEV = [{"step": 5, "split": "dev", "accuracy": 0.5}]
GROWTH = [
    {"step": 0, "split": "growth", "total_rank": 2, "parameters": 64, "ranks": {"a": 1, "b": 1}},
    {"step": 3, "split": "growth", "total_rank": 3, "parameters": 96, "ranks": {"a": 2, "b": 1},
     "importance": {"a": 1e-9, "b": None}},
]  # fmt: skip
FINISHED = {"metrics": {"accuracy": 0.5}, "rank_budget": 3, "total_rank": 3}


def write(folder, lines, results=None, tail="", **settings):
    folder.mkdir(parents=True, exist_ok=True)
    write_run(RunConfig().changed({"output_dir": str(folder), **settings}), folder / "config.yaml")
    text = "".join(json.dumps(line) + "\n" for line in lines) + tail
    (folder / "metrics.jsonl").write_text(text)
    if results is not None:
        (folder / "results.json").write_text(json.dumps(results))
    return folder


def read(folder):
    ((member,),) = [group.members for group in read_groups([folder])]
    return member


def test_the_files_have_the_names_that_runs_give_them():
    assert history.CONFIG == run_folder.CONFIG
    assert history.RESULTS == run_folder.RESULTS


def test_reading_needs_no_jax():
    script = "import sys, increlora_jax.run.history\nassert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_run_is_read_by_step(tmp_path):
    run = read(write(tmp_path / "run", [*STEPS, *GROWTH, *DEV], FINISHED))
    assert run.train["loss"] == {n: 1.0 - n / 10 for n in range(5)}
    assert run.dev == {"accuracy": {5: 0.5}}
    assert [(g.step, g.total_rank, g.parameters) for g in run.growth] == [(0, 2, 64), (3, 3, 96)]
    assert run.growth[1].importance == {"a": 1e-9}
    assert run.last_step == 5


def test_a_number_that_is_not_finite_is_a_gap(tmp_path):
    line = {"step": 0, "split": "train", "loss": None, "grad_norm": float("nan")}
    run = read(write(tmp_path, [line]))
    assert run.train == {"loss": {0: None}, "grad_norm": {0: None}}


@pytest.mark.parametrize("tail", ["", '{"step": 5, "spl', '{"step": 5}'])
def test_a_run_that_trains_may_have_a_torn_last_line(tmp_path, tail):
    folder = write(tmp_path, STEPS, tail=tail)
    (group,) = read_groups([folder])
    assert group.is_running
    assert group.members[0].last_step == 5


def test_a_run_that_has_just_begun_has_no_numbers(tmp_path):
    folder = write(tmp_path, [])
    (folder / "metrics.jsonl").unlink()
    assert read(folder).last_step == 0


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"step": 1, "spl', "metrics.jsonl:6: not a line of metrics"),
        ("[1]", "metrics.jsonl:6: not a line of metrics"),
        ("\udcff", "metrics.jsonl:6: not a line of metrics"),
        ('{"split": "train"}', "metrics.jsonl:6: has no step or no split"),
        ('{"step": 1, "split": "train", "loss": "x"}', "metrics.jsonl:6: loss is 'x'"),
        ('{"step": 1, "split": "growth"}', "metrics.jsonl:6: ranks, importance or parameters"),
        ('{"step": 1, "split": "growth", "ranks": {"a": "x"}}', "metrics.jsonl:6: ranks"),
        ('{"step": 1, "split": "growth", "ranks": {"a": 1}, "importance": 3}', "l:6: ranks"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, line, said):
    folder = write(tmp_path, STEPS, FINISHED)
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(line.encode("utf-8", "surrogateescape") + b"\n")
    with pytest.raises(il.InputError, match=said):
        read_groups([folder])


@pytest.mark.parametrize(
    ("results", "said"),
    [
        ({}, "neither metrics nor a summary"),
        ({"metrics": 3}, "results.json: metrics is 3"),
        ({**FINISHED, "rounds": {"x": {"a": 1}}}, "results.json: rounds"),
        ({**FINISHED, "seconds_by_phase": [1]}, "results.json: seconds_by_phase"),
    ],
)
def test_damaged_results_are_named(tmp_path, results, said):
    with pytest.raises(il.InputError, match=said):
        read_groups([write(tmp_path, STEPS, results)])


def test_ranks_of_an_older_version_are_found_backwards(tmp_path):
    rounds = {"10": {"a": 1, "b": 1}, "4": {"a": 2}}
    run = read(write(tmp_path, STEPS, {**FINISHED, "ranks": {"a": 4, "b": 2}, "rounds": rounds}))
    assert [(g.step, g.ranks) for g in run.growth] == [
        (0, {"a": 1, "b": 1}),
        (4, {"a": 3, "b": 1}),
        (10, {"a": 4, "b": 2}),
    ]


def test_each_variant_of_a_sweep_is_a_group_of_its_seeds(tmp_path):
    sweep = {"seeds": "1,2", "sweep": ["learning_rate=1e-3,2e-3"]}
    folder = write(tmp_path / "all", [], **sweep)
    for seed in (1, 2):
        for rate in ("1e-3", "2e-3"):
            write(folder / f"seed-{seed},learning_rate-{rate}", STEPS)
    groups = read_groups([folder])
    assert [group.label for group in groups] == ["learning_rate-1e-3", "learning_rate-2e-3"]
    assert [[m.config["seed"] for m in group.members] for group in groups] == [[1, 2]] * 2
    assert [group.members[0].config["learning_rate"] for group in groups] == [1e-3, 2e-3]
    assert all(member.last_step == 5 for group in groups for member in group.members)


def test_folders_of_one_name_are_labelled_by_their_paths(tmp_path):
    folders = [write(tmp_path / name / "run", STEPS) for name in "ab"]
    assert [group.label for group in read_groups(folders)] == list(map(str, folders))


def test_a_folder_without_a_run_says_what_is_needed(tmp_path):
    with pytest.raises(il.InputError, match=r"no run is here \(config.yaml is missing\)"):
        read_groups([tmp_path])
