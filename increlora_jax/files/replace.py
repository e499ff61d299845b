"""Files and folders that are replaced whole: a kill at any time leaves the old or the new one.

The new one is written beside the old one, synced to disk, and renamed into place. A folder needs
two renames: the old one moves away, then the new one moves in. Between the two, `find_folder` finds
the old folder.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from increlora_jax.errors import WriteError


def aside_of(path: Path) -> Path:
    """Return the temporary path of a new file or folder."""
    return path.with_name(f".{path.name}.new")


def old_of(path: Path) -> Path:
    """Return the path that keeps the old folder while the new one moves in."""
    return path.with_name(f".{path.name}.old")


def find_folder(path: Path) -> Path:
    """Return the folder to read for `path`: the old one, if a kill kept the new one out."""
    old = old_of(path)
    is_left = old.is_dir() and not old.is_symlink() and not path.exists()
    return old if is_left else path


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to; the file then replaces `path`.

    Raises:
        WriteError: If the file cannot be written. The previous file is unchanged.
    """
    aside = aside_of(path)
    with _naming(path):
        yield aside
        _sync(aside)
        os.replace(aside, path)
        _sync(path.parent)


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Yield the path of an empty folder to fill; the folder then replaces `path`.

    Raises:
        WriteError: If the folder cannot be written. The previous folder is unchanged.
    """
    aside, old = aside_of(path), old_of(path)
    with _naming(path):
        _remove(aside)
        aside.mkdir(parents=True)
        yield aside
        for inner in (*aside.rglob("*"), aside):
            _sync(inner)
        _restore(path)
        if path.exists():
            _remove(old)
            os.rename(path, old)
        os.rename(aside, path)
        _sync(path.parent)
    with suppress(OSError):  # a leftover does no harm
        _remove(old)


def remove(path: Path) -> None:
    """Remove a file or folder, with the leftovers of a killed write.

    Raises:
        OSError: If it cannot be removed.
    """
    for one in (path, old_of(path), aside_of(path)):
        _remove(one)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        # Clean up as far as the disk allows; the next reader or writer does the same.
        with suppress(OSError):
            _restore(path)
            _remove(aside_of(path))
        if not isinstance(error, OSError):
            raise
        raise WriteError(
            f"{path} cannot be written: {error}. The previous one is unchanged. Make room or "
            "mend the folder, and start the same command again"
        ) from error


def _restore(path: Path) -> None:
    """Move the old folder back if the new one was not moved in."""
    if (found := find_folder(path)) != path:
        os.rename(found, path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems cannot sync a folder.
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)
