"""The evaluation command against what training reported."""

import json
import os
import re
import shutil

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from increlora_jax import evaluate, train
from increlora_jax.methods.table import METHODS


def read(folder):
    return json.loads((folder / "results.json").read_text())


def ask(capsys, run, *words):
    """Run the command. Give the one line that it prints."""
    capsys.readouterr()
    evaluate.main(["--run", str(run), *map(str, words)])
    (line,) = capsys.readouterr().out.splitlines()
    return json.loads(line)


@pytest.mark.parametrize(("adapter", "key"), [("last", "metrics"), ("best", "best_metrics")])
def test_it_reproduces_the_run_from_disk(finished, capsys, adapter, key):
    told = ask(capsys, finished, "--adapter", adapter)
    assert read(finished)[key].items() <= told.items()
    assert told["data"] == "run"


@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"increlora", "lora-pattern"}))
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
    assert "no trained model is here" in fail(capsys, ["--run", tmp_path])


def test_a_damaged_adapter_is_refused(finished, capsys):
    file = finished / "adapter" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "adapter_model.safetensors" in fail(capsys, ["--run", finished])


def test_an_adapter_of_another_model_is_refused(finished, short_run, tmp_path, capsys):
    flags = ["--max-rank", "16", "--max-steps", "10"]
    train.main([*short_run, "--output-dir", str(tmp_path / "wide"), *flags])
    name = "adapter/adapter_model.safetensors"
    shutil.copy(tmp_path / "wide" / name, finished / name)
    assert "adapter of another model" in fail(capsys, ["--run", finished])


def edit(folder, **changes):
    """Change settings of a run's config.yaml."""
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | changes))


def test_an_edited_configuration_changes_nothing_and_is_told(finished, capsys):
    edit(finished, lora_alpha=400.0, scaling="rsqrt", max_seq_length=3, eval_batch_size=7)
    assert evaluate.evaluate(finished) == read(finished)["metrics"]
    evaluate.main(["--run", str(finished)])
    said = capsys.readouterr().err
    for told in (
        "config.yaml says lora_alpha 400.0, the adapter was made with 16",
        "config.yaml says scaling rsqrt, the adapter was made with rank",
        "config.yaml says max_seq_length 3, the adapter was made with 16",
    ):
        assert f"note: {told}" in said
    assert "eval_batch_size" not in said


def test_an_adapter_of_an_older_version_is_read_with_the_runs_settings(finished, capsys):
    file = finished / "adapter" / "adapter_config.json"
    saved = json.loads(file.read_text())
    for name in ("settings", "columns", "dev_data"):
        del saved[name]
    file.write_text(json.dumps(saved))
    edit(finished, lora_alpha=400.0)
    told = ask(capsys, finished)
    assert read(finished)["metrics"].items() <= told.items()
    assert told["data"] == "unknown"
    evaluate.main(["--run", str(finished)])
    said = capsys.readouterr().err
    assert said.count("of an older version and holds no settings") == 1
    assert "lora_alpha 400.0, the adapter was made with 16" in said


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["classifier.bias", "bert.encoder.layer.0.output.dense.adapter.A"])
def test_an_adapter_that_is_not_finite_is_refused_by_name(name, value, finished, capsys):
    file = finished / "adapter" / "adapter_model.safetensors"
    tensors = dict(load_file(file))
    tensors[name].flat[1] = value
    save_file(tensors, file)
    assert f"{name} holds numbers that are not finite (1 of" in fail(capsys, ["--run", finished])


@pytest.fixture
def own_data(short_words, toy_data, tmp_path):
    """A run on data of its own, that may be changed."""
    folder = shutil.copytree(toy_data, tmp_path / "data")
    run = tmp_path / "own"
    words = [*short_words, "--max-steps", "10", "--eval-steps", "10"]
    train.main([*words, "--data-dir", str(folder), "--output-dir", str(run)])
    return run, folder


