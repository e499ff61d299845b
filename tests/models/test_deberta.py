"""DeBERTa against PyTorch's transformers, and its own invariants."""

import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from increlora_jax.errors import InputError
from increlora_jax.models.deberta import DEBERTA, DEBERTA_WEIGHTS, DebertaForSequenceClassification
from increlora_jax.models.registry import abstract_model, load_model
from increlora_jax.weights.folder import read_config, save_weights

run = nnx.jit(lambda model, batch: model(**batch))
LABELS = np.array([0, 2])
V3 = {
    "model_type": "deberta-v2",
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 512,
    "max_relative_positions": -1,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "relative_attention": True,
    "position_biased_input": False,
    "type_vocab_size": 0,
    "layer_norm_eps": 1e-7,
    # Ten times the usual, so that every term of the forward pass shows in the logits.
    "initializer_range": 0.2,
}
"""The shape of microsoft/deberta-v3-base, but for its widths."""

SWITCHES = {
    "v2-xlarge": {"conv_kernel_size": 3, "conv_act": "gelu", "position_buckets": 8},
    "own-projections": {
        "share_att_key": False,
        "norm_rel_ebd": "none",
        "position_buckets": 8,
        "conv_kernel_size": 5,
        "conv_groups": 4,
    },
    "absolute-positions": {
        "position_biased_input": True,
        "type_vocab_size": 2,
        "embedding_size": 24,
        "pooler_hidden_act": "tanh",
    },
    "c2p": {"pos_att_type": "c2p", "position_buckets": -1},
    "p2c-beyond-the-table": {
        "pos_att_type": ["p2c"],
        "share_att_key": False,
        "position_buckets": -1,
        "max_relative_positions": 9,
    },
    "content-only": {"pos_att_type": []},
}
ONE_LAYER = {"num_hidden_layers": 1}  # compiles in half the time
CASES = (
    {"v3-7": ({}, 7)}
    | {f"v3-{length}": (ONE_LAYER, length) for length in (128, 384, 512)}
    | {name: (ONE_LAYER | changes, 24) for name, changes in SWITCHES.items()}
)


@pytest.fixture
def make_config(tmp_path):
    """Make a tiny configuration with some of its entries replaced."""

    def make(**changes):
        folder = tmp_path / "config"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(V3 | changes))
        return read_config(folder)

    return make


@pytest.fixture
def make_reference(make_config, tmp_path):
    """Make a tiny model of PyTorch's transformers with random weights, and its saved folder."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")

    def make(name="DebertaV2ForSequenceClassification", num_labels=3, **changes):
        torch.manual_seed(0)
        config = make_config(num_labels=num_labels, **changes)
        reference = getattr(transformers, name)(config).eval()
        with torch.no_grad():
            for parameter in reference.parameters():  # biases and norms away from 0 and 1 too
                parameter.add_(0.1 * torch.randn_like(parameter))
        folder = tmp_path / "reference"
        reference.save_pretrained(folder)
        return reference, folder

    return make


@pytest.fixture
def build(make_config):
    """Build a tiny model of our own with random weights."""

    def build(**changes):
        config = make_config(**changes)
        return DebertaForSequenceClassification(config, num_labels=3, rngs=nnx.Rngs(0))

    return build


def assert_close(actual, expected, tolerance, name=""):
    """Compare up to a share of the largest entry."""
    scale = np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale, err_msg=name)


def gradients_of(reference):
    """PyTorch's, with zeros for what the loss does not look at."""
    return {
        name: np.zeros(weight.shape) if weight.grad is None else weight.grad.numpy()
        for name, weight in reference.named_parameters()
    }


