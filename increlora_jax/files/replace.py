"""Files and folders replaced whole: after a kill at any instant the old or the new is there.

The new one is written aside, brought onto the disk, and renamed into place. A folder takes two
renames, the old one out of the way and the new one in; between them `find_folder` finds the old.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from increlora_jax.errors import WriteError


def aside_of(path: Path) -> Path:
    """Where the new one is written."""
    return path.with_name(f".{path.name}.new")


def old_of(path: Path) -> Path:
    """Where a folder's old one is kept while the new one takes its place."""
    return path.with_name(f".{path.name}.old")


def find_folder(path: Path) -> Path:
    """Find what is to be read as `path`, which a kill may have left under another name."""
    old = old_of(path)
    is_left = old.is_dir() and not old.is_symlink() and not path.exists()
    return old if is_left else path


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Give the path of a file to write, which then takes the place of `path`.

    Raises:
        WriteError: it cannot be written; what was there before is as it was.
    """
    aside = aside_of(path)
    with _naming(path):
        yield aside
        _sync(aside)
        os.replace(aside, path)
        _sync(path.parent)


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Give the path of an empty folder to fill, which then takes the place of `path`.

    Raises:
        WriteError: it cannot be written; what was there before is as it was.
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
    with suppress(OSError):  # of no more use, and of no harm
        _remove(old)


def remove(path: Path) -> None:
    """Remove a file or folder, and whatever a kill may have left beside it.

    Raises:
        OSError: it cannot be removed.
    """
    for one in (path, old_of(path), aside_of(path)):
        _remove(one)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # As far as the disk lets us: whoever reads or writes next does the same.
        with suppress(OSError):
            _restore(path)
            _remove(aside_of(path))
        raise WriteError(
            f"{path} cannot be written: {error}; what was there before is as it was: make room or "
            "mend the folder, and start the same command again"
        ) from error


def _restore(path: Path) -> None:
    """Bring back the old folder if the new one never came into its place."""
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
        # Some network file systems do not know how to sync a folder.
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)
