"""Models by name: a local folder, or an id of the Hugging Face Hub."""

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import huggingface_hub
from huggingface_hub.errors import (
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from increlora_jax.errors import InputError
from increlora_jax.files.inside import inside
from increlora_jax.weights.folder import CONFIG_NAME
from increlora_jax.weights.tensor_files import WEIGHTS_NAME, find_weights
from increlora_jax.weights.tokenizer import TOKENIZER_NAMES

_FILES = (
    CONFIG_NAME,
    *TOKENIZER_NAMES,
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
)
_TORCH_FILES = ("pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json")
_ADAPTER_NAME = "adapter_config.json"
_OF_A_RUN = ("config.yaml", "results.json", f"adapter/{_ADAPTER_NAME}")
"""Files that identify the folder of a training run."""

_CONVERTER = "SFconvertbot"
"""Account of the hub that adds safetensors to repositories without them, as a pull request."""


def resolve_model(model: str, revision: str | None = None, subfolder: str | None = None) -> Path:
    """Return the folder of a model; download the files that the cache lacks.

    If a repository has no safetensors, the hub's own conversion is used; if there is none,
    PyTorch's file. Only one of these is downloaded, and no other framework's file.

    Args:
        model: A local folder, or an id of the hub.
        revision: A branch, tag or commit of the hub; default: the newest.
        subfolder: The model's place within the folder or repository.

    Raises:
        InputError: If there is no such folder, or the hub does not know the id or cannot be
            reached.
    """
    local = Path(model).expanduser()
    if subfolder is not None and {"..", ".", "/"} & {*PurePosixPath(subfolder).parts, subfolder}:
        raise InputError(
            f"--model-subfolder {subfolder}: not inside of --model. Name a folder within it"
        )
    if local.is_dir():
        if revision is not None:
            raise InputError(
                f"--model-revision {revision} is for a model of the hub, and {model} is a local "
                "folder. Leave it out"
            )
        return _find_local(local, subfolder)
    if local.exists() or model.startswith((".", "~", os.sep)) or model.count("/") > 1:
        what = "a file, not a folder" if local.exists() else "no such folder"
        raise InputError(
            f"model {model}: {what}. Give --model the folder that holds its {CONFIG_NAME}"
        )
    return _find_on_hub(model, revision, subfolder)


def _find_local(folder: Path, subfolder: str | None) -> Path:
    found = folder / (subfolder or "")
    if not found.is_dir():
        raise InputError(f"--model-subfolder {subfolder}: {folder} has no such folder. Correct it")
    if not (found / CONFIG_NAME).is_file():
        inner = (path for path in found.iterdir() if (path / CONFIG_NAME).is_file())
        names = [path.name for path in sorted(inner, key=_age)]
        _refuse_outer(
            str(found),
            names,
            is_adapter=(found / _ADAPTER_NAME).is_file(),
            is_run=any((found / name).exists() for name in _OF_A_RUN),
        )
    return found


def _find_on_hub(model: str, revision: str | None, subfolder: str | None) -> Path:
    start = "" if subfolder is None else f"{subfolder.strip('/')}/"
    root = _download(model, _within(start, _FILES), revision)
    folder = root if subfolder is None else inside(root, start, "--model-subfolder")
    if not (folder / CONFIG_NAME).is_file():
        files = _list_files(model, root.name)
        names = [file.removesuffix(f"/{CONFIG_NAME}").removeprefix(start) for file in files
                 if file.startswith(start) and file.endswith(f"/{CONFIG_NAME}")]  # fmt: skip
        _refuse_outer(f"model {model}", [n for n in names if n + "/" != start])
    if find_weights(folder) is not None:
        return folder
    converted = _download_conversion(model, root, start)
    return converted or _download(model, _within(start, _TORCH_FILES), root.name) / start


def _within(start: str, patterns: Sequence[str]) -> list[str]:
    return [start + pattern for pattern in patterns]


def _age(path: Path) -> tuple[int, str]:
    """Return the key that sorts checkpoint-500 before checkpoint-1000."""
    number = path.name.rpartition("-")[2]
    return int(number) if number.isascii() and number.isdigit() else 0, path.name


def _refuse_outer(
    where: str, names: Sequence[str], *, is_adapter: bool = False, is_run: bool = False
) -> None:
    """Raise an InputError if the model is in a subfolder, or the folder holds an adapter or a run.

    Args:
        where: Words for the folder or repository.
        names: Its subfolders that hold a model.
        is_adapter: Whether it holds an adapter.
        is_run: Whether it holds a training run.
    """
    if names:
        raise InputError(
            f"{where}: no {CONFIG_NAME} here, but in {', '.join(f'{name}/' for name in names)}. "
            f"Give --model-subfolder {names[-1]}"
        )
    if is_adapter:
        raise InputError(
            f"{where}: no {CONFIG_NAME} here, but {_ADAPTER_NAME}: this is an adapter. Give "
            "--model the base model that it was trained on"
        )
    if is_run:
        raise InputError(
            f"{where}: no {CONFIG_NAME} here, but files of a training run: this is a run's "
            "folder. Give --model the folder of the base model that it was trained on"
        )


def _list_files(model: str, commit: str) -> list[str]:
    """List a repository's files for a hint; empty if the hub cannot be reached."""
    try:
        return sorted(huggingface_hub.list_repo_files(model, revision=commit))
    # Any error means that the hub gives no list.
    except Exception:
        return []


def _download(model: str, patterns: Sequence[str], revision: str | None = None) -> Path:
    try:
        return Path(
            huggingface_hub.snapshot_download(
                model, revision=revision, allow_patterns=list(patterns)
            )
        )
    except RevisionNotFoundError as error:
        raise InputError(
            f"model {model}: the Hugging Face Hub has no revision {revision} of it "
            f"({_first_line(error)}). Give --model-revision a branch, tag or commit"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise InputError(
            f"model {model}: neither a local folder nor a model that the Hugging Face Hub shows "
            f"you ({_first_line(error)}). Check the spelling, or log in with `hf auth login` if "
            "it is private or gated"
        ) from error
    # The hub's library raises errors of its HTTP client, which differ between releases.
    except Exception as error:
        raise InputError(
            f"model {model}: no local folder, and the Hugging Face Hub could not give it "
            f"({_first_line(error)}). To work offline, give a folder with --model DIR that holds "
            f"{CONFIG_NAME}, the tokenizer and {WEIGHTS_NAME}; or fill the cache where there is a "
            f"network (`hf download {model}`) and set HF_HUB_OFFLINE=1"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _download_conversion(model: str, main: Path, start: str) -> Path | None:
    try:
        references = _list_conversions(model, main.name, start)
    # On any error of the hub, the conversion of an earlier run may still be in the cache.
    except Exception:
        cached = main.parents[1] / "refs" / "refs" / "pr"
        references = [f"refs/pr/{file.name}" for file in sorted(cached.glob("*"))]
    patterns = _within(start, _FILES)
    folders = (_download(model, patterns, reference) / start for reference in references)
    return next((folder for folder in folders if find_weights(folder) is not None), None)


def _list_conversions(model: str, commit: str, start: str) -> list[str]:
    """List the references of the hub's conversions of this commit's weights."""
    offers = huggingface_hub.get_repo_discussions(
        model, author=_CONVERTER, discussion_type="pull_request", discussion_status="open"
    )
    # The query asks for these already; the content that is loaded depends on it, so check again.
    references = [
        offer.git_reference
        for offer in offers
        if offer.author == _CONVERTER and offer.is_pull_request and offer.git_reference
    ]
    return [
        reference
        for reference in references
        if _identify_weights(model, reference, start) == _identify_weights(model, commit, start)
    ]


def _identify_weights(model: str, revision: str, start: str) -> dict[str, str]:
    """Return the content hashes of a revision's PyTorch files in the folder `start`."""
    files = huggingface_hub.list_repo_tree(model, start.strip("/") or None, revision=revision)
    return {
        file.path: file.blob_id
        for file in files
        if isinstance(file, huggingface_hub.RepoFile) and Path(file.path).match("pytorch_model*")
    }
