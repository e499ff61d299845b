"""Tiny encoder-decoders of PyTorch's transformers, and what is compared with them."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from increlora_jax.generation.generate import generate
from increlora_jax.generation.token_scores import GenerationOptions
from increlora_jax.models.registry import abstract_model, find_spec, load_model
from increlora_jax.weights.folder import name_variables, read_config, save_weights

VOCAB, EOS = 50, 1
SOURCES, TARGETS = (17, 9, 4), (11, 5, 8)
run = nnx.jit(lambda model, *inputs: model(*inputs))


def make_reference(name, model_type, folder, **settings):
    """Make a model of PyTorch with random weights, in evaluation mode, and save it."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **settings)
    config._attn_implementation = "eager"
    reference = getattr(transformers, name)(config).eval()
    if hasattr(reference, "lm_head") and not is_tied(config):
        reference.lm_head.weight = torch.nn.Parameter(torch.randn(VOCAB, config.d_model))
    with torch.no_grad():
        for parameter in reference.parameters():  # biases and norms away from 0 and 1 too
            parameter.add_(0.1 * torch.randn_like(parameter))
        if hasattr(reference, "final_logits_bias"):
            reference.final_logits_bias.normal_()
    reference.save_pretrained(folder)
    return reference


def is_tied(config):
    """Tell whether the head is the table of words; what T5 and mT5 say of themselves is not so."""
    if config.model_type == "mt5":
        return False
    return getattr(config, "scale_decoder_outputs", config.tie_word_embeddings)


def draw_ids(lengths, seed, *, has_eos=False):
    """Draw rows of tokens with padding at their ends, and their mask; eos is the last or absent."""
    random = np.random.default_rng(seed)
    lengths = np.array(lengths)[:, None]
    slots = np.arange(lengths.max())
    mask = (slots < lengths).astype(np.int32)
    ids = random.integers(3, VOCAB, mask.shape)
    ids = np.where(has_eos & (slots == lengths - 1), EOS, ids)
    return (ids * mask).astype(np.int32), mask


def to_torch(*arrays):
    """Give integers as PyTorch takes them."""
    torch = pytest.importorskip("torch")
    return [torch.as_tensor(array).long() for array in arrays]


def assert_close(actual, expected, tolerance=1e-5):
    """Compare relative to the scale of what is expected."""
    expected = np.asarray(expected)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def compare_language_model(reference, folder, ignored=()):
    """Compare logits, loss and every gradient, with padding on both sides."""
    source, target = draw_ids(SOURCES, 0), draw_ids(TARGETS, 1)
    labels = np.where(target[1] > 0, draw_ids(TARGETS, 2)[0], -100)
    names = ("input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask")
    inputs = dict(zip(names, to_torch(*source, *target), strict=True))
    expected = reference(**inputs, labels=to_torch(labels)[0])
    expected.loss.backward()
    model, report = load_model(folder, head="seq2seq_lm")
    model.eval()

    def compute_loss(model, *inputs):
        logits = model(*inputs)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
        return (losses * (labels >= 0)).sum() / (labels >= 0).sum(), logits

    compute = nnx.jit(nnx.value_and_grad(compute_loss, has_aux=True))
    (loss, logits), gradients = compute(model, *map(jnp.asarray, (*source, *target)))
    assert report.new_parameters == ()
    assert report.ignored_keys == ignored
    assert_close(logits, expected.logits.detach())
    np.testing.assert_allclose(loss, expected.loss.detach(), rtol=1e-5)
    nnx.update(model, gradients)
    compare_gradients(model, reference, folder)


def compare_gradients(model, reference, folder):
    """Compare every gradient, put in the place of its weight, by the names on disk."""
    save_weights(model, folder / "gradients", find_spec(read_config(folder)).weights)
    found = load_file(folder / "gradients" / "model.safetensors")
    assert not found.pop("final_logits_bias", np.zeros(1)).any()
    wanted = {name: weight.grad for name, weight in reference.named_parameters()}
    # Of an untied BART, a table that nothing looks into.
    wanted = {name: gradient.numpy() for name, gradient in wanted.items() if gradient is not None}
    assert found.keys() == wanted.keys()
    largest = max(np.abs(gradient).max() for gradient in wanted.values())
    for name, gradient in wanted.items():
        np.testing.assert_allclose(found[name], gradient, atol=1e-5 * largest, err_msg=name)


