"""What every causal architecture is held to: PyTorch's transformers, number by number."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from safetensors.numpy import load_file

from increlora_jax.models.registry import find_spec, load_model
from increlora_jax.weights.folder import read_config, save_weights
from tests.causal import NUM_LABELS, Prompts, save_reference

run = nnx.jit(lambda model, *arrays: model(*arrays))
# Longer than the sliding windows and the first context that the tests configure.
PROMPTS = Prompts.draw(0, 3, -7, 5, length=24)
IDS, MASK = jnp.asarray(PROMPTS.input_ids), jnp.asarray(PROMPTS.attention_mask)

# Where there is a token before, not padding that has nothing to predict from.
FOLLOWS = (PROMPTS.attention_mask[:, 1:] * PROMPTS.attention_mask[:, :-1]) > 0


def assert_close(ours: Any, theirs: Any, tolerance: float, name: str = "") -> None:
    """Compare within `tolerance` of the largest of their numbers."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    np.testing.assert_allclose(
        ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max(), err_msg=name
    )


def check_language_model(folder: Path, kind: str, **changes: Any) -> None:
    """Compare logits, loss, the gradient of every weight, and weights saved and read again."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    reference = save_reference(folder, kind, **changes)
    model, report = load_model(folder, head="causal_lm")
    assert report.new_parameters == report.ignored_keys == ()
    model.eval()

    labels = torch.full(IDS.shape, -100)
    labels[:, 1:][FOLLOWS] = torch.as_tensor(PROMPTS.input_ids[:, 1:][FOLLOWS])
    expected = reference(**PROMPTS.to_torch(), labels=labels)
    expected.loss.backward()
    (loss, logits), gradients = nnx.jit(nnx.value_and_grad(_compute_loss, has_aux=True))(
        model, IDS, MASK
    )
    is_token = PROMPTS.attention_mask[..., None] > 0
    their_logits = np.where(is_token, expected.logits.detach(), 0)
    assert_close(np.where(is_token, logits, 0), their_logits, 1e-5)
    assert_close(loss, expected.loss.detach(), 1e-5)

    weights = find_spec(read_config(folder)).weights
    save_weights(model, folder, weights)
    again = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    with torch.no_grad():
        read_again = again(**PROMPTS.to_torch()).logits
    np.testing.assert_array_equal(read_again, expected.logits.detach())

    nnx.update(model, gradients)
    save_weights(model, folder / "gradients", weights)
    ours = load_file(folder / "gradients" / "model.safetensors")
    theirs = {name: weight.grad.numpy() for name, weight in reference.named_parameters()}
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert_close(ours[name], gradient, 1e-4, name)


def _compute_loss(
    model: Any, input_ids: jax.Array, attention_mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The mean loss of every token that follows another."""
    logits = model(input_ids, attention_mask)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], input_ids[:, 1:])
    return losses.mean(where=FOLLOWS), logits


def check_heads(folder: Path, kind: str, **changes: Any) -> None:
    """Compare the logits of the sequence classifier and of question answering."""
    mask = PROMPTS.attention_mask
    for head, options in (
        ("sequence_classification", {"num_labels": NUM_LABELS}),
        ("question_answering", {}),
    ):
        reference = save_reference(folder, kind, head, **changes)
        model, report = load_model(folder, head=head, **options)
        assert report.new_parameters == report.ignored_keys == ()
        model.eval()
        logits = run(model, IDS, MASK, jnp.zeros_like(IDS))
        expected = reference(**PROMPTS.to_torch())
        if head == "sequence_classification":
            assert_close(logits, expected.logits.detach(), 1e-5)
        else:
            for ours, theirs in zip(
                logits, (expected.start_logits, expected.end_logits), strict=True
            ):
                assert_close(np.where(mask, ours, 0), np.where(mask, theirs.detach(), 0), 1e-5)


def check_rounding(folder: Path, kind: str) -> None:
    """Compare bfloat16 with float32.

    With its 8 bits one rounding is 0.4 %, and these two layers round some thirty times; the
    weights are ten times the usual. PyTorch's own bfloat16 is as far off, within a half.
    """
    torch = pytest.importorskip("torch")
    reference = save_reference(folder, kind)
    options = {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16}
    model, _ = load_model(folder, head="causal_lm", **options)
    model.eval()
    rounded = run(model, IDS, MASK)
    assert rounded.dtype == jnp.float32
    is_token = PROMPTS.attention_mask > 0
    with torch.no_grad():
        exact = reference(**PROMPTS.to_torch()).logits.numpy()[is_token]
        theirs = reference.bfloat16()(**PROMPTS.to_torch()).logits.float().numpy()[is_token]
    error = np.abs(np.asarray(rounded)[is_token] - exact).max() / np.abs(exact).max()
    their_error = np.abs(theirs - exact).max() / np.abs(exact).max()
    assert error < 0.06
    assert error < 1.5 * their_error
