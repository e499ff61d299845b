"""The tokenizer of a model folder: its files, and how it is loaded."""

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
"""All files that a tokenizer may be made of."""

SENTENCEPIECE_NAME = "spm.model"
"""DeBERTa's vocabulary."""


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """Load a folder's tokenizer; nothing is downloaded and no code of the folder is run.

    Raises:
        InputError: there is no vocabulary, it cannot be read, or it is larger than the model's.
    """
    if not any((folder / name).is_file() for name in VOCABULARY_NAMES):
        raise InputError(
            f"{folder}: no tokenizer here; copy the model's own into it "
            f"(one of {', '.join(VOCABULARY_NAMES)})"
        )
    tokenizer = _read_tokenizer(folder)
    vocab_size = read_config(folder).vocab_size
    if len(tokenizer) > vocab_size:
        raise InputError(
            f"{folder}: the tokenizer knows {len(tokenizer)} tokens, the model of {CONFIG_NAME} "
            f"only {vocab_size} (vocab_size); copy the model's own tokenizer into the folder"
        )
    return tokenizer


def _read_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer  # takes seconds

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        restore_normalization(tokenizer, folder)
    # The tokenizers library raises plain Exception, and transformers lets KeyError and others out.
    except Exception as error:
        raise InputError(
            f"{folder}: transformers cannot read the tokenizer ({type(error).__name__}: {error}); "
            "copy the model's own tokenizer files into the folder again"
        ) from error
    return tokenizer


def restore_normalization(tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Normalize in place as the folder's `spm.model` says, where it says anything.

    transformers 5 makes DeBERTa's tokenizer from the pieces of that file but with a normalization
    of its own, so that ligatures, full-width letters or no-break spaces would become unknown.
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
