"""The training command, as users call it."""

import json
import math
import shutil

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from increlora_jax import train
from increlora_jax.methods.table import METHODS
from increlora_jax.run.recipes import RECIPES


def read_results(folder):
    return json.loads((folder / "results.json").read_text())


def read_metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def fail(capsys, words, status=2):
    """Run a command that must end with a status, and give what it said."""
    with pytest.raises(SystemExit) as end:
        train.main([str(word) for word in words])
    assert end.value.code == status
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def test_a_run_leaves_what_the_readme_promises(finished, tiny_model):
    results = read_results(finished)
    assert results["task"] == "sst2"
    assert results["method"] == "increlora"
    assert results["model"] == str(tiny_model)
    assert results["steps"] == 14
    assert results["rank_budget"] == results["total_rank"] == 24 == sum(results["ranks"].values())
    assert len(results["ranks"]) == 12
    grown = dict.fromkeys(results["ranks"], 1)
    for growth in results["rounds"].values():
        for name, count in growth.items():
            grown[name] += count
    assert grown == results["ranks"]
    assert list(results["rounds"]) == ["2", "4", "6"]
    assert results["step_compilations"] == 2  # one length bucket: scored, and not scored
    assert set(results["trainable_parameters"]) == {"active", "added", "buffer", "head"}
    assert results["seconds"] > results["seconds_to_first_step"] > 0
    assert results["train_tokens_per_second"] > 0
    assert results["data"]["train"] == {
        "source": "train.tsv",
        "rows": 160,
        "lines": 161,
        "labels": {"negative": 78, "positive": 82},
    }
    assert results["data"]["dev"]["rows"] == 41
    assert {"jax", "flax", "python", "increlora_jax"} <= set(results["versions"])


def test_the_metrics_log_has_every_step_and_every_evaluation(finished):
    lines = read_metrics(finished)
    steps = [line for line in lines if line["split"] == "train"]
    assert [line["step"] for line in steps] == list(range(14))
    assert [line["step"] for line in lines if line["split"] == "dev"] == [6, 12, 14]
    assert all(math.isfinite(line["loss"]) for line in steps)
    assert [line["total_rank"] for line in steps[:7]] == [12, 12, 16, 16, 20, 20, 24]


def test_the_metrics_log_has_the_ranks_of_every_round_and_the_importance_behind_them(finished):
    results = read_results(finished)
    first, *rounds = (line for line in read_metrics(finished) if line["split"] == "growth")
    assert first["step"] == 0
    assert set(first["ranks"].values()) == {1}
    assert {str(line["step"]) for line in rounds} == results["rounds"].keys()
    assert rounds[-1]["ranks"] == results["ranks"]
    assert rounds[-1]["parameters"] == results["trainable_parameters"]["active"]
    before = first
    for line in rounds:
        grown = {name for name, rank in line["ranks"].items() if rank > before["ranks"][name]}
        assert grown == results["rounds"][str(line["step"])].keys()
        others = [line["importance"][name] for name in line["importance"].keys() - grown]
        assert min(line["importance"][name] for name in grown) >= max(others)
        before = line


def test_the_resolved_configuration_is_kept(finished, toy_data):
    config = yaml.safe_load((finished / "config.yaml").read_text())
    assert config["data_dir"] == str(toy_data)
    assert config["target_rank"] == 2.0
    assert config["lora_alpha"] == RECIPES["sst2"].lora_alpha  # from the recipe, not from a flag


def test_the_saved_masks_are_the_reported_ranks(finished):
    tensors = load_file(finished / "adapter" / "adapter_model.safetensors")
    for name, rank in read_results(finished)["ranks"].items():
        assert tensors[f"{name}.adapter.active"].sum() == rank
    assert "classifier.kernel" in tensors
    assert json.loads((finished / "adapter" / "adapter_config.json").read_text())["step"] == 14


def test_the_same_command_gives_the_same_numbers(finished, short_run, tmp_path):
    again = tmp_path / "again"
    train.main([*short_run, "--output-dir", str(again)])
    names = ("loss", "grad_norm", "total_rank")
    first, second = (
        [[line[n] for n in names] for line in read_metrics(folder) if line["split"] == "train"]
        for folder in (finished, again)
    )
    assert first == second