@pytest.mark.parametrize("case", CASES)
def test_logits_loss_and_gradients_equal_pytorch(
    case, make_reference, make_batch, to_jax, to_torch, tmp_path
):
    torch = pytest.importorskip("torch")
    changes, length = CASES[case]
    reference, folder = make_reference(**changes)
    batch = make_batch(batch=2, length=length)
    expected = reference(**to_torch(batch), labels=torch.as_tensor(LABELS))
    expected.loss.backward()

    model, report = load_model(folder, num_labels=3)
    model.eval()

    def compute_loss(model, batch):
        logits = model(**batch)
        return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean(), logits

    (loss, logits), gradients = nnx.jit(nnx.value_and_grad(compute_loss, has_aux=True))(
        model, to_jax(batch)
    )
    nnx.update(model, gradients)
    save_weights(model, tmp_path / "gradients", DEBERTA_WEIGHTS)
    gradients = load_file(tmp_path / "gradients" / "model.safetensors")

    assert report.new_parameters == report.ignored_keys == ()
    assert_close(logits, expected.logits.detach().numpy(), 1e-5)
    assert_close(loss, expected.loss.detach().numpy(), 1e-4)
    wanted = gradients_of(reference)
    assert gradients.keys() == wanted.keys()
    words = "deberta.embeddings.word_embeddings.weight"
    assert_close(gradients[words], wanted[words], 1e-4)
    largest = max(np.abs(gradient).max() for gradient in wanted.values())
    for name, gradient in wanted.items():
        np.testing.assert_allclose(gradients[name], gradient, atol=1e-4 * largest, err_msg=name)


WEIGHT_AND_BIAS = ("kernel", "bias")
HEADS = {
    "sequence_classification": ("ForSequenceClassification", {}),
    "question_answering": ("ForQuestionAnswering", {"num_labels": 2}),
    "masked_lm": ("ForMaskedLM", {"embedding_size": 24}),
    "masked_lm untied": ("ForMaskedLM", {"tie_word_embeddings": False}),
    "masked_lm of the checkpoints": ("ForMaskedLM", {"legacy": False}),
}


@pytest.mark.parametrize("case", HEADS)
def test_every_head_equals_pytorch_and_reloads_there(
    case, make_reference, make_batch, to_jax, to_torch, tmp_path
):
    torch = pytest.importorskip("torch")
    name, changes = HEADS[case]
    reference, folder = make_reference(f"DebertaV2{name}", num_hidden_layers=1, **changes)
    batch = make_batch(length=9)
    head = case.partition(" ")[0]
    options = {"num_labels": 3} if head == "sequence_classification" else {}
    model, report = load_model(folder, head=head, **options)
    model.eval()
    save_weights(model, tmp_path / "saved", DEBERTA_WEIGHTS)
    shutil.copy(folder / "config.json", tmp_path / "saved")
    reloaded = type(reference).from_pretrained(tmp_path / "saved").eval()
    with torch.no_grad():
        expected = reference(**to_torch(batch)).to_tuple()
        again = reloaded(**to_torch(batch)).to_tuple()

    assert report.new_parameters == ()
    outputs = run(model, to_jax(batch))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    assert len(outputs) == len(expected)
    for ours, theirs, saved in zip(outputs, expected, again, strict=True):
        assert_close(ours, theirs.numpy(), 1e-5)  # padding's own logits, too
        np.testing.assert_array_equal(saved, theirs)


def test_bfloat16_stays_within_two_percent(make_reference, make_batch, to_jax, to_torch):
    """PyTorch's own bfloat16 differs from float32 by 0.5 % of the largest logit here, ours 0.6."""
    reference, folder = make_reference()
    batch = make_batch(batch=16, length=40)
    exact = reference(**to_torch(batch)).logits.detach().numpy()
    model, _ = load_model(folder, num_labels=3, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    model.eval()
    logits = run(model, to_jax(batch))
    assert logits.dtype == jnp.float32
    assert_close(logits, exact, 0.02)


def test_float64_stays_float64(make_config, make_batch):
    with jax.enable_x64(True):
        model = abstract_model(
            make_config(), num_labels=1, dtype=jnp.float64, param_dtype=jnp.float64
        )
        logits = nnx.eval_shape(lambda model: model(**make_batch()), model)
        assert (logits.shape, logits.dtype) == ((4, 1), jnp.float64)


def equations(jaxpr):
    """All of a program's, those of the programs inside it included."""
    for equation in jaxpr.eqns:
        yield equation
        for parameter in jax.tree.leaves(equation.params):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def picks_in_more_than_tables(function, *arguments):
    """The gathers from and scatters to what is no table [rows, features]."""
    program = jax.make_jaxpr(function)(*arguments)
    picks = [e for e in equations(program.jaxpr) if re.match("gather|scatter", e.primitive.name)]
    assert picks
    return [pick for pick in picks if pick.invars[0].aval.ndim > 2]


@pytest.mark.parametrize("length", [24, 200])
def test_the_backward_pass_neither_gathers_nor_scatters_scores(length, build, make_batch, to_jax):
    graph, state = nnx.split(build())
    batch = to_jax(make_batch(batch=2, length=length))

    def compute_loss(state):
        return nnx.merge(graph, state)(**batch).sum()

    def pick_scores(scores):
        distance = jnp.arange(length)[:, None] - jnp.arange(length) + length
        index = jnp.broadcast_to(distance, (2, 4, length, length))
        return jnp.take_along_axis(scores, index, axis=-1).sum()

    assert picks_in_more_than_tables(jax.grad(compute_loss, allow_int=True), state) == []
    # The form this replaces would have been found.
    scores = jnp.zeros((2, 4, length, 2 * length))
    assert len(picks_in_more_than_tables(jax.grad(pick_scores), scores)) >= 1


def test_padding_changes_nothing(build, make_batch, to_jax):
    model = build(conv_kernel_size=3)
    model.eval()
    batch = to_jax(make_batch(length=7))
    longer = {name: jnp.pad(array, ((0, 0), (0, 9))) for name, array in batch.items()}
    longer["input_ids"] = longer["input_ids"].at[:, 7:].set(17)  # whatever stands there
    np.testing.assert_allclose(run(model, longer), run(model, batch), atol=2e-6)


def test_a_row_of_padding_only_is_finite(build):
    model = build()
    model.eval()
    nothing = jnp.zeros((1, 4), jnp.int32)
    batch = dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), nothing)
    assert jnp.isfinite(run(model, batch)).all()


