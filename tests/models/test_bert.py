"""BERT against PyTorch's transformers, and its own invariants."""

import csv
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from increlora_jax.errors import InputError
from increlora_jax.models.bert import BertForSequenceClassification
from increlora_jax.models.registry import abstract_model, load_model
from increlora_jax.weights.tokenizer import load_tokenizer
from tests.models.parity import assert_parity

run = nnx.jit(lambda model, batch: model(**batch))


@pytest.fixture
def build(make_config):
    """Build a tiny model of our own with random weights."""

    def build(seed=0, **changes):
        rngs = nnx.Rngs(params=0, dropout=seed)
        return BertForSequenceClassification(make_config(**changes), num_labels=3, rngs=rngs)

    return build


@pytest.fixture
def real_batch(data_dir, minilm_dir):
    """Sixteen sentences of SST-2 of unlike lengths, padded."""
    with open(data_dir / "glue" / "SST-2" / "dev.tsv", encoding="utf-8") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        sentences = [row["sentence"] for row in itertools.islice(rows, 16)]
    batch = load_tokenizer(minilm_dir)(sentences, padding=True, return_tensors="np")
    assert batch["attention_mask"].min() == 0
    return dict(batch)


@pytest.mark.parametrize(
    ("hidden_act", "length"), [("gelu", 7), ("gelu", 64), ("gelu_new", 7), ("silu", 7)]
)
def test_logits_loss_and_gradients_equal_pytorch(
    hidden_act, length, make_reference, make_batch, tmp_path
):
    reference, folder = make_reference(hidden_act=hidden_act)
    batch = make_batch(length=length)
    assert_parity(reference, folder, "sequence_classification", batch, tmp_path)


@pytest.mark.parametrize(
    ("head", "architecture", "changes"),
    [
        ("question_answering", "BertForQuestionAnswering", {"num_labels": 2}),
        ("masked_lm", "BertForMaskedLM", {"hidden_act": "gelu_new"}),
    ],
)
def test_other_heads_equal_pytorch(
    head, architecture, changes, make_reference, make_batch, tmp_path
):
    reference, folder = make_reference(architecture, **changes)
    assert_parity(reference, folder, head, make_batch(length=9), tmp_path)


def test_an_untied_decoder_has_weights_of_its_own(make_reference, make_batch, to_jax, to_torch):
    """PyTorch then keeps a second bias, which its forward pass does not use."""
    reference, folder = make_reference("BertForMaskedLM", tie_word_embeddings=False)
    batch = make_batch()
    model, report = load_model(folder, head="masked_lm")
    model.eval()
    assert report.new_parameters == ()
    assert report.ignored_keys == ("cls.predictions.bias",)
    expected = reference(**to_torch(batch)).logits.detach()
    # Of the logits' scale, about 10.
    np.testing.assert_allclose(run(model, to_jax(batch)), expected, atol=1e-4)


def test_pretraining_files_serve_every_head(make_reference):
    """They hold the masked-LM head, the next-sentence head and the pooler; and tied keys twice."""
    _, folder = make_reference("BertForPreTraining")
    weights = load_file(folder / "model.safetensors")
    table = "bert.embeddings.word_embeddings.weight"
    twice = {
        "cls.predictions.decoder.weight": weights[table],
        "cls.predictions.decoder.bias": weights["cls.predictions.bias"],
    }
    save_file(weights | twice, folder / "model.safetensors")
    pooler = ("bert.pooler.dense.bias", "bert.pooler.dense.weight")
    next_sentence = ("cls.seq_relationship.bias", "cls.seq_relationship.weight")
    for head, options, new, ignored in (
        ("masked_lm", {}, (), (*pooler, *twice, *next_sentence)),
        ("question_answering", {}, ("qa_outputs.bias", "qa_outputs.kernel"), None),
        ("sequence_classification", {"num_labels": 2}, ("classifier.bias", "classifier.kernel"),
         None),
    ):  # fmt: skip
        model, report = load_model(folder, head=head, **options)
        assert set(report.new_parameters) == set(new)
        assert ignored is None or set(report.ignored_keys) == set(ignored)
        np.testing.assert_array_equal(
            model.bert.embeddings.word_embeddings.embedding[...], weights[table]
        )


