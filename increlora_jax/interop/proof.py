"""Proof of an export: the export is loaded again, and computes the same."""

import importlib.util
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from increlora_jax.errors import InputError
from increlora_jax.interop.model import TrainedModel
from increlora_jax.tasks.batching import collate
from increlora_jax.tasks.classification import MODEL_INPUTS
from increlora_jax.tasks.kind import Batch, Encoded
from increlora_jax.weights.tokenizer import load_tokenizer

EXAMPLES, ROWS = 16, 4
"""Examples that outputs are compared on, and rows of a batch."""

Outputs = list[np.ndarray]


class Difference(NamedTuple):
    """The largest difference of outputs.

    Attributes:
        reader: The program that has read the export.
        examples: The number of examples.
        largest: The largest absolute difference of two logits.
        size: The largest absolute logit.
    """

    reader: str
    examples: int
    largest: float
    size: float

    def describe(self) -> str:
        """Describe it in words."""
        return (
            f"read again by {self.reader}, {self.examples} examples: the largest difference is "
            f"{self.largest:.1e}, of logits up to {self.size:.1f}"
        )


def cut_batches(encoded: Encoded) -> list[Batch]:
    """Return the first examples in batches, each padded to its longest."""
    batches = []
    for start in range(0, min(EXAMPLES, len(encoded)), ROWS):
        rows = np.arange(start, min(start + ROWS, len(encoded)))
        lengths = dict.fromkeys(encoded.ragged, int(encoded.lengths[rows].max()))
        batches.append(collate(encoded, rows, batch_size=len(rows), lengths=lengths))
    return batches


def compute_outputs(model: TrainedModel, batches: Sequence[Batch]) -> Outputs:
    """Compute the logits of a trained model, with its updates as factors."""
    return compute_model(model.skeleton.assemble(model.parts), batches)


def compute_model(model: nnx.Module, batches: Sequence[Batch]) -> Outputs:
    """Compute a model's logits at all tokens that are not padding."""
    call: Any = model

    def forward(batch: Batch) -> Outputs:
        told = call(*(jnp.asarray(batch[name]) for name in MODEL_INPUTS))
        return [np.asarray(leaf, np.float32) for leaf in jax.tree.leaves(told)]

    return _join(batches, forward)


def _join(batches: Sequence[Batch], forward: Callable[[Batch], Outputs]) -> Outputs:
    """Compute all batches; outputs at each token are cut to those that are not padding."""
    each = [
        [_unpad(output, batch["attention_mask"]) for output in forward(batch)] for batch in batches
    ]
    return [np.concatenate(parts) for parts in zip(*each, strict=True)]


def _unpad(output: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return output[mask > 0] if output.shape == mask.shape else output.ravel()


def compare(reader: str, here: Outputs, there: Outputs, examples: int) -> Difference:
    """Return the largest difference of two computations.

    Args:
        reader: The program that has read the export.
        here: The logits of the run.
        there: The logits of the export.
        examples: The number of examples.
    """
    pairs = list(zip(here, there, strict=True))
    largest = max(float(np.max(np.abs(a - b))) for a, b in pairs)
    return Difference(reader, examples, largest, max(float(np.max(np.abs(a))) for a, _ in pairs))


def check(differences: Sequence[Difference], bound: float) -> None:
    """Check that the differences are small.

    Raises:
        InputError: If one is larger than `bound`, times the largest logit if that is above 1.
    """
    for one in differences:
        if not one.largest <= bound * max(1.0, one.size):
            raise InputError(
                f"the export computes otherwise than the run: {one.describe()}, and "
                f"{bound:.0e} is allowed. Nothing was kept. Please report this"
            )


def has_torch(*modules: str) -> bool:
    """Return whether PyTorch and some modules are installed."""
    return all(importlib.util.find_spec(name) for name in ("torch", *modules))


def compute_torch(
    model: TrainedModel, folder: Path, batches: Sequence[Batch], *, is_peft: bool
) -> Outputs:
    """Compute the logits by PyTorch of an exported model, or of a PEFT folder on its base.

    Args:
        model: The model that was exported.
        folder: The export.
        batches: The examples.
        is_peft: Whether the export is a folder of PEFT.
    """
    import torch

    with _quietly():
        loaded = _load_torch(model, folder, is_peft=is_peft).eval()
    taken = set(load_tokenizer(model.folder).model_input_names)
    if not getattr(loaded.config, "type_vocab_size", 0):
        taken -= {"token_type_ids"}  # which GPT-2 would take for words

    def forward(batch: Batch) -> Outputs:
        inputs = {n: torch.tensor(batch[n]).long() for n in MODEL_INPUTS if n in taken}
        with torch.no_grad():
            told = loaded(**inputs)
        names = ("logits",) if "logits" in told else ("start_logits", "end_logits")
        return [told[name].float().numpy() for name in names]

    return _join(batches, forward)


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep transformers silent meanwhile; the parameters that a checkpoint lacks are known here.

    Warnings about coming versions of PEFT and transformers are not for the user of an export.
    """
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.set_verbosity(before[0])
        if before[1]:
            logging.enable_progress_bar()


def _load_torch(model: TrainedModel, folder: Path, *, is_peft: bool) -> Any:
    import torch
    import transformers

    is_classifier = model.head == "sequence_classification"
    options: dict[str, Any] = {"local_files_only": True, "dtype": torch.float32}
    kind: Any = transformers.AutoModelForQuestionAnswering
    if is_classifier:
        kind = transformers.AutoModelForSequenceClassification
    if not is_peft:
        return kind.from_pretrained(folder, **options)
    from peft import PeftModel

    if is_classifier:
        options["num_labels"] = model.head_options["num_labels"]
    return PeftModel.from_pretrained(kind.from_pretrained(model.folder, **options), folder)
