"""Several adapters over one base: each answers as alone, also within a mixed batch."""

import json
import shutil

import numpy as np
import pytest

import increlora_jax as il

TEXTS = ["good film", "bad plot", "the very good film", "awful", "fine", "not good"]


@pytest.fixture(scope="module")
def folders(run_once):
    return {
        "first": run_once(),
        "second": run_once("--seed", "8", "--lora-alpha", "5"),
        "lora": run_once("--method", "lora", "--target-rank", "3"),
    }


def numbers(answers):
    return np.array([[*answer.probabilities.values()] for answer in answers])


def test_a_mixed_batch_answers_as_each_adapter_alone(folders):
    predictor = il.load(folders)
    alone = {name: numbers(il.load(folder)(TEXTS)) for name, folder in folders.items()}
    for name, expected in alone.items():
        np.testing.assert_allclose(numbers(predictor(TEXTS, name)), expected, atol=1e-5)
    names = [list(folders)[index % 3] for index in range(len(TEXTS))]
    expected = [alone[name][index] for index, name in enumerate(names)]
    np.testing.assert_allclose(numbers(predictor(TEXTS, names)), expected, atol=1e-5)
    assert np.abs(alone["first"] - alone["second"]).max() > 1e-3


def test_an_adapter_is_added_by_name(folders):
    predictor = il.load({"first": folders["first"]})
    assert predictor.names == ("first",)
    predictor.add("lora", folders["lora"] / "adapter")
    expected = numbers(il.load(folders["lora"])(TEXTS))
    np.testing.assert_allclose(numbers(predictor(TEXTS, "lora")), expected, atol=1e-5)
    one = predictor(TEXTS[0], "first")
    assert one.label == il.load(folders["first"])(TEXTS[0]).label


def test_wrong_names_and_heads_are_refused(folders, run_once, tmp_path):
    predictor = il.load({"first": folders["first"]})
    with pytest.raises(il.InputError, match=r"adapter 'frist' is unknown.*first"):
        predictor(TEXTS, "frist")
    with pytest.raises(il.InputError, match="2 names for 6 texts"):
        predictor(TEXTS, ["first", "first"])
    for split in ("train", "dev"):
        rows = ["text\tlabel", *(f"good film\t{label}" for label in "abcabcabc")]
        (tmp_path / f"{split}.tsv").write_text("\n".join(rows) + "\n")
    three = run_once("--task", "text", "--data-dir", str(tmp_path))
    before = predictor(TEXTS, "first")
    for name in ("three", "first"):
        with pytest.raises(il.InputError, match="whose head is another"):
            predictor.add(name, three)
    assert predictor.names == ("first",)  # a failed one changes nothing
    assert predictor(TEXTS, "first") == before
    with pytest.raises(il.InputError, match="no adapters"):
        il.load({})


def test_adapters_that_read_texts_otherwise_are_refused(folders, tmp_path):
    other = shutil.copytree(folders["second"] / "adapter", tmp_path / "other")
    config = json.loads((other / "adapter_config.json").read_text())
    config["settings"]["max_seq_length"] = 5
    (other / "adapter_config.json").write_text(json.dumps(config))
    message = "answers with max_seq_length 5, and the first adapter with 16"
    with pytest.raises(il.InputError, match=message):
        il.load({"first": folders["first"], "other": other})


def test_the_best_adapters_are_loaded_if_asked(folders):
    best = il.load({"first": folders["first"]}, adapter="best")
    expected = numbers(il.load(folders["first"], adapter="best")(TEXTS))
    np.testing.assert_allclose(numbers(best(TEXTS, "first")), expected, atol=1e-5)
    with pytest.raises(il.InputError, match="choose last or best"):
        il.load({"first": folders["first"]}, adapter="worst")
    with pytest.raises(il.InputError, match="choose last or best"):
        il.load(folders["first"], adapter="worst")
    with pytest.raises(il.InputError, match="method is for a single run"):
        il.load({"first": folders["first"]}, method="a:b")