def test_growth_is_the_same_under_accumulation(short_run, tiny_model, tmp_path):
    """Dropout off, so that the only difference is how the batch is cut up."""
    still = tmp_path / "still"
    shutil.copytree(tiny_model, still)
    config = json.loads((still / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (still / "config.json").write_text(json.dumps(config))
    words = [*short_run, "--model", str(still), "--lora-dropout", "0"]
    train.main([*words, "--output-dir", str(tmp_path / "whole")])
    cut = ["--train-batch-size", "4", "--gradient-accumulation-steps", "4"]
    train.main([*words, *cut, "--output-dir", str(tmp_path / "cut")])
    whole, parts = read_results(tmp_path / "whole"), read_results(tmp_path / "cut")
    assert whole["rounds"] == parts["rounds"]
    losses = [
        [line["loss"] for line in read_metrics(tmp_path / name) if line["split"] == "train"]
        for name in ("whole", "cut")
    ]
    np.testing.assert_allclose(*losses, rtol=2e-4)  # float32 sums in another order, 14 steps on


@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"increlora", "lora-pattern"}))
def test_every_method_trains_through_the_same_command(run_once, method):
    folder = run_once("--method", method)
    results = read_results(folder)
    counts = results["trainable_parameters"]
    is_dynamic, has_adapters = METHODS[method].changes_ranks, METHODS[method].has_adapters
    assert results["rank_budget"] == (24 if is_dynamic else None)
    assert is_dynamic or results["rounds"] == {}
    assert results["total_rank"] == (24 if has_adapters else 0)
    assert (counts["active"] > 0) == has_adapters
    assert counts["head"] > 0
    losses = [line["loss"] for line in read_metrics(folder) if line["split"] == "train"]
    assert np.mean(losses[-4:]) < np.mean(losses[:4])


def test_a_bf16_base_trains_float32_adapters(short_run, tmp_path):
    train.main([*short_run, "--dtype", "bfloat16"])
    assert read_results(tmp_path / "run")["total_rank"] == 24
    tensors = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    learned = [value for value in tensors.values() if value.dtype.kind == "f"]
    assert {value.dtype for value in learned} == {np.dtype(np.float32)}


def test_without_growth_every_rank_stays(short_run, tmp_path):
    train.main([*short_run, "--no-growth"])
    results = read_results(tmp_path / "run")
    assert results["total_rank"] == results["rank_budget"] == 12
    assert results["rounds"] == {}
    assert results["step_compilations"] == 1


def test_own_data_grows_and_goes_on_with_default_flags(toy_data, tiny_model, tmp_path, capsys):
    data, folder = shutil.copytree(toy_data, tmp_path / "data"), tmp_path / "run"
    words = ["--task", "text", "--data-dir", data, "--model", tiny_model, "--output-dir", folder]
    train.main(list(map(str, words)))
    assert (
        "--warmup-steps 1 --init-warmup 0 --incre-interval 1 --top-h 3" in capsys.readouterr().err
    )
    results = read_results(folder)
    assert (results["steps"], results["total_rank"]) == (15, 24)
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    assert (config["init_warmup"], config["incre_interval"], config["top_h"]) == (0, 1, 3)
    train.main(list(map(str, words)))  # the same command, whose settings come to the same
    assert "this run is finished" in capsys.readouterr().out


def test_a_pair_regression_reports_correlations(tiny_model, short_run, tmp_path):
    data = tmp_path / "pairs"
    data.mkdir()
    random = np.random.default_rng(1)
    for split, count in {"train": 64, "dev": 20}.items():
        rows = [f"good film\tbad plot\t{random.uniform(0, 5):.3f}" for _ in range(count)]
        rows[0] = "the\tfine film\t5.000"
        (data / f"{split}.tsv").write_text("sentence1\tsentence2\tlabel\n" + "\n".join(rows) + "\n")
    train.main([*short_run, "--task", "stsb", "--data-dir", str(data)])
    assert set(read_results(tmp_path / "run")["metrics"]) == {"pearson", "spearmanr"}


def test_tensorboard_files_on_request(short_run, tmp_path):
    train.main([*short_run, "--report-to", "tensorboard"])
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))


