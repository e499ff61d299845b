"""The evaluation command against what training reported."""

import json
import shutil

import pytest

from increlora_jax import evaluate, train


def read(folder):
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize(("adapter", "key"), [("last", "metrics"), ("best", "best_metrics")])
def test_it_reproduces_the_run_from_disk(finished, capsys, adapter, key):
    capsys.readouterr()
    evaluate.main(["--run", str(finished), "--adapter", adapter])
    assert json.loads(capsys.readouterr().out) == read(finished)[key]


@pytest.mark.parametrize("method", ["lora", "full", "head"])
def test_it_reproduces_every_method(run_once, method):
    folder = run_once("--method", method)
    assert evaluate.evaluate(folder) == read(folder)["metrics"]


def test_other_data_gives_other_metrics(finished, toy_data, tmp_path):
    flipped = tmp_path / "flipped"
    shutil.copytree(toy_data, flipped)
    header, *rows = (flipped / "dev.tsv").read_text().splitlines()
    rows = [row[:-1] + {"0": "1", "1": "0"}[row[-1]] for row in rows]
    (flipped / "dev.tsv").write_text("\n".join([header, *rows]) + "\n")
    metrics = evaluate.evaluate(finished, data_dir=str(flipped))
    assert metrics["accuracy"] == pytest.approx(1 - read(finished)["metrics"]["accuracy"])


def test_the_run_may_be_moved(finished, tmp_path):
    moved = tmp_path / "elsewhere"
    finished.rename(moved)
    assert evaluate.evaluate(moved) == read(moved)["metrics"]


def fail(capsys, words):
    with pytest.raises(SystemExit) as end:
        evaluate.main([str(word) for word in words])
    assert end.value.code == 2
    return capsys.readouterr().err


def test_a_folder_without_a_run_is_refused(tmp_path, capsys):
    assert "holds no run" in fail(capsys, ["--run", tmp_path])


def test_a_damaged_adapter_is_refused(finished, capsys):
    file = finished / "adapter" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "adapter_model.safetensors" in fail(capsys, ["--run", finished])


def test_an_adapter_of_another_model_is_refused(finished, short_run, tmp_path, capsys):
    train.main([*short_run, "--output-dir", str(tmp_path / "wide"), "--max-rank", "16"])
    shutil.rmtree(finished / "adapter")
    shutil.copytree(tmp_path / "wide" / "adapter", finished / "adapter")
    assert "adapter of another model" in fail(capsys, ["--run", finished])
