"""Runs that train together, through the commands: each ends as it does alone."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from increlora_jax import evaluate, train
from increlora_jax.run.command_line import parse_run
from increlora_jax.run.folder import RESULTS
from increlora_jax.runtime.signals import Preempted
from tests.conftest import WORDS
from tests.tiny import without
from tests.training.test_loop import SignalAt

RTOL, ATOL = 1e-4, 1e-5
"""Sums over a batch in another order, in float32, over 14 steps of rate 1e-2."""

SEEDS = ("41", "42", "43")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Sentences to train on, of which few are too long for a batch of 16 tokens."""
    folder, draw = tmp_path_factory.mktemp("data"), np.random.default_rng(3)
    for split, count, longest in (("train", 160, 20), ("dev", 41, 12)):
        lengths = draw.choice([3, 6, 9, longest], size=count, p=[0.33, 0.33, 0.33, 0.01])
        texts = [" ".join(draw.choice(WORDS, size=length)) for length in lengths]
        rows = [f"{text}\t{int(text.startswith(('g', 'b', 'f')))}" for text in texts]
        (folder / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *rows]) + "\n")
    return folder


@pytest.fixture(scope="module")
def words(short_words, data):
    """A command that seeds can be added to."""
    seedless = without(short_words, "--seed")
    more = ["--data-dir", str(data), "--max-seq-length", "32", "--train-batch-size", "8"]
    few = ["--target-modules", "query", "value", "--top-h", "1"]  # of four; compiles sooner
    return [*seedless, *more, *few, "--lora-dropout", "0.1"]


@pytest.fixture(scope="module")
def still(tiny_model, tmp_path_factory):
    """Flags of a run without dropout that ends before a step goes unscored."""
    folder = tmp_path_factory.mktemp("model") / "still"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return ["--model", str(folder), "--lora-dropout", "0", "--max-steps", "10"]


@pytest.fixture(scope="module")
def finish(words, tmp_path_factory):
    """Carry a run to its end. Give its folder."""
    folder = tmp_path_factory.mktemp("runs")

    def run(name, *more):
        own = without(words, "--learning-rate") if "--sweep" in more else words
        train.main([*own, "--output-dir", str(folder / name), *more])
        return folder / name

    return run


@pytest.fixture(scope="module")
def whole(finish, still):
    """Two runs that have trained together."""
    return finish("whole", *still, "--seeds", "41,42")


@pytest.fixture
def two(whole, tmp_path):
    """A copy of it."""
    return shutil.copytree(whole, tmp_path / "two")


def read(folder):
    return json.loads((folder / RESULTS).read_text())


def lines(folder, split="train"):
    found = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in found if line["split"] == split]


def column(folder, name):
    return [line[name] for line in lines(folder)]


def tensors(folder):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def assert_same_run(member, alone, orth_atol=ATOL, array_atol=10 * ATOL):
    """Growth and metrics exactly, numbers to float tolerance."""
    for name in ("rounds", "ranks", "metrics", "best_metrics", "skipped_steps", "identity"):
        assert read(member)[name] == read(alone)[name], name
    for name in ("step", "tokens", "total_rank"):
        assert column(member, name) == column(alone, name)
    assert lines(member, "dev") == lines(alone, "dev")
    for name, atol in {
        "loss": ATOL, "learning_rate": ATOL, "grad_norm": ATOL, "orth_loss": orth_atol
    }.items():  # fmt: skip
        np.testing.assert_allclose(column(member, name), column(alone, name), RTOL, atol)
    got, expected = tensors(member), tensors(alone)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        if value.dtype.kind == "f":
            np.testing.assert_allclose(got[name], value, RTOL, array_atol, err_msg=name)
        else:
            np.testing.assert_array_equal(got[name], value, err_msg=name)
    settings = [yaml.safe_load((f / "config.yaml").read_text()) for f in (member, alone)]
    assert {k for k in settings[0] if settings[0][k] != settings[1][k]} == {"output_dir"}
    assert {p.name for p in member.iterdir()} == {p.name for p in alone.iterdir()} - {"checkpoints"}


def rounds(folder):
    return json.dumps(read(folder)["rounds"])


def test_every_seed_ends_as_alone_with_dropout_at_one_length(finish):
    flags = ["--pad-to-max-length"]
    together = finish("together", *flags, "--seeds", ",".join(SEEDS))
    for seed in SEEDS:
        assert_same_run(together / f"seed-{seed}", finish(seed, *flags, "--seed", seed))
    assert len({rounds(together / f"seed-{seed}") for seed in SEEDS}) == len(SEEDS)
    assert read(together)["step_compilations"] == 2  # scored and not, though they grow apart


def test_without_dropout_batches_of_other_shapes_agree_too(whole, finish, still):
    alone = [finish(f"still-{seed}", *still, "--seed", seed) for seed in ("41", "42")]
    for folder, seed in zip(alone, ("41", "42"), strict=True):
        assert_same_run(whole / f"seed-{seed}", folder)
        assert read(folder)["step_compilations"] == 1  # all batches are packed into one shape
    assert rounds(alone[0]) != rounds(alone[1])


def test_packed_runs_grow_and_learn_as_padded_ones(whole, finish, still):
    together = finish("padded", *still, "--no-packing", "--seeds", "41,42")
    for seed in ("41", "42"):
        packed, padded = (folder / f"seed-{seed}" for folder in (whole, together))
        for name in ("rounds", "ranks", "metrics"):
            assert read(packed)[name] == read(padded)[name]
        assert column(packed, "tokens") == column(padded, "tokens")
        np.testing.assert_allclose(column(packed, "loss"), column(padded, "loss"), RTOL, ATOL)
    assert 0 < read(whole)["padding_share"] < read(together)["padding_share"]


