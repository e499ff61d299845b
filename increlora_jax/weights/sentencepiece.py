"""SentencePiece's own normalization, for tokenizers that transformers makes without it."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SENTENCEPIECE_NAME = "spm.model"
"""DeBERTa's vocabulary."""


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