def test_dev_data_that_has_changed_is_refused_or_scored_on_request(own_data, capsys):
    run, folder = own_data
    (folder / "train.tsv").unlink()  # of no account
    assert ask(capsys, run)["data"] == "run"
    rows = (folder / "dev.tsv").read_text().splitlines()
    (folder / "dev.tsv").write_text("\n".join([*rows, "good\t1", "awful\t0"]) + "\n")
    said = fail(capsys, ["--run", run])
    assert "not the run's dev data: dev has changed since. Restore it, or give --data-dir" in said
    told = ask(capsys, run, "--data-dir", folder)
    assert told["data"] == "other"
    assert told["splits"]["dev"]["rows"] == 43
    evaluate.main(["--run", str(run), "--data-dir", str(folder)])
    assert "note: the data is not the run's dev data: dev\n" in capsys.readouterr().err


def test_a_split_or_a_file_is_scored_alone_with_the_adapters_labels(
    finished, toy_data, tmp_path, capsys
):
    only = tmp_path / "only-test"
    only.mkdir()
    shutil.copy(toy_data / "dev.tsv", only / "test.tsv")
    expected = read(finished)["metrics"].items()
    for words in (
        ("--data-dir", only, "--split", "test"),
        ("--file", only / "test.tsv"),
        ("--split", "dev"),
        ("--split", "validation"),
    ):
        told = ask(capsys, finished, *words)
        assert expected <= told.items()
        assert told["data"] == "run"  # by content
        assert len(told["splits"]) == 1
    # One label alone would make another task of it.
    (only / "one.csv").write_text("sentence,label\ngood film,1\n")
    told = ask(capsys, finished, "--file", only / "one.csv")
    assert told["splits"]["one.csv"]["confusion"]["labels"] == ["negative", "positive"]
    assert told["data"] == "other"
    (only / "named.jsonl").write_text('{"review": "good film", "mood": "positive"}\n')
    columns = ("--text-column", "review", "--label-column", "mood")
    told = ask(capsys, finished, "--file", only / "named.jsonl", *columns)
    assert told["splits"]["named.jsonl"]["per_class"]["positive"]["support"] == 1
    os.mkfifo(only / "pipe.tsv")
    for words, problem in (
        (("--split", ""), "--split: '' is blank"),
        (("--file", only / "none.tsv"), "--file .*none.tsv: no such file"),
        (("--file", only), "--file .*only-test: a folder, not a file"),
        (("--file", only / "pipe.tsv"), r"pipe.tsv: cannot be read \(Is a FIFO\)"),
        (("--file", only / "test.tsv", "--split", "dev"), "--file is scored alone"),
        (("--data-dir", only), "no dev file is here.* --split names another"),
    ):
        assert re.search(problem, fail(capsys, ["--run", finished, *words]))
    (only / "bare.tsv").write_text("sentence\ngood film\n")
    assert "'label'" in fail(capsys, ["--run", finished, "--file", only / "bare.tsv"])


def test_every_figure_agrees_with_scikit_learn(finished, toy_data, capsys):
    from sklearn.metrics import f1_score

    told = ask(capsys, finished)["splits"]["dev"]
    counts = np.array(told["confusion"]["counts"])
    rows = [line.split("\t")[1] for line in (toy_data / "dev.tsv").read_text().splitlines()[1:]]
    assert counts.sum(1).tolist() == [rows.count("0"), rows.count("1")]
    labels, predictions = (
        np.repeat(axis.ravel(), counts.ravel()) for axis in np.indices(counts.shape)
    )
    assert told["macro_f1"] == pytest.approx(f1_score(labels, predictions, average="macro"))
    assert told["rows"] == 41
    assert 0 < told["loss"] < 10
    assert set(told["per_class"]) == {"negative", "positive"}