def compare_sentence_heads(make, tmp_path):
    """Compare the classifier and the question answerer; `make` gives references."""
    ids, mask = draw_ids(SOURCES, 3, has_eos=True)
    for head, name, options, outputs in (
        ("SequenceClassification", "sequence_classification", {"num_labels": 2}, ("logits",)),
        ("QuestionAnswering", "question_answering", {}, ("start_logits", "end_logits")),
    ):
        folder = tmp_path / name
        reference = make(folder, head, num_labels=2)
        expected = reference(*to_torch(ids, mask))
        model, report = load_model(folder, head=name, **options)
        model.eval()
        assert report.new_parameters == report.ignored_keys == ()
        found = run(model, jnp.asarray(ids), jnp.asarray(mask), jnp.asarray(mask))
        for output, key in zip(jax.tree.leaves(found), outputs, strict=True):
            assert_close(output, expected[key].detach())


def compare_step_by_step(model):
    """Feed one token at a time: the logits are those of all tokens at once, also reordered."""
    source, mask = map(jnp.asarray, draw_ids(SOURCES, 0))
    tokens, is_token = map(jnp.asarray, draw_ids((6, 6, 6), 1))
    logits, cache = nnx.jit(lambda model, *inputs: model.begin(*inputs, 6))(model, source, mask)
    start = jnp.full((3, 1), read_start(model))
    advance = nnx.jit(lambda model, *inputs: model.advance(*inputs))
    expected = run(model, source, mask, jnp.concatenate([start, tokens[:, :5]], 1), is_token)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(cache)} == {3}
    assert_close(logits, expected[:, 0])
    rows = jnp.arange(3)
    for step, order in enumerate([[1, 2, 0], [0, 0, 1], [2, 1, 0], [0, 1, 2], [1, 1, 1]]):
        logits, cache = advance(model, tokens[rows, step], cache)
        assert_close(logits, expected[rows, step + 1], 2e-5)
        # Every row keeps to its own past, wherever it is moved to.
        rows = rows[jnp.array(order)]
        cache = jax.tree.map(lambda array: array[jnp.array(order)], cache)  # noqa: B023


def read_start(model):
    """Find the token that a model's decoder starts with."""
    return getattr(model, "model", model).start_token_id


def compare_generation(reference, model, num_beams, **options):
    """Compare the tokens of greedy or beam search with those of PyTorch."""
    torch = pytest.importorskip("torch")
    source = draw_ids(SOURCES, 4)
    # Not 0, since PyTorch's beam search takes that for none.
    padding = 2
    options |= {"max_new_tokens": 12, "num_beams": num_beams, "pad_token_id": padding}

    def write(end):
        ids, mask = to_torch(*source)
        with torch.no_grad():
            written = reference.generate(
                ids, attention_mask=mask, do_sample=False, eos_token_id=end, **options
            )
        return written[:, 1:].numpy()  # without what the decoder starts with

    # Random weights do not end by themselves: a token that they write anyway is made the end.
    ends = (int(token) for token in write(end=None)[:, 3:].ravel())
    end, expected = next((e, written) for e in ends if ((written := write(e)) == e).any())
    chosen = GenerationOptions(eos_token_id=end, **options)
    found = np.asarray(generate(model, *map(jnp.asarray, source), chosen))
    width = expected.shape[1]
    np.testing.assert_array_equal(found[:, :width], expected)
    assert (found[:, width:] == padding).all()


