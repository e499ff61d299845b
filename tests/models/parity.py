"""How a model of ours is compared with the same model of PyTorch's transformers."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from safetensors.numpy import load_file

from increlora_jax.models.registry import find_spec, load_model
from increlora_jax.weights.folder import read_config, save_weights

NOT_SCORED = -100
"""PyTorch's label for the places that a loss leaves out."""


class Answers(NamedTuple):
    """What both sides compute of one batch; the gradients by Hugging Face's names."""

    logits: list[np.ndarray]
    loss: float
    gradients: dict[str, np.ndarray]


def ask_pytorch(reference, folder, batch, labels) -> Answers:
    """Of the names that tied weights have, the one they are stored under in the folder counts."""
    import torch

    stored = load_file(folder / "model.safetensors")
    output = reference(**to_torch(batch), **to_torch(labels))
    output.loss.backward()
    gradients = {
        name: parameter.grad.numpy()
        for name, parameter in reference.named_parameters(remove_duplicate=False)
        if name in stored and parameter.grad is not None
    }
    # Each head of transformers returns its loss first and its logits next.
    logits = [part.detach().numpy() for part in output.to_tuple()[1:] if torch.is_tensor(part)]
    return Answers(logits, output.loss.item(), gradients)


def ask_jax(model, weights, folder, batch, labels) -> Answers:
    """The same of ours, in evaluation; the folder is for the gradients to pass through."""
    model.eval()

    def compute_loss(model, batch):
        logits = model(**batch)
        logits = logits if isinstance(logits, tuple) else (logits,)
        losses = [cross_entropy(*pair) for pair in zip(logits, labels.values(), strict=True)]
        return sum(losses) / len(losses), logits

    compute = nnx.jit(nnx.value_and_grad(compute_loss, has_aux=True))
    (loss, logits), gradients = compute(model, to_jax(batch))
    holder = nnx.clone(model)
    nnx.update(holder, gradients)
    save_weights(holder, folder, weights)
    return Answers(list(logits), loss, load_file(folder / "model.safetensors"))


def cross_entropy(logits, labels):
    is_scored = labels != NOT_SCORED
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels * is_scored)
    return jnp.mean(losses, where=is_scored)


def assert_same(answers: Answers, wanted: Answers, reference) -> None:
    """Compare logits and loss to 1e-5 of their scale, every gradient to 1e-4 of its own."""
    for logits, expected in zip(answers.logits, wanted.logits, strict=True):
        bound = 1e-5 * np.abs(expected).max()
        np.testing.assert_allclose(logits, expected, rtol=0, atol=bound)
    np.testing.assert_allclose(answers.loss, wanted.loss, rtol=1e-5)
    assert answers.gradients.keys() == wanted.gradients.keys()
    unlearned = frozen_rows(reference)
    for name, expected in wanted.gradients.items():
        rows = np.arange(len(expected)) != unlearned.get(name)
        gradient = answers.gradients[name][rows]
        # Softmax does not see the bias of the keys: its gradient is rounding error around 0.
        bound = 1e-4 * np.abs(expected).max() + 1e-6
        np.testing.assert_allclose(gradient, expected[rows], rtol=0, atol=bound, err_msg=name)


def frozen_rows(reference) -> dict[str, int]:
    """Find the row of each embedding table, that of padding, to which PyTorch gives no gradient.

    Here it learns as any other; only a full fine-tuning would move it.
    """
    return {
        f"{name}.weight": module.padding_idx
        for name, module in reference.named_modules()
        if getattr(module, "padding_idx", None) is not None
    }


def assert_parity(reference, folder, head, batch, tmp_path) -> None:
    """Compare a saved reference with ours; then reload in PyTorch what ours saves."""
    config = read_config(folder)
    weights = find_spec(config).weights
    options = {"num_labels": config.num_labels} if head == "sequence_classification" else {}
    model, report = load_model(folder, head=head, **options)
    assert report.new_parameters == report.ignored_keys == ()
    labels = make_labels(head, batch, config)
    wanted = ask_pytorch(reference, folder, batch, labels)
    answers = ask_jax(model, weights, tmp_path / "gradients", batch, labels)
    assert_same(answers, wanted, reference)
    save_weights(model, tmp_path / "again", weights)
    config.save_pretrained(tmp_path / "again")
    for logits, expected in zip(
        reload_in_pytorch(type(reference), tmp_path / "again", batch), wanted.logits, strict=True
    ):
        np.testing.assert_array_equal(logits, expected)


def reload_in_pytorch(reference_class, folder, batch) -> list[np.ndarray]:
    """Give the logits of a folder's model in PyTorch, which must find every weight it uses."""
    import torch

    reference, info = reference_class.from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    with torch.no_grad():
        return [part.numpy() for part in reference.eval()(**to_torch(batch)).to_tuple()]


def to_jax(batch):
    return {name: jnp.asarray(array) for name, array in batch.items()}


def to_torch(batch):
    torch = pytest.importorskip("torch")
    return {name: torch.as_tensor(array).long() for name, array in batch.items()}


def make_labels(head, batch, config) -> dict[str, np.ndarray]:
    """Draw what a head should have said, by the names of transformers' arguments."""
    is_token = batch["attention_mask"] > 0
    random = np.random.default_rng(3)
    if head == "sequence_classification":
        return {"labels": random.integers(0, config.num_labels, len(is_token))}
    if head == "question_answering":
        ends = is_token.sum(1) - 1
        return {"start_positions": ends // 2, "end_positions": ends}
    is_hidden = is_token & (random.random(is_token.shape) < 0.5)
    is_hidden[0, 0] = True
    words = random.integers(0, config.vocab_size, is_token.shape)
    return {"labels": np.where(is_hidden, words, NOT_SCORED)}