def test_dropout_rates_are_pytorchs(make_reference):
    torch = pytest.importorskip("torch")
    reference, folder = make_reference(
        hidden_dropout_prob=0.11,
        attention_probs_dropout_prob=0.22,
        cls_dropout=0.33,
        pooler_dropout=0.44,
        conv_kernel_size=3,
    )
    model, _ = load_model(folder, num_labels=3)
    rates = {name: dropout.rate for name, dropout in dropouts(model).items()}
    assert rates == {
        name: module.p
        for name, module in reference.named_modules()
        if isinstance(module, torch.nn.Dropout)
    }


def dropouts(model):
    return {
        ".".join(map(str, path)): module
        for path, module in nnx.iter_modules(model)
        if isinstance(module, nnx.Dropout)
    }


def test_dropout_sits_where_pytorch_has_it(make_reference, make_batch, to_jax, to_torch):
    """At rate 1 a site gives zeros, whatever the seed: the logits tell where it is."""
    torch = pytest.importorskip("torch")
    reference, folder = make_reference(num_hidden_layers=1, conv_kernel_size=3)
    model, _ = load_model(folder, num_labels=3)
    batch = make_batch(batch=2)
    seen = []
    for name, dropout in dropouts(model).items():
        model.eval()
        reference.eval()
        dropout.rate, dropout.deterministic = 1.0, False
        reference.get_submodule(name).train().p = 1.0
        with torch.no_grad():
            expected = reference(**to_torch(batch)).logits.numpy()
        seen.append(model(**to_jax(batch)))
        assert_close(seen[-1], expected, 1e-5, name)
    assert len(np.unique(np.round(seen, 3), axis=0)) == len(seen) == 8


@pytest.mark.parametrize(
    ("given", "configured", "rate"),
    [(None, None, 0.4), (None, 0.25, 0.25), (0.0, 0.25, 0.0), (0.5, 0.25, 0.5)],
)
def test_classifier_dropout_is_the_first_rate_that_is_stated(given, configured, rate, make_config):
    config = make_config(hidden_dropout_prob=0.4, cls_dropout=configured)
    assert abstract_model(config, num_labels=2, classifier_dropout=given).dropout.rate == rate


