"""RoBERTa and XLM-R against PyTorch's transformers, and what they do unlike BERT."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from increlora_jax.errors import InputError
from increlora_jax.models.registry import abstract_model, find_spec, load_model
from increlora_jax.models.roberta import RobertaForSequenceClassification
from tests.models.parity import assert_parity

PAD = 1
ROBERTA = {
    "model_type": "roberta",
    "pad_token_id": PAD,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "type_vocab_size": 1,
    "max_position_embeddings": 66,
}
WEIGHTS = "model.safetensors"
run = nnx.jit(lambda model, batch: model(**batch))


@pytest.fixture
def make_tokens(make_batch):
    """Draw a batch with RoBERTa's padding and one token type; a padding token is in a text too."""

    def make(**sizes):
        batch = make_batch(**sizes)
        is_token = batch["attention_mask"] > 0
        ids = np.where(is_token, batch["input_ids"], PAD)
        ids[0, 2] = PAD
        return batch | {"input_ids": ids, "token_type_ids": np.zeros_like(ids)}

    return make


@pytest.fixture
def make_roberta(make_reference):
    """Make a tiny model of PyTorch's with random weights, and its saved folder."""
    return lambda architecture="RobertaForSequenceClassification", **changes: make_reference(
        architecture, **ROBERTA | changes
    )


def make_model(config):
    return RobertaForSequenceClassification(config, num_labels=3, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("architecture", "head", "changes"),
    [
        ("RobertaForSequenceClassification", "sequence_classification", {}),
        ("RobertaForQuestionAnswering", "question_answering", {"num_labels": 2}),
        # Another activation than that of the masked-LM head, which is fixed.
        ("RobertaForMaskedLM", "masked_lm", {"hidden_act": "relu"}),
        ("XLMRobertaForMaskedLM", "masked_lm", {"model_type": "xlm-roberta"}),
    ],
)
def test_logits_loss_and_gradients_equal_pytorch(
    architecture, head, changes, make_roberta, make_tokens, tmp_path
):
    reference, folder = make_roberta(architecture, **changes)
    assert_parity(reference, folder, head, make_tokens(length=9), tmp_path)


def test_an_untied_decoder_has_weights_of_its_own(make_roberta, make_tokens, to_jax, to_torch):
    """PyTorch then keeps a second bias, which its forward pass does not use."""
    reference, folder = make_roberta("RobertaForMaskedLM", tie_word_embeddings=False)
    model, report = load_model(folder, head="masked_lm")
    model.eval()
    assert report.new_parameters == ()
    assert report.ignored_keys == ("lm_head.bias",)
    expected = reference(**to_torch(make_tokens())).logits.detach().numpy()
    logits = run(model, to_jax(make_tokens()))
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("architecture", "head"),
    [
        ("RobertaForSequenceClassification", "sequence_classification"),
        ("RobertaForMaskedLM", "masked_lm"),
    ],
)
def test_bfloat16_stays_within_three_percent(architecture, head, make_roberta, make_tokens, to_jax):
    """Eight bits of mantissa through two layers; the logits themselves come in float32."""
    _, folder = make_roberta(architecture)
    options = {"num_labels": 3} if head == "sequence_classification" else {}
    logits = []
    for dtype in (jnp.float32, jnp.bfloat16):
        model, _ = load_model(folder, head=head, dtype=dtype, param_dtype=dtype, **options)
        model.eval()
        logits.append(run(model, to_jax(make_tokens())))
    exact, rounded = logits
    assert rounded.dtype == jnp.float32
    assert jnp.abs(rounded - exact).max() < 0.03 * jnp.abs(exact).max()


def test_positions_count_the_tokens_from_the_padding_id_on(make_config):
    embed = make_model(make_config(**ROBERTA | {"pad_token_id": 3})).roberta.embeddings
    ids = jnp.array([[5, 6, 7, 3, 3], [3, 3, 5, 3, 6]])
    np.testing.assert_array_equal(embed.find_positions(ids), [[4, 5, 6, 3, 3], [3, 3, 4, 3, 5]])


def test_padding_changes_nothing(make_config, make_tokens, to_jax):
    model = make_model(make_config(**ROBERTA))
    model.eval()
    batch = to_jax(make_tokens(length=7))
    longer = {name: jnp.pad(array, ((0, 0), (0, 9))) for name, array in batch.items()}
    longer["input_ids"] = longer["input_ids"].at[:, 7:].set(17)  # whatever stands there
    np.testing.assert_allclose(run(model, longer), run(model, batch), atol=1e-6)


