"""T5 and mT5 against PyTorch's transformers, and their own invariants."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from increlora_jax.errors import InputError
from increlora_jax.models.registry import abstract_model, load_model
from increlora_jax.models.t5 import (
    T5,
    T5_WEIGHTS,
    T5ForConditionalGeneration,
    T5ForSequenceClassification,
)
from increlora_jax.models.t5_layers import find_buckets, skew
from increlora_jax.weights.folder import load_weights, read_config, save_weights
from tests import seq2seq

TINY = {
    "vocab_size": seq2seq.VOCAB,
    "d_model": 32,
    "d_kv": 6,
    "d_ff": 40,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    # Few and near, so that the longest distances of the tests share the last bucket.
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": seq2seq.EOS,
}
FIRST = {"feed_forward_proj": "relu"}
SECOND = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}


def make_reference(folder, head="ConditionalGeneration", family="T5", **settings):
    name, model_type = f"{family}For{head}", family.lower()
    return seq2seq.make_reference(name, model_type, folder, **(TINY | settings))


def make_config(**settings):
    transformers = pytest.importorskip("transformers")
    return transformers.T5Config(**(TINY | settings))


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A model of the first version, its folder, and ours."""
    folder = tmp_path_factory.mktemp("t5")
    reference = make_reference(folder, **FIRST)
    model, _ = load_model(folder, head="seq2seq_lm")
    model.eval()
    return reference, folder, model


@pytest.mark.parametrize(
    ("family", "settings"),
    [("T5", FIRST), ("T5", SECOND), ("MT5", {"feed_forward_proj": "gated-silu", "num_layers": 1})],
)
def test_logits_loss_and_gradients_equal_pytorch(family, settings, tmp_path):
    reference = make_reference(tmp_path, family=family, **settings)
    seq2seq.compare_language_model(reference, tmp_path)


def test_classifier_and_question_answerer_equal_pytorch(tmp_path):
    seq2seq.compare_sentence_heads(partial(make_reference, **SECOND), tmp_path)


def test_one_token_at_a_time_equals_all_at_once(first):
    seq2seq.compare_step_by_step(first[2])


@pytest.mark.parametrize("num_beams", [1, 3])
def test_generation_equals_pytorch(num_beams, first):
    reference, _, model = first
    seq2seq.compare_generation(reference, model, num_beams)


def test_saved_weights_reload_in_pytorch(first, tmp_path):
    reference, folder, model = first
    seq2seq.compare_reloaded(reference, model, tmp_path)
    # A classifier's file has a prefix, and is no less at home in a language model.
    config = read_config(folder)
    classifier, report = load_model(folder, num_labels=3)
    assert report.new_parameters == tuple(
        f"classification_head.{layer}.{part}"
        for layer in ("dense", "out_proj")
        for part in ("bias", "kernel")
    )
    save_weights(classifier, tmp_path / "classifier", T5_WEIGHTS)
    config.num_labels = 3
    config.save_pretrained(tmp_path / "classifier")
    seq2seq.reload_in_pytorch("T5ForSequenceClassification", tmp_path / "classifier")
    again, report = load_model(tmp_path / "classifier", head="seq2seq_lm")
    assert report.new_parameters == ()
    seq2seq.assert_equal_weights(again, model)


@pytest.mark.parametrize(
    "names",
    [
        ("shared",),
        ("encoder.embed_tokens",),
        ("decoder.embed_tokens",),
        ("lm_head",),
        ("decoder.embed_tokens", "lm_head"),
        ("shared", "encoder.embed_tokens", "decoder.embed_tokens", "lm_head"),
    ],
)
def test_the_tied_table_is_found_under_any_of_its_names(names, first, tmp_path):
    _, folder, model = first
    into = seq2seq.keep_keys(folder, [f"{name}.weight" for name in names], tmp_path / "renamed")
    found = abstract_model(read_config(into), head="seq2seq_lm")
    report = load_weights(found, into, T5_WEIGHTS)
    assert report.new_parameters == report.replaced_keys == ()
    assert report.ignored_keys == tuple(f"{name}.weight" for name in sorted(names[1:]))
    seq2seq.assert_equal_weights(found, model)


def test_an_untied_head_that_a_file_leaves_out_is_the_table(first, tmp_path):
    _, folder, _ = first
    into = seq2seq.keep_keys(folder, ["shared.weight"], tmp_path / "tied")
    config = read_config(folder)
    config.scale_decoder_outputs = False
    config.save_pretrained(into)
    model, report = load_model(into, head="seq2seq_lm")
    assert report.new_parameters == ()
    np.testing.assert_array_equal(model.lm_head.kernel[...], model.shared.embedding[...].T)


def test_bfloat16_stays_within_four_percent(first):
    """It is 1.6 % of the largest logit here, PyTorch's own 1.3 %."""
    seq2seq.compare_bfloat16(first[1], first[2], bound=0.04)


def test_float64_stays_float64():
    seq2seq.check_float64(make_config(**SECOND))


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (8, 12), (64, 1000)])
def test_buckets_equal_pytorch(num_buckets, max_distance, is_causal):
    torch = pytest.importorskip("torch")
    attention = pytest.importorskip("transformers.models.t5.modeling_t5").T5Attention
    offsets = np.arange(-1200, 1201)
    expected = attention._relative_position_bucket(
        torch.as_tensor(offsets), not is_causal, num_buckets, max_distance
    )
    found = find_buckets(jnp.asarray(offsets), num_buckets, max_distance, is_causal)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("length", [1, 2, 7])