def test_only_absolute_positions_bound_the_length(make_config):
    ids = jnp.zeros((1, 65), jnp.int32)

    def encode(**changes):
        model = abstract_model(make_config(max_position_embeddings=64, **changes), num_labels=3)
        return nnx.eval_shape(lambda model: model(ids, ids, ids), model)

    assert encode(position_buckets=8).shape == (1, 3)
    with pytest.raises(InputError, match=r"65 tokens .* 64 positions .*--max-seq-length"):
        encode(position_buckets=8, position_biased_input=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"relative_attention": False}, "relative_attention is not set"),
        ({"pos_att_type": "p2c|p2p"}, "pos_att_type p2p is not known"),
        ({"num_attention_heads": 5}, "hidden_size 32 is not a multiple"),
        ({"attention_head_size": 16}, "attention_head_size 16 is not done here, only 8"),
        ({"pooler_hidden_size": 16}, "pooler_hidden_size 16 is not done here, only 32"),
        ({"conv_kernel_size": 4}, "conv_kernel_size 4 is even"),
        ({"position_buckets": 1}, "position_buckets 1 .* at least 2"),
        ({"position_buckets": 1022}, "position_buckets 1022 .* fewer than 1022"),
        ({"hidden_act": "snake"}, r"'snake' .* gelu_new"),
    ],
)
def test_what_this_encoder_does_not_do_is_refused(change, message, make_config):
    with pytest.raises(InputError, match=message):
        abstract_model(make_config(**change), num_labels=2)


def test_the_checkpoints_head_needs_embeddings_of_the_layers_width(make_config):
    with pytest.raises(InputError, match="embedding_size 24 is not hidden_size 32"):
        abstract_model(make_config(embedding_size=24, legacy=False), head="masked_lm")


def test_a_checkpoint_of_the_hub_loads_into_a_classifier(make_reference):
    """Its keys as microsoft/deberta-v3-base has them, and older ones."""
    reference, folder = make_reference("DebertaV2ForMaskedLM", legacy=False)
    file = folder / "model.safetensors"
    unused = {
        "mask_predictions.classifier.weight": np.zeros((1, 32), np.float32),
        "deberta.embeddings.position_embeddings.weight": np.zeros((512, 32), np.float32),
        "deberta.embeddings.position_ids": np.arange(512),
    }
    stored = load_file(file)
    old = {re.sub(r"LayerNorm\.weight", "LayerNorm.gamma", name): t for name, t in stored.items()}
    save_file(old | unused, file)
    model, report = load_model(folder, num_labels=3)

    heads = [
        f"{name}.{kind}" for name in ("classifier", "pooler.dense") for kind in WEIGHT_AND_BIAS
    ]
    assert set(report.new_parameters) == set(heads)
    assert set(report.ignored_keys) == set(unused) | {
        key for key in old if key.startswith("lm_predictions.")
    }
    norm = reference.deberta.encoder.LayerNorm.weight.detach()
    np.testing.assert_array_equal(model.deberta.encoder.LayerNorm.scale[...], norm)


def test_the_bare_encoder_loads_too(make_reference):
    reference, folder = make_reference("DebertaV2Model")
    model, report = load_model(folder, head="question_answering")
    assert set(report.new_parameters) == {f"qa_outputs.{kind}" for kind in WEIGHT_AND_BIAS}
    kernel = reference.encoder.layer[1].output.dense.weight.detach().T
    np.testing.assert_array_equal(model.deberta.encoder.layer[1].output.dense.kernel[...], kernel)


def test_default_targets_are_the_six_dense_layers_of_every_layer(make_config):
    model = abstract_model(make_config(share_att_key=False), num_labels=2)
    linears = {
        ".".join(map(str, path))
        for path, module in nnx.iter_modules(model)
        if isinstance(module, nnx.Linear)
    }
    targets = {path for path in linears if re.fullmatch(DEBERTA.target_modules, path)}
    ends = [f"attention.self.{name}_proj" for name in ("query", "key", "value")]
    ends += ["attention.output.dense", "intermediate.dense", "output.dense"]
    assert targets == {f"deberta.encoder.layer.{i}.{end}" for i in range(2) for end in ends}
    assert DEBERTA.modules_to_save["sequence_classification"] == ("pooler", "classifier")


def test_new_weights_are_as_the_original(build):
    model = build(vocab_size=2048, conv_kernel_size=3)
    encoder = model.deberta.encoder
    for weight in (
        model.deberta.embeddings.word_embeddings.embedding,
        encoder.rel_embeddings.embedding,
        encoder.conv.conv.kernel,
        encoder.layer[1].output.dense.kernel,
    ):
        assert jnp.std(weight[...]) == pytest.approx(0.2, rel=0.1)
    for bias in (model.classifier.bias, encoder.conv.conv.bias, encoder.LayerNorm.bias):
        assert not bias[...].any()
