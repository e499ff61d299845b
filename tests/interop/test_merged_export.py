"""Whole models: loaded by transformers, and by this project again."""

import json
import logging
from importlib.util import find_spec

import numpy as np
import pytest
from safetensors import safe_open

from increlora_jax.export import main as export
from increlora_jax.interop.merged import write_merged
from increlora_jax.interop.proof import compute_outputs, compute_torch
from increlora_jax.predict import main as predict
from increlora_jax.run.loading import load_trained
from increlora_jax.run.splits import choose_examples
from tests.families import FAMILIES

needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="pip install '.[test]'")


@needs_torch
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_computes_the_same_for_every_family(drawn_run, family, tmp_path, capsys):
    run, folder = drawn_run(family), tmp_path / "out"
    export(["--run", str(run), "--format", "merged", "--output-dir", str(folder)])
    trained = load_trained(run)
    batches, _ = choose_examples(trained)
    own = compute_outputs(trained.model, batches)
    theirs = compute_torch(trained.model, folder, batches, is_peft=False)
    for a, b in zip(own, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1, np.abs(a).max()))
    assert json.loads(capsys.readouterr().out)["differences"].keys() == {"increlora_jax", "PyTorch"}
    assert logging.getLogger("transformers").level != logging.ERROR  # silenced meanwhile only


def answers_of(capsys, folder):
    texts = ["the film was good", "a second text", "x"]
    flags = [word for text in texts for word in ("--text", text, "--text2", "no , it was not")]
    predict(["--run", str(folder), *flags])
    return capsys.readouterr().out


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_merged_model_answers_exactly_as_its_run(drawn_run, family, tmp_path, capsys):
    run, folder = drawn_run(family), tmp_path / "out"
    export(["--run", str(run), "--format", "merged", "--output-dir", str(folder)])
    capsys.readouterr()
    assert answers_of(capsys, folder) == answers_of(capsys, run) != ""
    config = json.loads((folder / "config.json").read_text())
    assert config["id2label"] == {"0": "entailment", "1": "not_entailment"}
    assert config["problem_type"] == "single_label_classification"


def test_a_large_model_is_written_in_shards_with_an_index(drawn_run, tmp_path):
    trained = load_trained(drawn_run("bert"))
    write_merged(tmp_path, trained.model, max_shard_size="50KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert len(shards) > 1
    assert shards == sorted(path.name for path in tmp_path.glob("*.safetensors"))
    batches, _ = choose_examples(trained)
    again = load_trained(tmp_path)
    for own, other in zip(
        compute_outputs(trained.model, batches), compute_outputs(again.model, batches), strict=True
    ):
        np.testing.assert_allclose(own, other, atol=1e-5)


@pytest.mark.parametrize(("dtype", "word"), [("bfloat16", "BF16"), ("float16", "F16")])
def test_another_dtype_is_that_of_every_weight(drawn_run, dtype, word, tmp_path):
    folder = tmp_path / "out"
    export(["--run", str(drawn_run("bert")), "--format", "merged", "--dtype", dtype,
            "--output-dir", str(folder)])  # fmt: skip
    with safe_open(folder / "model.safetensors", framework="numpy") as file:
        assert {file.get_slice(key).get_dtype() for key in file.keys()} == {word}  # noqa: SIM118
    assert json.loads((folder / "config.json").read_text())["dtype"] == dtype


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"task": 3}, "task is 3 where str"),
        ({"task": "chess"}, "--task chess: unknown"),
        ({"max_seq_length": "long"}, "max_seq_length"),
        ({"labels": [1, 2]}, "labels"),
        ({"labels": ["a", "b", "c"], "task": "text"}, "of another shape or other labels"),
        ({"labels": ["a", "b"]}, "has the labels"),
    ],
)
def test_a_damaged_description_is_refused_by_name(drawn_run, change, said, tmp_path, capsys):
    write_merged(tmp_path, load_trained(drawn_run("bert")).model)
    config = json.loads((tmp_path / "config.json").read_text())
    config["increlora_jax"] |= change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SystemExit) as ended:
        predict(["--run", str(tmp_path), "--text", "a", "--text2", "b"])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"problem_type": "multi_label_classification"}, "multi_label_classification"),
        ({"problem_type": "regression"}, "regression with 2 outputs"),
        ({"increlora_jax": "x"}, "increlora_jax is no object"),
        ({"architectures": ["BertModel"]}, "architectures is"),
    ],
)
def test_models_of_others_that_answer_otherwise_are_refused(
    drawn_run, change, said, tmp_path, capsys
):
    write_merged(tmp_path, load_trained(drawn_run("bert")).model)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["increlora_jax"]
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(SystemExit) as ended:
        predict(["--run", str(tmp_path), "--text", "a", "--text2", "b"])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