def keep_keys(folder, names, into):
    """Copy a model's folder, its one table of words under the given names only."""
    into.mkdir()
    (into / "config.json").write_text((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    [table] = [key for key in weights if key.endswith("shared.weight")]
    array = weights.pop(table)
    save_file(weights | {name: array.copy() for name in names}, into / "model.safetensors")
    return into


def reload_in_pytorch(name, folder):
    """Load a folder in PyTorch, with every key in its place."""
    transformers = pytest.importorskip("transformers")
    reference, info = getattr(transformers, name).from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return reference.eval()


def compare_reloaded(reference, model, folder):
    """Save our model, and compare the logits of what PyTorch loads."""
    torch = pytest.importorskip("torch")
    config = reference.config
    save_weights(model, folder, find_spec(config).weights)
    config.save_pretrained(folder)
    reloaded = reload_in_pytorch(type(reference).__name__, folder)
    inputs = to_torch(*draw_ids(SOURCES, 0), *draw_ids(TARGETS, 1))
    with torch.no_grad():
        found, expected = (each(*inputs).logits for each in (reloaded, reference))
    np.testing.assert_array_equal(found, expected)


def assert_equal_weights(model, other):
    """Compare every parameter, to the bit."""
    leaves, others = (jax.tree.leaves(nnx.state(each, nnx.Param)) for each in (model, other))
    jax.tree.map(np.testing.assert_array_equal, leaves, others)


def compare_bfloat16(folder, exact_model, bound):
    """Compare the logits of bfloat16 with those of float32, relative to the largest."""
    rounded_model, _ = load_model(
        folder, head="seq2seq_lm", dtype=jnp.bfloat16, param_dtype=jnp.bfloat16
    )
    rounded_model.eval()
    inputs = [jnp.asarray(array) for array in (*draw_ids(SOURCES, 0), *draw_ids(TARGETS, 1))]
    exact, rounded = (run(model, *inputs) for model in (exact_model, rounded_model))
    assert rounded.dtype == jnp.float32
    assert jnp.abs(rounded - exact).max() < bound * jnp.abs(exact).max()


def check_float64(config):
    """Trace a model of float64: nothing on the way to its logits, or in its cache, is narrower."""
    ids, mask = map(jnp.asarray, draw_ids(TARGETS, 0))
    with jax.enable_x64(True):
        wide = {"dtype": jnp.float64, "param_dtype": jnp.float64}
        model = abstract_model(config, head="seq2seq_lm", **wide)
        outputs = nnx.eval_shape(
            lambda model: (model(ids, mask, ids, mask), model.begin(ids, mask, 4)), model
        )
    floats = [leaf for leaf in jax.tree.leaves(outputs) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert {leaf.dtype for leaf in floats} == {jnp.dtype("float64")}


def compare_dropout(reference, folder):
    """Compare mean and spread of one sentence's logits: they tell the rates and the places."""
    torch = pytest.importorskip("torch")
    count = 4096
    ids, mask = (np.repeat(array, count, 0) for array in draw_ids((5,), 5, has_eos=True))
    with torch.no_grad():
        expected = reference.train()(*to_torch(ids, mask)).logits.numpy()
    model, _ = load_model(folder, num_labels=expected.shape[1])
    logits = np.asarray(run(model, *map(jnp.asarray, (ids, mask, mask))))
    spread = expected.std(0)
    assert spread.min() > 0.01
    # Five standard errors of a difference of means; of standard deviations, for light tails.
    np.testing.assert_array_less(
        np.abs(logits.mean(0) - expected.mean(0)), 5 * spread * np.sqrt(2 / count)
    )
    np.testing.assert_allclose(logits.std(0), spread, rtol=5 * np.sqrt(1 / count))


def split_linears(model, spec):
    """Tell the paths of the dense layers that are targets, and of those that are not."""
    linears = {
        ".".join(map(str, path))
        for path, module in nnx.iter_modules(model)
        if isinstance(module, nnx.Linear)
    }
    targets = {path for path in linears if re.fullmatch(spec.target_modules, path)}
    return targets, linears - targets


def compare_initial_scales(reference, model, table):
    """Compare the standard deviation and mean of every new weight."""
    wanted = dict(reference.named_parameters())
    for path, variable in name_variables(model, nnx.Param).items():
        found, place = variable.get_value(), table.find_place(path)
        if place.key not in wanted:
            continue
        weight = wanted[place.key].detach().numpy()
        # Six standard errors of the difference of two samples' standard deviations.
        bound = 6 / np.sqrt(found.size)
        np.testing.assert_allclose(found.std(), weight.std(), rtol=bound, err_msg=path)
        np.testing.assert_allclose(
            found.mean(), weight.mean(), atol=1.5 * bound * weight.std() + 1e-9, err_msg=path
        )
