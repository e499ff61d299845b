"""BART against PyTorch's transformers, and its own invariants."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from increlora_jax.errors import InputError
from increlora_jax.models.bart import BART, BART_WEIGHTS, BartForConditionalGeneration
from increlora_jax.models.registry import abstract_model, load_model
from increlora_jax.weights.folder import load_weights, read_config
from tests import seq2seq

TINY = {
    "vocab_size": seq2seq.VOCAB,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 20,
    # Ten times the usual, so that every term of the forward pass shows in the logits.
    "init_std": 0.2,
    "bos_token_id": 2,
    "pad_token_id": 0,
    "eos_token_id": seq2seq.EOS,
    "decoder_start_token_id": seq2seq.EOS,
    "forced_eos_token_id": None,
}
UNTIED = {"tie_word_embeddings": False, "activation_function": "relu", "decoder_layers": 1}


def make_config(**settings):
    transformers = pytest.importorskip("transformers")
    return transformers.BartConfig(**(TINY | settings))


def make_reference(folder, head="ConditionalGeneration", **settings):
    return seq2seq.make_reference(f"BartFor{head}", "bart", folder, **(TINY | settings))


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    """A model of PyTorch, its folder, and ours."""
    folder = tmp_path_factory.mktemp("bart")
    reference = make_reference(folder)
    model, _ = load_model(folder, head="seq2seq_lm")
    model.eval()
    return reference, folder, model


@pytest.mark.parametrize(
    ("settings", "ignored"), [({"scale_embedding": True}, ()), (UNTIED, ("model.shared.weight",))]
)
def test_logits_loss_and_gradients_equal_pytorch(settings, ignored, tmp_path):
    reference = make_reference(tmp_path, **settings)
    seq2seq.compare_language_model(reference, tmp_path, ignored)


def test_classifier_and_question_answerer_equal_pytorch(tmp_path):
    seq2seq.compare_sentence_heads(make_reference, tmp_path)


def test_one_token_at_a_time_equals_all_at_once(tied):
    seq2seq.compare_step_by_step(tied[2])


@pytest.mark.parametrize("num_beams", [1, 3])
def test_generation_equals_pytorch(num_beams, tied):
    reference, _, model = tied
    seq2seq.compare_generation(reference, model, num_beams)


def test_saved_weights_reload_in_pytorch(tied, tmp_path):
    reference, _, model = tied
    seq2seq.compare_reloaded(reference, model, tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        ("model.shared",),
        ("model.encoder.embed_tokens",),
        ("model.decoder.embed_tokens",),
        ("lm_head",),
        ("model.shared", "lm_head", "model.decoder.embed_tokens", "model.encoder.embed_tokens"),
    ],
)
def test_the_tied_table_is_found_under_any_of_its_names(names, tied, tmp_path):
    _, folder, model = tied
    into = seq2seq.keep_keys(folder, [f"{name}.weight" for name in names], tmp_path / "renamed")
    found = abstract_model(read_config(into), head="seq2seq_lm")
    report = load_weights(found, into, BART_WEIGHTS)
    assert report.new_parameters == report.replaced_keys == ()
    assert report.ignored_keys == tuple(f"{name}.weight" for name in names[1:])
    seq2seq.assert_equal_weights(found, model)


def test_the_bare_model_of_the_hub_loads(tied, tmp_path):
    """As facebook/bart-base: no prefix, no bias of the logits, remains of fairseq."""
    _, folder, model = tied
    weights = load_file(folder / "model.safetensors")
    del weights["final_logits_bias"]
    bare = {key.removeprefix("model."): array for key, array in weights.items()}
    bare["encoder.version"] = np.ones(1, np.float32)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    save_file(bare, tmp_path / "model.safetensors")
    found, report = load_model(tmp_path, head="seq2seq_lm")
    assert report.new_parameters == ("final_logits_bias",)
    assert report.ignored_keys == ("encoder.version",)
    assert not found.final_logits_bias[...].any()
    found.final_logits_bias[...] = model.final_logits_bias[...]
    seq2seq.assert_equal_weights(found, model)


def test_an_untied_model_may_begin_as_a_tied_one(tied, tmp_path):
    _, folder, model = tied
    into = seq2seq.keep_keys(folder, ["model.shared.weight"], tmp_path / "tied")
    config = read_config(folder)
    config.tie_word_embeddings = False
    config.save_pretrained(into)
    untied = abstract_model(config, head="seq2seq_lm")
    report = load_weights(untied, into, BART_WEIGHTS)
    assert report.new_parameters == ()
    table = model.model.shared.embedding[...]
    np.testing.assert_array_equal(untied.model.encoder.embed_tokens.embedding[...], table)
    np.testing.assert_array_equal(untied.model.decoder.embed_tokens.embedding[...], table)
    np.testing.assert_array_equal(untied.lm_head.kernel[...], table.T)


def test_bfloat16_stays_within_four_percent(tied):
    """It is 2.2 % of the largest logit here, PyTorch's own 3.3 %."""
    seq2seq.compare_bfloat16(tied[1], tied[2], bound=0.04)


