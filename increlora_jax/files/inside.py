"""Names that come from files, as paths that cannot leave their folder."""

from pathlib import Path, PureWindowsPath

from increlora_jax.errors import InputError


def inside(folder: Path, name: object, said_by: str | Path) -> Path:
    """Give the path of what `said_by` calls `name`; it lies in `folder`, links followed.

    In a snapshot of the Hugging Face cache links may lead to the blobs beside the snapshots.

    Raises:
        InputError: it would lie elsewhere, or the name is none.
    """
    if not isinstance(name, str) or not _stays(name):
        raise InputError(
            f"{said_by}: {name!r} is not the name of a file in {folder}; the file is damaged or "
            "malicious: get it again from where you trust"
        )
    path = folder / name
    if not any(_resolve(path).is_relative_to(root) for root in _roots(folder)):
        raise InputError(
            f"{said_by}: {name} is a link that leads out of {folder}; put the file itself there"
        )
    return path


def _stays(name: str) -> bool:
    # Windows' rules know every separator and drive, and what is absolute elsewhere.
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