def test_a_run_is_not_overwritten_unasked(finished, short_run, capsys):
    before = (finished / "results.json").read_bytes()
    assert "already holds a run" in fail(capsys, [*short_run, "--no-resume"])
    said = fail(capsys, [*short_run, "--seed", "8", "--warmup-steps", "3"])
    assert "seed (saved 7, given 8), warmup_steps (saved 2, given 3)" in said
    assert (finished / "results.json").read_bytes() == before
    train.main([*short_run, "--overwrite-output-dir", "--max-steps", "13"])
    assert read_results(finished)["steps"] == 13


def test_numbers_gone_bad_stop_the_run_and_save_the_adapter(short_run, tmp_path, capsys):
    words = [*short_run, "--learning-rate", "1e30", "--max-grad-norm", "1e30"]
    assert "--learning-rate" in fail(capsys, words, status=3)
    tensors = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert all(np.isfinite(value).all() for value in tensors.values())
    assert not (tmp_path / "run" / "results.json").exists()


WRONG_FLAGS = {
    "unknown task": (["--task", "sst3"], "--task: invalid choice: 'sst3'.*did you mean sst2"),
    "unknown flag": (["--target-rnak", "2"], "--target-rnak"),
    "no number": (["--target-rank", "two"], "--target-rank: 'two' must be a finite number"),
    "negative": (["--learning-rate", "-1"], "--learning-rate -1.0 must be positive"),
    "regex without match": (["--target-modules", r"nothing\..*"], "matches no Linear.*query"),
    "broken regex": (["--target-modules", "(query"], "not a regular expression"),
    "module without match": (["--modules-to-save", "header"], "'header' matches no module"),
    "budget below the initial total": (["--initial-rank", "3"], "Raise --target-rank"),
    "rank over the matrix": (["--initial-rank", "17", "--target-rank", "20"], "--initial-rank 17"),
    "buffer over the matrix": (["--max-rank", "17"], "--max-rank 17"),
    "buffers too small": (["--max-rank", "1"], "Raise --max-rank"),
    "too few steps": (["--max-steps", "5"], "Raise --top-h.*--max-steps"),
    "no model there": (["--model", "./no/such/folder"], "no/such/folder"),
    "no data there": (["--data-dir", "./no/such/data"], "no/such/data"),
    "no config there": (["--config", "none.yaml"], "none.yaml"),
}


@pytest.mark.parametrize("case", WRONG_FLAGS)
def test_a_wrong_flag_is_named_before_anything_is_written(short_run, tmp_path, capsys, case):
    words, pattern = WRONG_FLAGS[case]
    said = fail(capsys, [*short_run, *words])
    assert np.any([pattern_found(pattern, line) for line in said.splitlines()]), said
    assert not (tmp_path / "run").exists()


def pattern_found(pattern, line):
    import re

    return re.search(pattern, line) is not None


def test_another_architecture_is_named(tiny_model, short_run, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    config = json.loads((other / "config.json").read_text()) | {"model_type": "gptj"}
    (other / "config.json").write_text(json.dumps(config))
    assert "gptj" in fail(capsys, [*short_run, "--model", other])


def test_a_bad_row_is_named_by_file_and_line(toy_data, short_run, tmp_path, capsys):
    data = tmp_path / "bad"
    shutil.copytree(toy_data, data)
    lines = (data / "train.tsv").read_text().splitlines()
    lines[4] = lines[4][:-1] + "7"
    (data / "train.tsv").write_text("\n".join(lines) + "\n")
    assert "train.tsv:5" in fail(capsys, [*short_run, "--data-dir", data])


def test_cut_examples_and_empty_texts_are_counted(toy_data, short_run, tmp_path, capsys):
    data = tmp_path / "long"
    shutil.copytree(toy_data, data)
    with (data / "dev.tsv").open("a") as file:
        file.write(" ".join(["good"] * 200_000) + "\t1\n\t0\n")  # 1 MB, and nothing
    train.main([*short_run, "--data-dir", str(data)])
    said = capsys.readouterr().err
    assert "1 of 43 dev examples cut to 16" in said
    assert "empty" in said
    assert "note: train.tsv: 160 rows of 161 lines; labels 'negative' " in said
    assert "note: dev.tsv: 43 rows of 44 lines; labels 'negative' " in said