def test_float64_stays_float64():
    seq2seq.check_float64(make_config())


@pytest.mark.parametrize(
    "site", ["dropout", "attention_dropout", "activation_dropout", "classifier_dropout"]
)
def test_dropout_spreads_the_logits_as_in_pytorch(site, tmp_path):
    rates = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0} | {site: 0.3}
    small = {"encoder_layers": 1, "decoder_layers": 1}
    reference = make_reference(tmp_path, "SequenceClassification", **small, **rates)
    seq2seq.compare_dropout(reference, tmp_path)


@pytest.mark.parametrize("settings", [{}, {"tie_word_embeddings": False}])
def test_default_targets_are_the_dense_layers_of_every_layer(settings):
    own = [f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")]
    cross = [f"encoder_attn.{name}_proj" for name in ("q", "k", "v", "out")]
    ends = {"encoder": [*own, "fc1", "fc2"], "decoder": [*own, *cross, "fc1", "fc2"]}
    wanted = {
        f"model.{stack}.layers.{i}.{end}" for stack in ends for i in range(2) for end in ends[stack]
    }
    config = make_config(**settings)
    targets, rest = seq2seq.split_linears(abstract_model(config, num_labels=2), BART)
    assert targets == wanted
    assert rest == {"classification_head.dense", "classification_head.out_proj"}
    targets, rest = seq2seq.split_linears(abstract_model(config, head="seq2seq_lm"), BART)
    assert targets == wanted
    assert rest == ({"lm_head"} if settings else set())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"is_decoder": True}, "is_decoder is set"),
        ({"is_encoder_decoder": False}, "is_encoder_decoder is not"),
        ({"encoder_layerdrop": 0.1}, "encoder_layerdrop is 0.1"),
        ({"decoder_layerdrop": 0.1}, "decoder_layerdrop is 0.1"),
        ({"decoder_attention_heads": 5}, "d_model 32 is not a multiple of decoder_attention_heads"),
        ({"decoder_start_token_id": None}, "no decoder_start_token_id"),
        ({"activation_function": "snake"}, "'snake'"),
    ],
)
def test_what_this_port_does_not_do_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        abstract_model(make_config(**change), head="seq2seq_lm")


def test_too_long_a_sequence_is_refused_while_tracing():
    model = abstract_model(make_config(), head="seq2seq_lm")
    long, short = jnp.zeros((2, 21), jnp.int32), jnp.zeros((2, 4), jnp.int32)
    for inputs in ((long, long, short, short), (short, short, long, long)):
        with pytest.raises(InputError, match=r"21 tokens .* 20 positions .*--max-seq-length"):
            nnx.eval_shape(lambda model, inputs=inputs: model(*inputs), model)
    with pytest.raises(InputError, match=r"21 tokens"):
        nnx.eval_shape(lambda model: model.begin(short, short, 21), model)


@pytest.mark.parametrize(("given", "rate"), [(None, 0.25), (0.0, 0.0), (0.5, 0.5)])
def test_classifier_dropout_is_the_rate_given_or_else_the_configured(given, rate):
    config = make_config(classifier_dropout=0.25)
    model = abstract_model(config, num_labels=2, classifier_dropout=given)
    assert model.classification_head.dropout.rate == rate


def test_new_weights_have_the_scales_of_pytorch():
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = make_config(d_model=64, encoder_layers=1, tie_word_embeddings=False)
    model = BartForConditionalGeneration(config, rngs=nnx.Rngs(0))
    reference = transformers.BartForConditionalGeneration(config)
    seq2seq.compare_initial_scales(reference, model, BART_WEIGHTS)
