"""Cache of compiled programs on disk, in a folder that only the user can write to."""

import os
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

from increlora_jax.errors import InputError
from increlora_jax.runtime.private_folder import cache_folder, make_private
from increlora_jax.runtime.streams import tell

OFF = "off"
_SETTING = "jax_compilation_cache_dir"
_MIN_SECONDS = "jax_persistent_cache_min_compile_time_secs"


def use_compilation_cache(chosen: str | None) -> Path | None:
    """Make JAX cache compiled programs on disk, so that the next run starts sooner.

    If the default folder cannot be used, a note is printed and nothing is cached.

    Args:
        chosen: A folder; `off`; or None for the folder in `JAX_COMPILATION_CACHE_DIR`, and without
            that variable for `increlora_jax/jax` in the user's cache folder.

    Returns:
        The folder of the cache, or None if nothing is cached.

    Raises:
        InputError: If a chosen folder cannot be used, or others can write to it.
    """
    told = getattr(jax.config, _SETTING)
    if chosen == OFF:
        _switch(None)
        return None
    if chosen is None and told:
        return Path(told)
    try:
        folder = Path(chosen).expanduser() if chosen else cache_folder("jax")
        _check_private(folder)
    except (InputError, RuntimeError) as error:  # RuntimeError: this user has no home
        _go_without(str(error), chosen)
        return None
    _switch(str(folder))
    return folder


def _go_without(problem: str, chosen: str | None) -> None:
    if chosen is not None:
        raise InputError(problem)
    tell(f"note: compiled programs are not kept: {problem}")
    _switch(None)


def _switch(folder: str | None) -> None:
    # By default JAX recompiles small programs in every process: a second of each start.
    if os.environ.get(_MIN_SECONDS.upper()) is None and getattr(jax.config, _MIN_SECONDS) == 1.0:
        jax.config.update(_MIN_SECONDS, 0.0)
    if getattr(jax.config, _SETTING) != folder:
        jax.config.update(_SETTING, folder)
        compilation_cache.reset_cache()  # otherwise JAX keeps the setting of its first compilation


def _check_private(folder: Path) -> None:
    # JAX executes the programs in this folder: anyone who can write to it can run code as this
    # user.
    if problem := make_private(folder):
        raise InputError(
            f"the compilation cache {folder} {problem}. Give another folder with "
            f"--compilation-cache-dir, or switch it off with --compilation-cache-dir {OFF}"
        )