def test_a_base_that_has_moved_is_given_by_model_and_another_is_refused(
    short_words, tiny_model, tmp_path, capsys
):
    base, run = shutil.copytree(tiny_model, tmp_path / "base"), tmp_path / "run"
    words = [*short_words, "--model", str(base), "--max-steps", "10"]
    train.main([*words, "--output-dir", str(run)])
    base.rename(tmp_path / "moved")
    assert "Give --model the folder" in fail(capsys, ["--run", run])
    told = ask(capsys, run, "--model", tmp_path / "moved")
    assert read(run)["metrics"].items() <= told.items()
    config = json.loads((tmp_path / "moved" / "config.json").read_text())
    (tmp_path / "moved" / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 0.1}))
    assert "base model" in fail(capsys, ["--run", run, "--model", tmp_path / "moved"])


def test_logits_that_are_not_finite_are_no_score(finished, capsys):
    file = finished / "adapter" / "adapter_model.safetensors"
    tensors = dict(load_file(file))
    tensors["classifier.kernel"][...] = np.where(np.arange(2) > 0, 3e38, -3e38)
    tensors["bert.pooler.dense.bias"][...] = 9
    save_file(tensors, file)
    said = fail(capsys, ["--run", finished])
    assert "gives logits that are not finite, of 41 of 41 dev examples" in said
    assert "RuntimeWarning" not in said


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lora_alpha", 400.0),
        ("scaling", "rsqrt"),
        ("task", "mrpc"),
        ("method", "lora"),
        ("quantize_base", "int8"),
    ],
)
def test_an_adapter_that_contradicts_its_settings_is_refused(finished, capsys, key, value):
    file = finished / "adapter" / "adapter_config.json"
    saved = json.loads(file.read_text())
    file.write_text(json.dumps(saved | {"settings": saved["settings"] | {key: value}}))
    said = fail(capsys, ["--run", finished])
    assert f"adapter_config.json: {key} is {saved[key]}, and {value} in its settings" in said


def test_an_adapter_that_contradicts_its_masks_is_refused(finished, capsys):
    file = finished / "adapter" / "adapter_config.json"
    saved = json.loads(file.read_text())
    name, rank = min(saved["ranks"].items())
    for value, shown in ({name: rank + 1}, rank + 1), ({}, None):
        ranks = {n: r for n, r in saved["ranks"].items() if n != name} | value
        file.write_text(json.dumps(saved | {"ranks": ranks}))
        said = fail(capsys, ["--run", finished])
        assert f"ranks.{name} is {shown}, and {rank} in adapter_model.safetensors" in said


def test_seeds_that_the_folder_does_not_hold_are_named(finished, capsys):
    edit(finished, seeds="1,2")
    said = fail(capsys, ["--run", finished])
    assert "config.yaml: seeds 1,2 names 2 runs" in said
    assert "no folder seed-1" in said


def test_a_run_or_an_adapter_is_no_base_model(finished, capsys):
    for model, problem in ((finished, "a run's folder"), (finished / "adapter", "an adapter")):
        said = fail(capsys, ["--run", finished, "--model", model])
        assert f"this is {problem}. Give --model the " in said


def test_runs_that_the_settings_no_longer_name_are_named(finished, tmp_path, capsys):
    whole = tmp_path / "whole"
    for name in ("seed-1", "seed-2"):
        shutil.copytree(finished, whole / name)
    shutil.copy(finished / "config.yaml", whole)
    told = "its seeds and sweep do not name {}, runs that the folder holds"
    assert told.format("seed-1, seed-2") in fail(capsys, ["--run", whole])
    shutil.copytree(finished, whole / "seed-3")
    edit(whole, seeds="1,3")
    assert told.format("seed-2") in fail(capsys, ["--run", whole])
    shutil.rmtree(finished / "adapter")
    assert "there is no adapter yet" in fail(capsys, ["--run", finished])


@pytest.mark.parametrize("key", ["task", "model", "method"])
def test_a_key_that_was_removed_is_not_the_default(finished, capsys, key):
    file = finished / "config.yaml"
    file.write_text(re.sub(rf"^{key}: .*\n", "", file.read_text(), flags=re.M))
    assert f"config.yaml: {key} is missing" in fail(capsys, ["--run", finished])
