"""Runs and evaluations that ask for more memory than there is, as real processes."""

import json
import shutil
import subprocess
import sys

import pytest
import yaml

from increlora_jax.config import AdapterConfig, RunConfig, TaskConfig, TrainingConfig
from increlora_jax.run.memory_advice import advise_training

LIMITED = """
import resource, sys
import jax
from increlora_jax import {command}

compile = jax.stages.Lowered.compile

def compile_and_limit(self, *args, **kwargs):
    # Only now: LLVM ends a process that lacks memory for a program itself.
    program = compile(self, *args, **kwargs)
    held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + 50_000_000, resource.RLIM_INFINITY))
    return program

jax.stages.Lowered.compile = compile_and_limit
{command}.main(sys.argv[1:])
"""
ROWS = 100_000
"""Of 16 tokens, with 32 hidden units of four bytes, 200 MB."""


def run_limited(command, *words):
    program = LIMITED.format(command=command)
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    assert done.returncode == 5, done.stderr[-3000:]
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return said


def test_a_batch_that_no_memory_holds_is_said_in_a_line(short_run):
    words = [*short_run, "--method", "head", "--no-packing"]  # packed, few rows are needed
    said = run_limited("train", *words, "--train-batch-size", ROWS)
    assert "out of memory (" in said
    assert "--train-batch-size 50000 with --gradient-accumulation-steps 2" in said
    assert "No checkpoint was saved: add --overwrite-output-dir" in said


@pytest.mark.slow
def test_an_evaluation_that_no_memory_holds_is_said_in_a_line(run_once, toy_data, tmp_path):
    finished = shutil.copytree(run_once("--method", "head"), tmp_path / "run")
    data = shutil.copytree(toy_data, tmp_path / "large")
    (data / "dev.tsv").write_text("sentence\tlabel\n" + "good\t1\n" * ROWS)
    config = yaml.safe_load((finished / "config.yaml").read_text()) | {"eval_batch_size": ROWS}
    (finished / "config.yaml").write_text(yaml.safe_dump(config))
    said = run_limited("evaluate", "--run", finished, "--data-dir", data)
    assert "out of memory (" in said
    assert f"Lower eval_batch_size in {finished / 'config.yaml'}" in said
    assert json.loads((finished / "results.json").read_text())["steps"] == 14


def test_the_last_checkpoint_is_named(tmp_path):
    for step in (8, 14):
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
        (tmp_path / "checkpoints" / str(step) / "manifest.json").touch()
    last = tmp_path / "checkpoints" / "14"
    config = RunConfig(training=TrainingConfig(output_dir=str(tmp_path)))
    assert f"The last checkpoint is {last}, intact: --remat" in advise_training(config)


def test_only_what_helps_is_named():
    config = RunConfig(
        task=TaskConfig(dtype="bfloat16"),
        adapter=AdapterConfig(method="full"),
        training=TrainingConfig(train_batch_size=1, remat="full", output_dir="/none"),
    )
    told = advise_training(config)
    remedies = ("--gradient-acc", "--remat full", "--dtype", "--quantize-base", "--seeds")
    assert not any(remedy in told for remedy in remedies)
    assert "--max-seq-length" in told
    assert "fewer --seeds" in advise_training(RunConfig(training=TrainingConfig(seeds="1,2")))
