"""File names read from files, checked so that their paths cannot leave a folder."""

from pathlib import Path, PureWindowsPath

from increlora_jax.errors import InputError


def inside(folder: Path, name: object, said_by: str | Path) -> Path:
    """Return the path of the file `name` in `folder`, after following links.

    In a snapshot of the Hugging Face cache, links may also lead to the cache's `blobs` folder.

    Args:
        folder: The folder that the path must not leave.
        name: A name read from a file; checked to be a string.
        said_by: The file that holds the name, for error messages.

    Raises:
        InputError: If `name` is no file name, or its path is outside of `folder`.
    """
    if not isinstance(name, str) or not _stays(name):
        raise InputError(
            f"{said_by}: {name!r} is not the name of a file in {folder}; the file is damaged or "
            "malicious: get it again from where you trust"
        )
    path = folder / name
    if not any(_resolve(path).is_relative_to(root) for root in _roots(folder)):
        raise InputError(
            f"{said_by}: {name} is a link that leads out of {folder}. Put the file itself there"
        )
    return path


def _stays(name: str) -> bool:
    # PureWindowsPath knows the separators, drives and absolute paths of every system.
    path = PureWindowsPath(name)
    return bool(path.parts) and not path.anchor and ".." not in path.parts and "\0" not in name


def _roots(folder: Path) -> list[Path]:
    root = _resolve(folder)
    snapshot = next((p for p in (root, *root.parents) if p.parent.name == "snapshots"), None)
    return [root, *([_resolve(snapshot.parents[1] / "blobs")] if snapshot else [])]


def _resolve(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path} cannot be followed: {error}") from error