@pytest.mark.parametrize(
    ("head", "architecture"),
    [("question_answering", "BertForQuestionAnswering"), ("masked_lm", "BertForMaskedLM")],
)
def test_other_heads_in_bfloat16_stay_within_three_percent(
    head, architecture, make_reference, make_batch, to_jax
):
    """Eight bits of mantissa through two layers; the logits themselves come in float32."""
    _, folder = make_reference(architecture, num_labels=2)
    logits = []
    for dtype in (jnp.float32, jnp.bfloat16):
        model, _ = load_model(folder, head=head, dtype=dtype, param_dtype=dtype)
        model.eval()
        logits.append(jnp.stack(run(model, to_jax(make_batch()))))
    exact, rounded = logits
    assert rounded.dtype == jnp.float32
    assert jnp.abs(rounded - exact).max() < 0.03 * jnp.abs(exact).max()


def test_minilm_logits_equal_pytorch_on_real_sentences(minilm_dir, real_batch, to_jax, to_torch):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model, report = load_model(minilm_dir, num_labels=2, seed=5)
    model.eval()
    # A head 50 times the usual, so that the logits, and with them the bound, are of order 1.
    model.classifier.kernel.set_value(50 * model.classifier.kernel.get_value())
    reference = transformers.BertForSequenceClassification.from_pretrained(
        minilm_dir, num_labels=2, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        reference.classifier.weight.copy_(torch.tensor(np.array(model.classifier.kernel[...].T)))
        reference.classifier.bias.zero_()
        expected = reference(**to_torch(real_batch)).logits

    assert report.new_parameters == ("classifier.bias", "classifier.kernel")
    assert report.ignored_keys == ("embeddings.position_ids",)
    np.testing.assert_allclose(run(model, to_jax(real_batch)), expected, atol=1e-5)


def test_minilm_in_bfloat16_stays_within_two_percent(minilm_dir, real_batch, to_jax):
    """PyTorch's own bfloat16 differs from float32 by 1.3 % of the largest logit here, as ours."""
    exact_model, _ = load_model(minilm_dir, num_labels=8)
    exact_model.eval()
    rounded_model, _ = load_model(
        minilm_dir, num_labels=8, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16
    )
    rounded_model.eval()
    head = exact_model.classifier.kernel.get_value()
    rounded_model.classifier.kernel.set_value(head.astype(jnp.bfloat16))
    exact, rounded = (run(model, to_jax(real_batch)) for model in (exact_model, rounded_model))
    assert rounded.dtype == jnp.float32
    assert jnp.abs(rounded - exact).max() < 0.02 * jnp.abs(exact).max()


def test_padding_changes_nothing(build, make_batch, to_jax):
    model = build()
    model.eval()
    batch = to_jax(make_batch(length=7))
    longer = {name: jnp.pad(array, ((0, 0), (0, 9))) for name, array in batch.items()}
    longer["input_ids"] = longer["input_ids"].at[:, 7:].set(17)  # whatever stands there
    np.testing.assert_allclose(run(model, longer), run(model, batch), atol=1e-6)


def test_a_row_of_padding_only_is_finite(build):
    model = build()
    model.eval()
    nothing = jnp.zeros((1, 4), jnp.int32)
    batch = dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), nothing)
    assert jnp.isfinite(run(model, batch)).all()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_regression_is_one_label_in_float32(dtype, make_config, make_batch, to_jax):
    model = abstract_model(make_config(), num_labels=1, dtype=dtype)
    logits = nnx.eval_shape(lambda model: model(**to_jax(make_batch())), model)
    assert (logits.shape, logits.dtype) == ((4, 1), jnp.float32)


def test_dropout_sits_where_pytorch_has_it(make_reference):
    torch = pytest.importorskip("torch")
    reference, folder = make_reference(
        hidden_dropout_prob=0.11, attention_probs_dropout_prob=0.22, classifier_dropout=0.33
    )
    model, _ = load_model(folder, num_labels=3)
    rates = {
        ".".join(map(str, path)): module.rate
        for path, module in nnx.iter_modules(model)
        if isinstance(module, nnx.Dropout)
    }
    assert rates == {
        name: module.p
        for name, module in reference.named_modules()
        if isinstance(module, torch.nn.Dropout)
    }


