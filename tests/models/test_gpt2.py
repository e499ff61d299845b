"""GPT-2 against PyTorch's transformers, and its own invariants."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from increlora_jax.errors import InputError
from increlora_jax.models.gpt2 import GPT2LMHeadModel
from increlora_jax.models.registry import abstract_model, load_model
from tests.causal import save_reference, write_config
from tests.causal_parity import check_heads, check_language_model, check_rounding

OPTIONS = {
    "plain": {},
    "scaled otherwise": {
        "scale_attn_weights": False,
        "scale_attn_by_inverse_layer_idx": True,
        "activation_function": "relu",
        "n_inner": 24,
    },
    "untied": {
        "tie_word_embeddings": False,
        "scale_attn_by_inverse_layer_idx": True,
        "reorder_and_upcast_attn": True,
    },
}


@pytest.mark.parametrize("changes", OPTIONS.values(), ids=OPTIONS)
def test_logits_loss_and_gradients_equal_pytorch(changes, tmp_path):
    check_language_model(tmp_path, "gpt2", **changes)


def test_heads_equal_pytorch(tmp_path):
    check_heads(tmp_path, "gpt2")


def test_bfloat16_stays_within_its_bound(tmp_path):
    check_rounding(tmp_path, "gpt2")


def test_old_files_of_the_bare_body_load(tmp_path):
    """OpenAI's own: no prefix, the causal mask saved beside the weights, no head."""
    save_reference(tmp_path, "gpt2")
    file = tmp_path / "model.safetensors"
    expected = load_file(file)
    bare = {key.removeprefix("transformer."): tensor for key, tensor in expected.items()}
    bare |= {"h.0.attn.bias": np.tril(np.ones((1, 1, 64, 64), np.float32))}
    save_file(bare, file, metadata={"format": "pt"})
    model, report = load_model(tmp_path, head="causal_lm")
    assert report.ignored_keys == ("h.0.attn.bias",)
    np.testing.assert_array_equal(
        model.transformer.h[1].mlp.c_fc.kernel[...], expected["transformer.h.1.mlp.c_fc.weight"]
    )
    _, report = load_model(tmp_path, num_labels=2)
    assert report.new_parameters == ("score.kernel",)


def test_dropout_sits_where_pytorch_has_it(tmp_path):
    torch = pytest.importorskip("torch")
    reference = save_reference(
        tmp_path, "gpt2", attn_pdrop=0.11, resid_pdrop=0.22, embd_pdrop=0.33, n_layer=1
    )
    model = abstract_model(reference.config, head="causal_lm")
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


@pytest.mark.parametrize(("given", "rate"), [(None, 0.0), (0.3, 0.3)])
def test_classifier_dropout_is_only_what_is_given(given, rate, tmp_path):
    config = write_config(tmp_path, "gpt2")
    assert abstract_model(config, num_labels=2, classifier_dropout=given).dropout.rate == rate


def test_new_weights_are_as_the_original(tmp_path):
    """What ends a branch starts smaller by the square root of the number of branches."""
    config = write_config(tmp_path, "gpt2")
    block = nnx.jit(lambda: GPT2LMHeadModel(config, rngs=nnx.Rngs(0)))().transformer.h[1]
    # Within four standard errors of 1024 numbers and more.
    assert jnp.std(block.attn.c_attn.kernel[...]) == pytest.approx(0.2, rel=0.05)
    for narrowed in (block.attn.c_proj, block.mlp.c_proj):
        assert jnp.std(narrowed.kernel[...]) == pytest.approx(0.1, rel=0.09)
    assert not block.mlp.c_proj.bias[...].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"add_cross_attention": True}, "add_cross_attention"),
        ({"n_head": 5}, r"n_embd 32 is not a multiple of n_head 5"),
        ({"activation_function": "snake"}, "'snake'"),
    ],
)
def test_what_is_not_done_is_refused(change, message, tmp_path):
    with pytest.raises(InputError, match=message):
        abstract_model(write_config(tmp_path, "gpt2", **change), head="causal_lm")


def test_too_long_a_sequence_is_refused(tmp_path):
    model = abstract_model(write_config(tmp_path, "gpt2"), head="causal_lm")
    ids = jnp.zeros((1, 65), jnp.int32)
    with pytest.raises(InputError, match=r"65 tokens.* 64 positions \(n_positions\)"):
        nnx.eval_shape(lambda model: model(ids, ids), model)


def test_too_many_new_tokens_are_refused(tmp_path):
    model = abstract_model(write_config(tmp_path, "gpt2"), head="causal_lm")
    ids = jnp.zeros((1, 60), jnp.int32)

    def write(model):
        _, cache = model.begin(ids, ids, 5)
        return model.advance(ids[:, 0], cache)

    with pytest.raises(InputError, match=r"65 tokens, new ones included.*max_new_tokens"):
        nnx.eval_shape(write, model)
