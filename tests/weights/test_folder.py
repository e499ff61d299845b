"""Weights in and out by the table; folders, configurations and the hub."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from increlora_jax.errors import InputError
from increlora_jax.models.bert import BERT_WEIGHTS
from increlora_jax.models.registry import abstract_model, load_model
from increlora_jax.weights.folder import (
    load_weights,
    name_variables,
    read_config,
    save_weights,
)
from increlora_jax.weights.hub import resolve_model

WEIGHTS = "model.safetensors"
KERNEL = "bert.encoder.layer.1.intermediate.dense.weight"


@pytest.fixture
def edit_weights(tiny_folder):
    """Change the weights of the tiny folder by a function from keys to tensors to the same."""

    def edit(change):
        weights = load_file(tiny_folder / WEIGHTS)
        save_file(change(weights), tiny_folder / WEIGHTS)
        return tiny_folder

    return edit


def without(*names):
    return lambda weights: {
        key: value for key, value in weights.items() if not key.startswith(names)
    }


def read_parameters(model):
    return {
        path: np.asarray(variable.get_value())
        for path, variable in name_variables(model, nnx.Param).items()
    }


def assert_equal_parameters(model, other):
    jax.tree.map(np.testing.assert_array_equal, read_parameters(model), read_parameters(other))


def test_saved_weights_reload_in_pytorch(tiny_folder, make_batch, to_jax, to_torch):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model, _ = load_model(tiny_folder, num_labels=3)
    model.eval()
    reference, info = transformers.BertForSequenceClassification.from_pretrained(
        tiny_folder, num_labels=3, attn_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    with torch.no_grad():
        expected = reference.eval()(**to_torch(make_batch())).logits
    np.testing.assert_allclose(nnx.jit(model)(**to_jax(make_batch())), expected, atol=1e-5)


def test_a_round_trip_keeps_every_bit(tiny_folder, tmp_path):
    model, _ = load_model(tiny_folder, num_labels=3)
    save_weights(model, tmp_path / "again" / "deeper", BERT_WEIGHTS)
    assert [file.name for file in (tmp_path / "again" / "deeper").iterdir()] == [WEIGHTS]
    first, again = load_file(tiny_folder / WEIGHTS), load_file(tmp_path / "again/deeper" / WEIGHTS)
    jax.tree.map(np.testing.assert_array_equal, first, again)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_source_dtypes_are_cast(dtype, edit_weights):
    exact = load_file(edit_weights(dict) / WEIGHTS)
    folder = edit_weights(lambda weights: {k: v.astype(dtype) for k, v in weights.items()})
    kernel = load_model(folder, num_labels=3)[0].bert.encoder.layer[1].intermediate.dense.kernel
    assert kernel.dtype == jnp.float32
    np.testing.assert_array_equal(kernel[...].T, exact[KERNEL].astype(dtype).astype(np.float32))


def test_bfloat16_parameters_are_saved_as_such(tiny_folder, tmp_path):
    model, _ = load_model(tiny_folder, num_labels=3, param_dtype=jnp.bfloat16)
    save_weights(model, tmp_path / "half", BERT_WEIGHTS)
    again, _ = load_model(tiny_folder, num_labels=3, param_dtype=jnp.bfloat16)
    load_weights(again, tmp_path / "half", BERT_WEIGHTS)
    assert_equal_parameters(model, again)
    assert {v.dtype for v in load_file(tmp_path / "half" / WEIGHTS).values()} == {
        np.dtype(ml_dtypes.bfloat16)
    }


def test_shards_give_the_same_model(tiny_folder, tmp_path):
    weights = load_file(tiny_folder / WEIGHTS)
    keys = sorted(weights)
    folder = tmp_path / "sharded"
    folder.mkdir()
    halves = {
        "model-00001-of-00002.safetensors": keys[::2],
        "model-00002-of-00002.safetensors": keys[1::2],
    }
    for name, part in halves.items():
        save_file({key: weights[key] for key in part}, folder / name)
    index = {"weight_map": {key: name for name, part in halves.items() for key in part}}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_bytes((tiny_folder / "config.json").read_bytes())
    assert_equal_parameters(
        load_model(folder, num_labels=3)[0], load_model(tiny_folder, num_labels=3)[0]
    )


@pytest.mark.parametrize(
    "rename",
    [
        lambda key: key.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ),
        lambda key: key.removeprefix("bert."),
    ],
    ids=["gamma and beta", "bare encoder"],
)
def test_other_names_give_the_same_model(rename, edit_weights):
    plain, _ = load_model(edit_weights(dict), num_labels=3)
    folder = edit_weights(lambda weights: {rename(key): value for key, value in weights.items()})
    renamed, report = load_model(folder, num_labels=3)
    assert report.new_parameters == ()
    assert_equal_parameters(renamed, plain)


def test_a_masked_lm_checkpoint_gets_a_new_pooler_and_head(edit_weights):
    head = {
        "cls.predictions.bias": np.zeros(99, np.float32),
        "cls.predictions.decoder.weight": np.zeros((99, 32), np.float32),
        "bert.embeddings.position_ids": np.arange(64)[None],
    }
    folder = edit_weights(lambda weights: without("classifier", "bert.pooler")(weights) | head)
    model, report = load_model(folder, num_labels=2)
    assert set(report.new_parameters) == {
        f"{module}.{leaf}"
        for module in ("bert.pooler.dense", "classifier")
        for leaf in ("kernel", "bias")
    }
    assert set(report.ignored_keys) == set(head)
    assert jnp.std(model.bert.pooler.dense.kernel[...]) == pytest.approx(0.2, rel=0.1)


def test_a_head_for_other_labels_is_replaced_and_reported(tiny_folder):
    model, report = load_model(tiny_folder, num_labels=2)
    assert set(report.replaced_keys) == {"classifier.weight", "classifier.bias"}
    assert set(report.new_parameters) == {"classifier.kernel", "classifier.bias"}
    assert model.classifier.kernel.shape == (32, 2)
    assert model.classifier.kernel[...].any()


def test_missing_and_left_over_keys_are_counted_and_named(edit_weights):
    folder = edit_weights(
        lambda weights: (
            without("bert.encoder.layer.1", KERNEL)(weights)
            | {"bert.encoder.layer.2.x": np.zeros(2, np.float32)}
        )
    )
    with pytest.raises(InputError) as caught:
        load_model(folder, num_labels=3)
    message = str(caught.value)
    assert str(folder) in message
    assert "16 keys (bert.encoder.layer.1." in message
    assert "and 11 more) missing; 1 key (bert.encoder.layer.2.x) left over" in message


def test_a_wrong_shape_is_named_with_both_and_nothing_is_filled(edit_weights, make_config):
    folder = edit_weights(lambda weights: weights | {KERNEL: weights[KERNEL].T.copy()})
    model = abstract_model(make_config(), num_labels=3)
    with pytest.raises(InputError, match=rf"{KERNEL} has the shape \[32, 48\].*\[48, 32\]"):
        load_weights(model, folder, BERT_WEIGHTS)
    values = [variable.get_value() for variable in name_variables(model, nnx.Param).values()]
    assert all(isinstance(value, jax.ShapeDtypeStruct) for value in values)


def test_two_names_of_one_weight_are_refused(edit_weights):
    norm = "bert.embeddings.LayerNorm"
    folder = edit_weights(lambda weights: weights | {f"{norm}.gamma": weights[f"{norm}.weight"]})
    with pytest.raises(InputError, match=rf"two names of one weight, {norm}\.weight"):
        load_model(folder, num_labels=3)


def test_a_truncated_file_is_named(tiny_folder):
    file = tiny_folder / WEIGHTS
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match=rf"{file}: not a readable"):
        load_model(tiny_folder, num_labels=3)


def test_a_model_with_something_attached_is_not_saved(tiny_folder, tmp_path):
    model, _ = load_model(tiny_folder, num_labels=3)
    model.classifier.low_rank = nnx.Param(jnp.zeros(2))
    with pytest.raises(InputError, match=r"classifier\.low_rank.*Only a plain model"):
        save_weights(model, tmp_path / "out", BERT_WEIGHTS)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        ("{not json", ":1: not valid JSON"),
        ("[1]", "holds no JSON object"),
        ('{"hidden_size": 32}', 'no "model_type"'),
        ('{"model_type": ["bert"]}', 'no "model_type"'),
        ('{"model_type": "no_such_thing"}', "no_such_thing"),
        ('{"model_type": "bert", "hidden_size": "big"}', "hidden_size"),
        ('{"model_type": "mine", "auto_map": {"AutoConfig": "code.Mine"}}', "custom code"),
    ],
)
def test_a_config_that_cannot_be_used_is_named(content, message, tmp_path):
    (tmp_path / "code.py").write_text("raise SystemExit('the folder must never run')")
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=rf"config\.json(?s:.*){message}"):
        read_config(tmp_path)


def test_a_local_folder_is_taken_as_it_is(tmp_path):
    assert resolve_model(str(tmp_path)) == tmp_path


def test_a_subfolder_of_a_local_folder_is_taken_or_hinted_at(tmp_path):
    for name in ("checkpoint-1000", "checkpoint-500"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    inner = tmp_path / "checkpoint-500"
    assert resolve_model(str(tmp_path), subfolder="checkpoint-500") == inner
    hint = r"in checkpoint-500/, checkpoint-1000/. Give --model-subfolder checkpoint-1000"
    with pytest.raises(InputError, match=hint):
        resolve_model(str(tmp_path))
    with pytest.raises(InputError, match=r"--model-subfolder other: .* has no such folder"):
        resolve_model(str(tmp_path), subfolder="other")
    for outside in ("..", "a/../..", "/", "."):
        with pytest.raises(InputError, match="Name a folder within"):
            resolve_model(str(tmp_path), subfolder=outside)
    with pytest.raises(InputError, match="--model-revision v1 is for a model of the hub"):
        resolve_model(str(inner), "v1")


def test_an_adapter_in_the_place_of_a_model_is_named(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"this is an adapter\. Give --model the base model"):
        resolve_model(str(tmp_path))


@pytest.mark.parametrize("model", ["./absent", "/absent/folder", "~/absent", "a/b/c"])
def test_an_absent_folder_is_not_looked_for_on_the_hub(model):
    with pytest.raises(InputError, match=rf"model {model}: no such folder"):
        resolve_model(model)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "weights").touch()
    with pytest.raises(InputError, match="a file, not a folder"):
        resolve_model(str(tmp_path / "weights"))


def test_a_name_that_can_be_no_id_is_refused():
    with pytest.raises(InputError, match="neither a local folder nor a model"):
        resolve_model("not an id")


@pytest.mark.parametrize(
    "offline", [{"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}]
)
def test_an_unreachable_hub_tells_how_to_work_offline(offline, tmp_path):
    script = (
        "from increlora_jax.errors import InputError\n"
        "from increlora_jax.weights.hub import resolve_model\n"
        "try: resolve_model('google-bert/bert-base-uncased')\n"
        "except InputError as error: print(error)\n"
    )
    environment = os.environ | {"HF_HOME": str(tmp_path)} | offline  # its cache is empty
    message = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert message.startswith("model google-bert/bert-base-uncased: ")
    for remedy in ("model DIR", "hf download google-bert/bert-base-uncased", "HF_HUB_OFFLINE=1"):
        assert remedy in message


def test_a_filled_cache_serves_offline(tiny_folder, tmp_path):
    snapshots = tmp_path / "hub" / "models--me--tiny"
    snapshot = snapshots / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir(parents=True)
    tiny_folder.rename(snapshot)
    (snapshots / "refs").mkdir()
    (snapshots / "refs" / "main").write_text("0" * 40)
    script = "from increlora_jax.weights.hub import resolve_model; print(resolve_model('me/tiny'))"
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    found = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert found.strip() == str(snapshot)