def test_the_longest_sequence_leaves_the_rows_up_to_padding_free(make_config):
    """Of 66 rows of positions, the first two serve no token."""
    graph, state = nnx.split(abstract_model(make_config(**ROBERTA), num_labels=2))

    def score(length):
        ids = jnp.zeros((2, length), jnp.int32)
        return jax.eval_shape(lambda state: nnx.merge(graph, state)(ids, ids, ids), state)

    assert score(64).shape == (2, 2)
    with pytest.raises(InputError, match=r"65 tokens .* 64 positions .*--max-seq-length"):
        score(65)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pad_token_id": None}, "pad_token_id None is not from 0 to 64"),
        ({"pad_token_id": 65}, "pad_token_id 65 is not from 0 to 64"),
        ({"is_decoder": True}, "is_decoder is set, and this roberta"),
        ({"num_attention_heads": 5}, "hidden_size 32 is not a multiple"),
    ],
)
@pytest.mark.parametrize("head", ["sequence_classification", "question_answering", "masked_lm"])
def test_what_this_encoder_does_not_do_is_refused(change, message, head, make_config):
    options = {"num_labels": 2} if head == "sequence_classification" else {}
    with pytest.raises(InputError, match=message):
        abstract_model(make_config(**ROBERTA | change), head=head, **options)


def test_default_targets_are_the_six_dense_layers_of_every_layer(make_config):
    config = make_config(**ROBERTA)
    linears = [
        ".".join(map(str, path))
        for path, module in nnx.iter_modules(abstract_model(config, num_labels=2))
        if isinstance(module, nnx.Linear)
    ]
    spec = find_spec(config)
    rest = {path for path in linears if not re.fullmatch(spec.target_modules, path)}
    assert len(linears) - len(rest) == 6 * config.num_hidden_layers
    assert rest == {"classifier.dense", "classifier.out_proj"}
    assert spec.modules_to_save["sequence_classification"] == ("classifier",)


@pytest.mark.parametrize(
    ("given", "configured", "rate"), [(None, None, 0.4), (None, 0.25, 0.25), (0.0, 0.25, 0.0)]
)
def test_head_dropout_is_the_first_rate_that_is_stated(given, configured, rate, make_config):
    config = make_config(**ROBERTA, hidden_dropout_prob=0.4, classifier_dropout=configured)
    model = abstract_model(config, num_labels=2, classifier_dropout=given)
    assert model.classifier.dropout.rate == rate


def test_head_dropout_spreads_the_logits_as_in_pytorch(make_roberta, make_tokens, to_jax, to_torch):
    """One sentence 8192 times: the logits' mean and spread tell the rate and both places."""
    torch = pytest.importorskip("torch")
    reference, folder = make_roberta(
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, classifier_dropout=0.3
    )
    count = 8192
    batch = {name: np.repeat(array[:1], count, 0) for name, array in make_tokens().items()}
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


def test_a_pretrained_file_gives_a_classifier_with_a_new_head(make_roberta):
    """Such files hold the masked-LM head, its tied decoder, a pooler and old constants."""
    _, folder = make_roberta("RobertaForMaskedLM")
    weights = load_file(folder / WEIGHTS)
    words = weights["roberta.embeddings.word_embeddings.weight"]
    others = {
        "roberta.pooler.dense.weight": np.zeros((32, 32), np.float32),
        "roberta.embeddings.position_ids": np.arange(66)[None],
        "lm_head.decoder.weight": words,
    }
    save_file(weights | others, folder / WEIGHTS)
    model, report = load_model(folder, num_labels=2)
    assert set(report.new_parameters) == {
        f"classifier.{layer}.{leaf}"
        for layer in ("dense", "out_proj")
        for leaf in ("kernel", "bias")
    }
    assert set(report.ignored_keys) == {*others, *(key for key in weights if "lm_head" in key)}
    np.testing.assert_array_equal(model.roberta.embeddings.word_embeddings.embedding[...], words)


def test_old_and_bare_names_give_the_same_model(make_roberta):
    _, folder = make_roberta()
    plain, _ = load_model(folder, num_labels=3)
    weights = load_file(folder / WEIGHTS)
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    for today, former in old.items():
        weights = {
            key.removeprefix("roberta.").replace(today, former): value
            for key, value in weights.items()
        }
    save_file(weights, folder / WEIGHTS)
    renamed, report = load_model(folder, num_labels=3)
    assert report.new_parameters == report.ignored_keys == ()
    jax.tree.map(
        np.testing.assert_array_equal,
        nnx.to_pure_dict(nnx.state(renamed, nnx.Param)),
        nnx.to_pure_dict(nnx.state(plain, nnx.Param)),
    )


def test_for_other_labels_only_the_last_layer_is_new(make_roberta):
    reference, folder = make_roberta()
    model, report = load_model(folder, num_labels=2)
    new = {"classifier.out_proj.kernel", "classifier.out_proj.bias"}
    assert set(report.new_parameters) == new
    np.testing.assert_array_equal(
        model.classifier.dense.kernel[...].T, reference.classifier.dense.weight.detach()
    )