@pytest.mark.parametrize("site", ["hidden_dropout_prob", "attention_probs_dropout_prob", "head"])
def test_dropout_spreads_the_logits_as_in_pytorch(
    site, make_reference, make_batch, to_jax, to_torch
):
    """One sentence 8192 times: the logits' mean and spread tell the rate, the scale, the place."""
    torch = pytest.importorskip("torch")
    rates = {
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "classifier_dropout": 0.0,
    }
    rates["classifier_dropout" if site == "head" else site] = 0.3
    reference, folder = make_reference(**rates)
    count = 8192
    batch = {name: np.repeat(array[:1], count, 0) for name, array in make_batch().items()}
    with torch.no_grad():
        expected = reference.train()(**to_torch(batch)).logits.numpy()
    model, _ = load_model(folder, num_labels=3)
    logits = np.asarray(run(model, to_jax(batch)))

    spread = expected.std(0)
    assert spread.min() > 0.01
    # Five standard errors of a difference of means; of standard deviations, for light tails.
    np.testing.assert_array_less(
        np.abs(logits.mean(0) - expected.mean(0)), 5 * spread * np.sqrt(2 / count)
    )
    np.testing.assert_allclose(logits.std(0), spread, rtol=5 * np.sqrt(1 / count))


def test_embedding_dropout_comes_after_the_norm(build):
    embed = build(hidden_dropout_prob=0.3).bert.embeddings
    ids = jnp.arange(64)[None] + jnp.arange(16)[:, None]
    dropped = embed(ids, ids % 2)
    embed.eval()
    kept = dropped != 0
    assert kept.mean() == pytest.approx(0.7, abs=0.015)  # six standard errors
    np.testing.assert_allclose(dropped[kept], embed(ids, ids % 2)[kept] / 0.7, rtol=1e-5)


def test_dropout_follows_its_seed_and_is_off_in_eval(build, make_batch, to_jax):
    batch = to_jax(make_batch())
    first, again, other = (build(seed=seed) for seed in (0, 0, 1))
    logits = run(first, batch)
    np.testing.assert_array_equal(logits, run(again, batch))
    assert not np.allclose(logits, run(other, batch))
    assert not np.allclose(logits, run(first, batch))  # the streams have moved on
    first.eval()
    other.eval()
    np.testing.assert_array_equal(run(first, batch), run(other, batch))


@pytest.mark.parametrize(
    ("given", "configured", "rate"),
    [(None, None, 0.4), (None, 0.25, 0.25), (0.0, 0.25, 0.0), (0.5, 0.25, 0.5)],
)
def test_classifier_dropout_is_the_first_rate_that_is_stated(given, configured, rate, make_config):
    config = make_config(hidden_dropout_prob=0.4, classifier_dropout=configured)
    assert abstract_model(config, num_labels=2, classifier_dropout=given).dropout.rate == rate


def test_too_long_a_sequence_is_refused_while_tracing(build):
    ids = jnp.zeros((2, 65), jnp.int32)
    graph, state = nnx.split(build())
    with pytest.raises(InputError, match=r"65 tokens .* 64 positions .*--max-seq-length"):
        jax.eval_shape(lambda state: nnx.merge(graph, state)(ids, ids, ids), state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"is_decoder": True}, "is_decoder"),
        ({"add_cross_attention": True}, "add_cross_attention"),
        ({"num_attention_heads": 5}, "hidden_size 32 is not a multiple"),
        ({"hidden_act": "snake"}, r"'snake' .* gelu_new"),
    ],
)
def test_what_this_encoder_does_not_do_is_refused(change, message, build):
    with pytest.raises(InputError, match=message):
        build(**change)


def test_parameters_keep_their_own_dtype(make_config, make_batch, to_jax):
    model = abstract_model(make_config(), num_labels=2, dtype=jnp.bfloat16)
    leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.float32)}
    batch = to_jax(make_batch())
    embedded = nnx.eval_shape(
        lambda model: model.bert.embeddings(batch["input_ids"], batch["token_type_ids"]), model
    )
    assert embedded.dtype == jnp.bfloat16


def test_new_weights_are_as_the_original(build):
    model = build(vocab_size=4096)
    assert jnp.std(model.bert.embeddings.word_embeddings.embedding[...]) == pytest.approx(
        0.2, rel=0.02
    )
    assert jnp.std(model.bert.encoder.layer[1].output.dense.kernel[...]) == pytest.approx(
        0.2, rel=0.1
    )
    assert not model.classifier.bias[...].any()
    norm = model.bert.encoder.layer[0].attention.output.LayerNorm
    assert (norm.scale[...] == 1).all()
    assert not norm.bias[...].any()