def test_a_sweep_ends_as_its_runs_do_alone(finish, still):
    flags = [*still, "--pad-to-max-length"]
    swept = finish("swept", *flags, "--sweep", "learning_rate=5e-3,2e-2", "lora_alpha=8,16")
    own = ["--learning-rate", "2e-2", "--lora-alpha", "8"]
    alone = finish("swept-alone", *flags, *own)
    assert_same_run(swept / "learning_rate-2e-2,lora_alpha-8", alone)
    told = evaluate.evaluate(swept / "learning_rate-2e-2,lora_alpha-8")
    assert told == read(alone)["metrics"]
    settings = [variant["settings"] for variant in read(swept)["variants"]]
    assert settings[1] == {"learning_rate": 5e-3, "lora_alpha": 16.0}
    assert len(settings) == 4


def test_a_finished_whole_tells_again_and_another_is_refused(two, words, still, capsys):
    command = [*words, *still, "--output-dir", str(two), "--seeds"]
    before = (two / RESULTS).stat().st_mtime_ns
    train.main([*command, "41,42"])
    values = [read(two / name)["metrics"]["accuracy"] for name in ("seed-41", "seed-42")]
    said = capsys.readouterr().out
    told = f"accuracy {np.mean(values):.4f} ± {np.std(values, ddof=1):.4f} (mean ± sample stand"
    assert f"this run is finished: {told}" in said
    assert (two / RESULTS).stat().st_mtime_ns == before
    with pytest.raises(SystemExit):
        train.main([*command, "41,43"])
    assert "seeds (saved 41,42, given 41,43)" in capsys.readouterr().err


def test_one_of_them_is_a_finished_run_of_its_own(whole, capsys):
    train.main(["--config", str(whole / "seed-42" / "config.yaml")])
    assert "this run is finished" in capsys.readouterr().out


def test_the_whole_is_evaluated_run_by_run(two, capsys):
    capsys.readouterr()
    evaluate.main(["--run", str(two), "--adapter", "best"])
    told = json.loads(capsys.readouterr().out)
    assert list(told) == ["seed-41", "seed-42"]
    for name, of_one in told.items():
        assert read(two / name)["best_metrics"].items() <= of_one.items()
        assert of_one["data"] == "run"


def test_stopped_runs_go_on_as_if_nothing_had_been(whole, words, still, tmp_path):
    command = [*words, *still, "--output-dir", str(tmp_path / "stopped"), "--seeds", "41,42"]
    for at in (1, 7):
        stop = SignalAt(at)
        with stop.listening(), pytest.raises(Preempted):
            train.train(parse_run(command), stop)
    train.main(command)
    for name in ("seed-41", "seed-42"):
        stopped, expected = tmp_path / "stopped" / name, whole / name
        for file in ("metrics.jsonl", "adapter/adapter_model.safetensors"):
            assert (stopped / file).read_bytes() == (expected / file).read_bytes()
        assert read(stopped)["rounds"] == read(expected)["rounds"]


def test_a_frozen_parameter_that_each_seed_would_draw_anew_is_refused(
    words, tiny_model, tmp_path, capsys
):
    bare = tmp_path / "bare"
    shutil.copytree(tiny_model, bare)
    kept = {n: v for n, v in load_file(bare / "model.safetensors").items() if "pooler" not in n}
    save_file(kept, bare / "model.safetensors")
    flags = ["--model", str(bare), "--modules-to-save", "classifier", "--seeds", "1,2"]
    with pytest.raises(SystemExit):
        train.main([*words, *flags, "--output-dir", str(tmp_path / "run")])
    assert "pooler" in (said := capsys.readouterr().err)
    assert "--modules-to-save" in said


@pytest.mark.slow
def test_the_demo_ends_as_alone(tmp_path):
    flags = {"target-rank": 3, "init-warmup": 10, "incre-interval": 5, "lora-dropout": 0.1}
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    command = ["--task", "demo", "--max-steps", "80", "--pad-to-max-length", *words]
    train.main([*command, "--seeds", ",".join(SEEDS), "--output-dir", str(tmp_path / "all")])
    for seed in SEEDS:
        train.main([*command, "--seed", seed, "--output-dir", str(tmp_path / seed)])
        # Adam enlarges the rounding of gradients near 0, by up to 1e-2 a step at this rate: A and B
        # differed by 5e-4 where the losses of all 80 steps agree to 1e-5.
        pair = tmp_path / "all" / f"seed-{seed}", tmp_path / seed
        assert_same_run(*pair, orth_atol=10 * RTOL, array_atol=20 * RTOL)
    assert len({rounds(tmp_path / seed) for seed in SEEDS}) == len(SEEDS)


@pytest.mark.slow
def test_runs_on_a_mesh_end_as_one_alone_on_one_device(finish, words, still, tmp_path):
    flags = [*still, "--lora-dropout", "0.1", "--pad-to-max-length", "--eval-batch-size", "8"]
    alone = finish("one-device", *flags, "--seed", "41")
    mesh = ["--mesh", "data=2,tensor=2", "--output-dir", str(tmp_path / "m")]
    command = [sys.executable, "-m", "increlora_jax.train", *words, *flags, "--seeds", "41,42"]
    devices = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    subprocess.run([*command, *mesh], env=os.environ | devices, check=True)
    expected, got = alone, tmp_path / "m" / "seed-41"
    assert rounds(got) == rounds(expected)
    np.testing.assert_allclose(column(got, "loss"), column(expected, "loss"), RTOL, ATOL)
