"""The study that compares methods: its plan, its job arrays, and a small study carried out."""

import json
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from increlora_jax.run.command_line import parse_run

HERE = Path(__file__).parents[1] / "experiments" / "compare"
STUDIES = yaml.safe_load((HERE / "studies.yaml").read_text())["studies"]


def call(*words, **options):
    command = [sys.executable, str(HERE / "run.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.fixture
def compare(monkeypatch):
    """Give a module of the study by its name."""
    monkeypatch.syspath_prepend(str(HERE))
    return import_module


@pytest.mark.parametrize("name", STUDIES)
@pytest.mark.parametrize("is_quick", [False, True])
def test_every_variant_is_a_command(compare, name, is_quick):
    jobs = compare("plan").plan_jobs(name, is_quick=is_quick)
    assert len({json.dumps(job.key) for job in jobs}) == len(jobs)
    assert len({job.folder for job in jobs}) == len(jobs)
    for job in jobs:
        parse_run(["--task", job.task, *job.words()])


def test_every_variant_of_a_study_has_the_same_trials(compare):
    for name in STUDIES:
        jobs = compare("plan").plan_jobs(name, is_quick=False)
        assert len({(job.tuning_seed, job.seeds, str(job.grid)) for job in jobs}) == 1
        assert all(len(job.seeds) >= 3 for job in jobs)
        assert all(job.tuning_seed not in job.seeds for job in jobs)


def test_a_job_array_for_slurm_is_a_script(compare, tmp_path):
    told = call("methods", "--model", "DIR", "--data-dir", "G", "--emit", "slurm")
    count = len(compare("plan").plan_jobs("methods", is_quick=False))
    assert f"#SBATCH --array=0-{count - 1}\n" in told.stdout
    assert "run.py methods --model DIR --data-dir G --job" in told.stdout
    script = tmp_path / "job.sbatch"
    script.write_text(told.stdout)
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_a_job_set_completes_every_job(compare):
    told = call("low_resource", "--quick", "--emit", "jobset")
    job = yaml.safe_load(told.stdout)["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["completions"] == len(compare("plan").plan_jobs("low_resource", is_quick=True))
    assert "JOB_COMPLETION_INDEX" in job["template"]["spec"]["containers"][0]["command"][-1]


def test_a_study_without_its_model_or_name_is_refused():
    assert "--model and --data-dir are needed, or --quick" in call("methods").stderr
    assert "invalid choice: 'nothing'" in call("nothing").stderr


def test_held_out_rows_are_no_training_rows(compare, toy_data, tmp_path):
    plan, trials = compare("plan"), compare("trials")
    (job, *_) = plan.plan_jobs("methods", is_quick=False)
    (tmp_path / "glue").mkdir()
    (tmp_path / "glue" / job.told["folder"]).symlink_to(toy_data)
    tuned_on, reported_on = trials._prepare(job, tmp_path / "glue", tmp_path / "out")
    train, dev = ((tuned_on / f"{n}.tsv").read_text().splitlines()[1:] for n in ("train", "dev"))
    everything = (toy_data / "train.tsv").read_text().splitlines()[1:]
    assert sorted(train + dev) == sorted(everything)
    assert len(dev) == len(everything) // 10
    assert (reported_on / "dev.tsv").read_text() == (toy_data / "dev.tsv").read_text()


@pytest.fixture
def lines(compare):
    """Results of two variants on one task."""
    told = {"metric": "accuracy", "chosen": {"learning_rate": 0.01}, "parameters": 6000,
            "training_seconds": 9.0}  # fmt: skip
    values = {"lora": [0.90, 0.92, 0.91], "increlora": [0.93, 0.93, 0.95]}
    jobs = compare("plan").plan_jobs("methods", is_quick=True)[:2]
    return jobs, [{**job.key, **told, "values": values[job.variant]} for job in jobs]


def test_the_table_has_means_and_paired_differences(compare, lines, tmp_path, monkeypatch):
    render = compare("render")
    jobs, found = lines
    monkeypatch.setattr(render, "HERE", tmp_path)
    monkeypatch.setattr(render, "read_studies", compare("plan").read_studies)
    (tmp_path / "results").mkdir()
    render.render([*jobs, compare("plan").plan_jobs("methods", is_quick=True)[2]], found)
    table = (tmp_path / "results" / "methods-quick.md").read_text()
    assert "| lora | 0.9100 ± 0.0100 |  | learning_rate 0.01 | 6,000 | 9 |" in table
    # Differences 0.03, 0.01, 0.04; t of 2 degrees of freedom is 4.303.
    assert "| increlora | 0.9367 ± 0.0115 | +0.0267 (-0.0113 to +0.0646) |" in table
    assert "1 of 3 jobs are not done." in table
    assert (tmp_path / "results" / "methods-quick.png").stat().st_size > 5000


@pytest.mark.slow
def test_a_small_study_is_carried_out_once(tmp_path):
    own = tmp_path / "compare"
    shutil.copytree(HERE, own, ignore=shutil.ignore_patterns("results"))
    words = [sys.executable, str(own / "run.py"), "methods", "--quick", "--only", "lora",
             "increlora", "--output-dir", str(tmp_path / "runs")]  # fmt: skip
    first = subprocess.run(words, capture_output=True, text=True, check=True)
    assert first.stdout.count(" …") == 2
    told = [json.loads(line) for line in (own / "results" / "methods-quick.jsonl").open()]
    assert [line["variant"] for line in told] == ["lora", "increlora"]
    assert all(len(line["values"]) == 3 and len(line["trials"]) == 2 for line in told)
    assert told[0]["parameters"] == 9216  # of LoRA's rank 2 in the encoder of the package
    assert told[1]["parameters"] == pytest.approx(9216, rel=0.1)
    again = subprocess.run(words, capture_output=True, text=True, check=True)
    assert again.stdout == ""
