"""Folders of the user's cache that nobody else can write to, since programs in them are run."""

import os
import stat
from pathlib import Path


def cache_folder(name: str) -> Path:
    """Return the default folder of one of the caches of this package.

    Raises:
        RuntimeError: If the user has no home folder.
    """
    caches = os.environ.get("XDG_CACHE_HOME")
    return (Path(caches) if caches else Path.home() / ".cache") / "increlora_jax" / name


def make_private(folder: Path) -> str | None:
    """Make a folder, and close it to other users; return the problem, if there is one."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if folder.stat().st_uid == os.getuid():
            folder.chmod(0o700)
        found = folder.stat()
    except OSError as error:
        return f"cannot be used: {error}"
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid != os.getuid() or mode != 0o700:
        return f"is not private to you (owner {found.st_uid}, mode {mode:o})"
    return None
