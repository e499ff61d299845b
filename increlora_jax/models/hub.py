"""Models by the name that users give: a folder, or an id of the Hugging Face Hub."""

import os
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

from increlora_jax.errors import InputError
from increlora_jax.models.hf import CONFIG_NAME, VOCABULARY_NAMES
from increlora_jax.models.tensor_files import WEIGHTS_NAME, find_weights

_FILES = (
    CONFIG_NAME,
    *VOCABULARY_NAMES,
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
)
_TORCH_FILES = ("pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json")
_CONVERTER = "SFconvertbot"
"""The hub's own account that offers safetensors of a repository without them, as a pull request."""


def resolve_model(model: str) -> Path:
    """Turn a local folder or a hub id into a folder, downloading what is not in the cache.

    Of a repository without safetensors the hub's own conversion is taken, if there is one, and
    else PyTorch's file; never both, and never another framework's.

    Raises:
      InputError: there is no such folder, the hub does not know the id or cannot be reached.
    """
    local = Path(model).expanduser()
    if local.is_dir():
        return local
    if local.exists() or model.startswith((".", "~", os.sep)) or model.count("/") > 1:
        what = "a file, not a folder" if local.exists() else "no such folder"
        raise InputError(
            f"model {model}: {what}; give --model the folder that holds its {CONFIG_NAME}"
        )
    folder = _download(model, _FILES)
    if find_weights(folder) is not None:
        return folder
    return _download_conversion(model, folder) or _download(model, _TORCH_FILES, folder.name)


def _download(model: str, patterns: Sequence[str], revision: str | None = None) -> Path:
    try:
        return Path(
            huggingface_hub.snapshot_download(
                model, revision=revision, allow_patterns=list(patterns)
            )
        )
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise InputError(
            f"model {model}: neither a local folder nor a model that the Hugging Face Hub shows "
            f"you ({_first_line(error)}); check the spelling, or log in with `hf auth login` if "
            "it is private or gated"
        ) from error
    # The hub's library lets errors out of an HTTP client that differs from release to release.
    except Exception as error:
        raise InputError(
            f"model {model}: no local folder, and the Hugging Face Hub could not give it "
            f"({_first_line(error)}). To work offline, give a folder with --model DIR that holds "
            f"{CONFIG_NAME}, the tokenizer and {WEIGHTS_NAME}; or fill the cache where there is a "
            f"network (`hf download {model}`) and set HF_HUB_OFFLINE=1"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _download_conversion(model: str, main: Path) -> Path | None:
    try:
        references = _list_conversions(model, main.name)
    # Whatever keeps the hub from telling: the conversion of an earlier run may be in the cache.
    except Exception:
        cached = main.parents[1] / "refs" / "refs" / "pr"
        references = [f"refs/pr/{file.name}" for file in sorted(cached.glob("*"))]
    folders = (_download(model, _FILES, reference) for reference in references)
    return next((folder for folder in folders if find_weights(folder) is not None), None)


def _list_conversions(model: str, commit: str) -> list[str]:
    """List the references of the hub's conversions that were made of this commit's weights."""
    offers = huggingface_hub.get_repo_discussions(
        model, author=_CONVERTER, discussion_type="pull_request", discussion_status="open"
    )
    # Asked for above, but what is loaded rests on it.
    references = [
        offer.git_reference
        for offer in offers
        if offer.author == _CONVERTER and offer.is_pull_request and offer.git_reference
    ]
    return [
        reference
        for reference in references
        if _identify_weights(model, reference) == _identify_weights(model, commit)
    ]


def _identify_weights(model: str, revision: str) -> dict[str, str]:
    """Tell the content of a revision's PyTorch files."""
    files = huggingface_hub.list_repo_tree(model, revision=revision)
    return {
        file.path: file.blob_id
        for file in files
        if isinstance(file, huggingface_hub.RepoFile) and Path(file.path).match("pytorch_model*")
    }