def test_skew_lays_out_by_offset(length):
    rows = jnp.arange(2.0 * (2 * length - 1)).reshape(2, -1)
    query, key = np.indices((length, length))
    np.testing.assert_array_equal(skew(rows), rows[:, key - query + length - 1])


def test_position_biases_are_neither_gathered_nor_scattered_as_a_square(first):
    attention = first[2].encoder.block[0].layer[0].SelfAttention
    graph, weights, rest = nnx.split(attention, nnx.Param, ...)

    def weigh(weights):
        bias = nnx.merge(graph, weights, rest).bias_all(23)
        return (bias**2).sum()

    program = jax.jit(jax.grad(weigh)).lower(weights).as_text()
    moved = re.findall(r'(?s)"stablehlo\.(?:gather|scatter)".*?-> tensor<(.*?)>', program)
    assert {"45x4xf32", "8x4xf32"} <= set(moved)  # 2L − 1 rows, and the gradient of their buckets
    assert not [shape for shape in moved if "23" in shape]


def test_dropout_sits_where_pytorch_has_it(tmp_path):
    torch = pytest.importorskip("torch")
    reference = make_reference(
        tmp_path, "SequenceClassification", **SECOND, dropout_rate=0.11, classifier_dropout=0.33
    )
    model, _ = load_model(tmp_path, num_labels=2)
    rates = {
        ".".join(map(str, path)): module.rate
        for path, module in nnx.iter_modules(model)
        if isinstance(module, nnx.Dropout)
    }
    wanted = {
        # PyTorch's attention keeps a rate and no module.
        f"{name}.dropout".removesuffix(".dropout" * isinstance(module, torch.nn.Dropout)): rate
        for name, module in reference.named_modules()
        if (rate := getattr(module, "p", getattr(module, "dropout", None))) is not None
        and isinstance(rate, float)
    }
    assert rates == wanted


def test_dropout_spreads_the_logits_as_in_pytorch(tmp_path):
    seq2seq.compare_dropout(
        make_reference(tmp_path, "SequenceClassification", **FIRST, dropout_rate=0.2), tmp_path
    )


@pytest.mark.parametrize(
    ("settings", "feed_forward"), [(FIRST, ("wi", "wo")), (SECOND, ("wi_0", "wi_1", "wo"))]
)
def test_default_targets_are_the_dense_layers_of_every_block(settings, feed_forward):
    config = make_config(**settings)
    feed = [f"DenseReluDense.{name}" for name in feed_forward]
    own = [f"layer.0.SelfAttention.{name}" for name in "qkvo"]
    cross = [f"layer.1.EncDecAttention.{name}" for name in "qkvo"]
    ends = {
        "encoder.block.0": own + [f"layer.1.{name}" for name in feed],
        "encoder.block.1": own + [f"layer.1.{name}" for name in feed],
        "decoder.block.0": own + cross + [f"layer.2.{name}" for name in feed],
        "decoder.block.1": own + cross + [f"layer.2.{name}" for name in feed],
    }
    wanted = {f"transformer.{block}.{end}" for block, names in ends.items() for end in names}
    model = abstract_model(config, num_labels=2)
    targets, rest = seq2seq.split_linears(model, T5)
    assert targets == wanted
    assert rest == {"classification_head.dense", "classification_head.out_proj"}
    targets, rest = seq2seq.split_linears(abstract_model(config, head="seq2seq_lm"), T5)
    assert targets == {path.removeprefix("transformer.") for path in wanted}
    assert rest == ({"lm_head"} if settings is SECOND else set())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"is_decoder": True}, "is_decoder is set"),
        ({"is_encoder_decoder": False}, "is_encoder_decoder is not"),
        ({"decoder_start_token_id": None, "pad_token_id": None}, "no decoder_start_token_id"),
        ({"feed_forward_proj": "gated-snake"}, "'snake'"),
    ],
)
def test_what_this_port_does_not_do_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        abstract_model(make_config(**change), head="seq2seq_lm")


def test_the_decoder_starts_with_padding_unless_told():
    config = make_config(decoder_start_token_id=None, pad_token_id=7)
    assert abstract_model(config, head="seq2seq_lm").start_token_id == 7


@pytest.mark.parametrize(("given", "rate"), [(None, 0.25), (0.0, 0.0), (0.5, 0.5)])
def test_classifier_dropout_is_the_rate_given_or_else_the_configured(given, rate):
    model = abstract_model(
        make_config(classifier_dropout=0.25), num_labels=2, classifier_dropout=given
    )
    assert model.classification_head.dropout.rate == rate


def test_new_weights_have_the_scales_of_pytorch():
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = make_config(**SECOND | {"d_model": 128, "d_kv": 8, "d_ff": 512, "num_layers": 1})
    model = T5ForConditionalGeneration(config, rngs=nnx.Rngs(0))
    reference = transformers.T5ForConditionalGeneration(config)
    seq2seq.compare_initial_scales(reference, model, T5_WEIGHTS)
    model = T5ForSequenceClassification(config, num_labels=2, rngs=nnx.Rngs(0))
    reference = transformers.T5ForSequenceClassification(config)
    seq2seq.compare_initial_scales(reference, model, T5_WEIGHTS)
