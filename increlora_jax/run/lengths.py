"""Length of sequences: `--max-seq-length` against the model's positions, before loading."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from increlora_jax.config import RunConfig
from increlora_jax.errors import InputError
from increlora_jax.models.registry import find_spec

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_NO_LIMIT = 1 << 30
"""From this value on, a tokenizer's `model_max_length` means that it has no limit."""


def fit_length(
    config: RunConfig, model_config: "PretrainedConfig", *, may_cut: bool = False
) -> tuple[RunConfig, tuple[str, ...]]:
    """Return a configuration whose sequence length fits the model, and notes.

    A default length is lowered with a note; with `may_cut`, a given length too.

    Args:
        config: All settings.
        model_config: The model's `config.json`.
        may_cut: Whether a given length may be lowered.

    Raises:
        InputError: If a given length is above the model's positions.
    """
    asked, most = config.task.max_seq_length, find_spec(model_config).max_length(model_config)
    if most is None or asked <= most:
        return config, _note_training_length(asked, model_config)
    if "max_seq_length" not in config.unsaid and not may_cut:
        raise InputError(
            f"--max-seq-length {asked}: the model has positions for {most} tokens. Give at most "
            f"--max-seq-length {most}, or another --model"
        )
    note = f"--max-seq-length {asked} is above the model's {most} positions: {most} is used"
    return replace(config, task=replace(config.task, max_seq_length=most)), (note,)


def _note_training_length(asked: int, model_config: "PretrainedConfig") -> tuple[str, ...]:
    known = getattr(model_config, "max_position_embeddings", None)
    if not isinstance(known, int) or asked <= known:
        return ()
    return (
        f"--max-seq-length {asked} is above the {known} positions that the model was trained on "
        "(max_position_embeddings); it computes more, but has never seen them",
    )


def note_tokenizer(asked: int, tokenizer: Any) -> tuple[str, ...]:
    """Return notes on a tokenizer: a shorter length than the given one, or missing frames."""
    notes = []
    stated = tokenizer.model_max_length
    if stated < min(asked, _NO_LIMIT):
        notes.append(f"--max-seq-length {asked} is above the tokenizer's model_max_length {stated}")
    if tokenizer.cls_token and not tokenizer.num_special_tokens_to_add():
        notes.append(
            f"the tokenizer knows {tokenizer.cls_token} and puts it around no text, which the "
            "model may expect. Copy the model's own tokenizer files into its folder"
        )
    return tuple(notes)
