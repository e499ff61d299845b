"""What was saved of another model, task or label set is refused by the commands, both named."""

import json
import shutil

import pytest

from increlora_jax import evaluate, train
from increlora_jax.nn.adapter_files import read_adapter_config
from increlora_jax.weights.identity import identify_model


@pytest.fixture(scope="module")
def world(tiny_model, toy_data, tmp_path_factory):
    """A model folder, data, and two runs of a head alone: on sst2, and on the same texts named."""
    folder = tmp_path_factory.mktemp("world")
    shutil.copytree(tiny_model, folder / "model")
    shutil.copytree(toy_data, folder / "data")
    (folder / "named").mkdir()
    for name in ("train.tsv", "dev.tsv"):
        header, *rows = (toy_data / name).read_text().splitlines()
        named = [row[:-1] + {"0": "bad", "1": "good"}[row[-1]] for row in rows]
        (folder / "named" / name).write_text("\n".join([header, *named]) + "\n")
    train.main(words_of(folder, "run"))
    train.main([*words_of(folder, "other"), "--task", "text", "--data-dir", str(folder / "named")])
    return folder


def words_of(folder, run):
    flags = {
        "task": "sst2", "model": folder / "model", "data-dir": folder / "data", "method": "head",
        "max-steps": 1, "max-seq-length": 16, "warmup-steps": 0, "output-dir": folder / run,
    }  # fmt: skip
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


@pytest.fixture
def copy(world, tmp_path):
    """The same, to be spoilt."""
    shutil.copytree(world, tmp_path / "world")
    folder = tmp_path / "world"
    for run in ("run", "other"):
        config = folder / run / "config.yaml"
        config.write_text(config.read_text().replace(str(world), str(folder)))
    return folder


def refuse(capsys, command, words):
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        command.main([str(word) for word in words])
    assert end.value.code == 2
    return capsys.readouterr().err


def change_weights(model):
    file = model / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def commands(folder):
    """Every way in which what a run has saved is met again."""
    yield evaluate, ["--run", folder / "run"]
    yield train, words_of(folder, "run")  # finished: it would tell its results again
    (folder / "run" / "results.json").unlink()
    yield train, words_of(folder, "run")  # begun: it would go on from its checkpoint


def test_another_base_model(copy, capsys):
    before = identify_model(copy / "model")
    change_weights(copy / "model")
    after = identify_model(copy / "model")
    for command, words in commands(copy):
        assert f"base model (saved {before}, given {after})" in refuse(capsys, command, words)


def test_another_tokenizer(copy, capsys):
    file = copy / "model" / "tokenizer.json"
    file.write_text(file.read_text() + "\n")
    for command, words in commands(copy):
        said = refuse(capsys, command, words)
        assert "was created with other inputs: tokenizer (" in said


def test_an_adapter_and_a_checkpoint_of_another_task_and_label_set(copy, capsys):
    for name in ("adapter", "checkpoints", "results.json"):
        here, there = copy / "run" / name, copy / "other" / name
        if here.is_dir():
            shutil.rmtree(here)
        (shutil.copytree if there.is_dir() else shutil.copy)(there, here)
    labels = read_adapter_config(copy / "other" / "adapter")["labels"]
    for command, words in commands(copy):
        said = refuse(capsys, command, words)
        assert "task (saved text, given sst2)" in said
        if command is train:  # an evaluation takes the adapter's
            assert f"labels (saved {json.dumps(labels)}, given [" in said


def test_what_is_the_same_elsewhere_is_taken(world, tmp_path, capsys):
    shutil.copytree(world / "model", tmp_path / "model")
    shutil.copytree(world / "run", tmp_path / "run")
    words = [
        *words_of(world, "run"),
        "--model",
        tmp_path / "model",
        "--output-dir",
        tmp_path / "run",
    ]
    train.main([str(word) for word in words])
    assert "this run is finished" in capsys.readouterr().out
