"""What a known architecture offers, and models and tokenizers got ready by it."""

import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from increlora_jax.errors import InputError
from increlora_jax.models.registry import (
    MODELS,
    abstract_model,
    draw_parameters,
    find_spec,
    load_model,
)
from increlora_jax.weights.folder import name_variables, read_config
from increlora_jax.weights.tokenizer import load_tokenizer

TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "good", "film")


@pytest.fixture
def tokenizer_folder(tiny_folder):
    (tiny_folder / "vocab.txt").write_text("\n".join(TOKENS))
    return tiny_folder


def test_default_targets_are_the_six_dense_layers_of_every_layer(make_config):
    config = make_config(num_hidden_layers=6)
    model = abstract_model(config, num_labels=2)
    linears = [
        ".".join(map(str, path))
        for path, module in nnx.iter_modules(model)
        if isinstance(module, nnx.Linear)
    ]
    pattern = find_spec(config).target_modules
    targets = {path for path in linears if re.fullmatch(pattern, path)}
    ends = ("attention.self.query", "attention.self.key", "attention.self.value")
    ends += ("attention.output.dense", "intermediate.dense", "output.dense")
    assert targets == {f"bert.encoder.layer.{i}.{end}" for i in range(6) for end in ends}
    # What is not a target is trained in full.
    rest = {path for path in linears if path not in targets}
    assert rest == {"bert.pooler.dense", "classifier"}
    assert find_spec(config).modules_to_save["sequence_classification"] == ("pooler", "classifier")


def test_another_architecture_names_what_works(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "ctrl"}))
    with pytest.raises(InputError) as caught:
        load_model(tmp_path, num_labels=2)
    for part in (
        str(tmp_path),
        '"ctrl"',
        *MODELS,
        "--model microsoft/deberta-v3-base",
    ):
        assert part in str(caught.value)


def test_a_head_that_an_architecture_lacks_is_refused(make_config):
    with pytest.raises(InputError, match=r"a bert has no head for seq2seq_lm, only for sequence"):
        abstract_model(make_config(), head="seq2seq_lm")


def test_an_abstract_model_holds_no_numbers(make_config):
    model = abstract_model(make_config(), num_labels=5, param_dtype=jnp.bfloat16)
    values = [variable.get_value() for variable in name_variables(model, nnx.Variable).values()]
    assert all(isinstance(value, jax.ShapeDtypeStruct) for value in values)
    assert model.classifier.kernel.shape == (32, 5)
    assert model.classifier.kernel.dtype == jnp.bfloat16


def test_a_loaded_model_is_concrete_and_its_new_head_follows_the_seed(tiny_folder):
    models = [load_model(tiny_folder, num_labels=2, seed=seed)[0] for seed in (7, 7, 8)]
    for model in models:
        leaves = [v.get_value() for v in name_variables(model, nnx.Variable).values()]
        assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    heads = [np.asarray(model.classifier.kernel[...]) for model in models]
    np.testing.assert_array_equal(heads[0], heads[1])
    assert not np.allclose(heads[0], heads[2])
    keys = [jax.random.key_data(model.dropout.rngs.key[...]) for model in models]
    np.testing.assert_array_equal(keys[0], keys[1])
    assert (keys[0] != keys[2]).any()


def test_new_parameters_are_those_of_a_new_model(tiny_folder):
    config = read_config(tiny_folder)
    build = find_spec(config).heads["sequence_classification"]
    fresh = build(config, num_labels=2, rngs=nnx.Rngs(jax.random.key(7)))
    model, _ = load_model(tiny_folder, num_labels=2, seed=7)
    np.testing.assert_allclose(
        model.classifier.kernel[...], fresh.classifier.kernel[...], rtol=1e-6
    )


def test_tokenizer_of_minilm_pads_pairs(minilm_dir):
    batch = load_tokenizer(minilm_dir)(["a", "a b"], ["c", "d e"], padding=True)
    assert batch["input_ids"][0] == [101, 1037, 102, 1039, 102, 0, 0]
    assert batch["token_type_ids"][1] == [0, 0, 0, 0, 1, 1, 1]
    assert batch["attention_mask"] == [[1, 1, 1, 1, 1, 0, 0], [1] * 7]


def test_a_tokenizer_of_a_vocabulary_only_loads(tokenizer_folder):
    assert load_tokenizer(tokenizer_folder)("a good film")["input_ids"] == [2, 5, 6, 7, 3]


def test_a_folder_without_a_vocabulary_is_refused(tiny_folder):
    with pytest.raises(InputError, match=r"no tokenizer here.*vocab\.txt"):
        load_tokenizer(tiny_folder)


@pytest.mark.parametrize("content", ["{not json", '{"version": "1.0"}'])
def test_a_damaged_tokenizer_is_refused(content, tokenizer_folder):
    (tokenizer_folder / "tokenizer.json").write_text(content)
    with pytest.raises(InputError, match=rf"{tokenizer_folder}: transformers cannot read"):
        load_tokenizer(tokenizer_folder)


def test_a_tokenizer_that_is_too_large_is_refused(tokenizer_folder):
    vocabulary = (*TOKENS, *(f"word{i}" for i in range(100)))
    (tokenizer_folder / "vocab.txt").write_text("\n".join(vocabulary))
    with pytest.raises(InputError, match=r"108 tokens.*only 99 \(vocab_size\)"):
        load_tokenizer(tokenizer_folder)


def test_transformers_is_imported_only_when_needed():
    script = "import sys, increlora_jax.models.registry; assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_parameters_are_drawn_as_loading_draws_them(tiny_folder):
    options = {"num_labels": 7, "classifier_dropout": 0.5, "param_dtype": jnp.bfloat16}
    model, report = load_model(tiny_folder, seed=5, **options)
    drawn = draw_parameters(tiny_folder, report.new_parameters, seed=5, **options)
    loaded = name_variables(model, nnx.Param)
    assert drawn.keys() == set(report.new_parameters) != set()
    for name, value in drawn.items():
        np.testing.assert_array_equal(value, loaded[name].get_value())
