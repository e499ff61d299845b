"""Tokenizer of a model folder: its files, and its loading."""

from pathlib import Path
from typing import TYPE_CHECKING

from increlora_jax.errors import InputError
from increlora_jax.weights.folder import CONFIG_NAME, read_config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VOCABULARY_NAMES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spm.model",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
)

TOKENIZER_NAMES = (
    *VOCABULARY_NAMES,
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
)
"""Files that a tokenizer may consist of."""

SENTENCEPIECE_NAME = "spm.model"
"""The vocabulary of DeBERTa."""


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """Load a folder's tokenizer; nothing is downloaded, and no code of the folder is run.

    Raises:
        InputError: If there is no vocabulary, or it cannot be read, or exceeds the model's.
    """
    if not any((folder / name).is_file() for name in VOCABULARY_NAMES):
        raise InputError(
            f"{folder}: no tokenizer here. Copy the model's own into it "
            f"(one of {', '.join(VOCABULARY_NAMES)})"
        )
    tokenizer = _read_tokenizer(folder)
    vocab_size = read_config(folder).vocab_size
    if len(tokenizer) > vocab_size:
        raise InputError(
            f"{folder}: the tokenizer knows {len(tokenizer)} tokens, the model of {CONFIG_NAME} "
            f"only {vocab_size} (vocab_size). Copy the model's own tokenizer into the folder"
        )
    return tokenizer


def _read_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer  # takes seconds

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        restore_normalization(tokenizer, folder)
    # The tokenizers library raises plain Exception; transformers raises KeyError and others.
    except Exception as error:
        raise InputError(
            f"{folder}: transformers cannot read the tokenizer ({type(error).__name__}: {error}). "
            "Copy the model's own tokenizer files into the folder again"
        ) from error
    return tokenizer


def restore_normalization(tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Normalize in place as the folder's `spm.model` says, if it has rules.

    transformers 5 builds DeBERTa's tokenizer from the pieces of that file, with another
    normalization. Ligatures, full-width letters and no-break spaces would then become unknown
    tokens.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    file = folder / SENTENCEPIECE_NAME
    if backend is None or not file.is_file() or "Precompiled(" in repr(backend.normalizer):
        return
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import Regex, normalizers

    model = sentencepiece_model_pb2.ModelProto.FromString(file.read_bytes())
    if characters := model.normalizer_spec.precompiled_charsmap:
        is_lower = getattr(tokenizer, "do_lower_case", False)
        backend.normalizer = normalizers.Sequence(
            [
                normalizers.Precompiled(characters),
                *([normalizers.Lowercase()] if is_lower else []),
                normalizers.Replace(Regex(" {2,}"), " "),
                normalizers.Replace(Regex("^ | $"), ""),
            ]
        )
