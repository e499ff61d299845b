"""Memory that a step frees and the next one needs again stays with the process."""

import ctypes
import platform

import jax

# Parameters of mallopt(3), with the values that glibc starts from.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_DEFAULTS = {_TRIM_THRESHOLD: 128 * 1024, _MMAP_MAX: 65536}


def keep_freed_memory() -> bool:
    """Have the C library keep what is freed, if JAX computes on a CPU; tells whether it does.

    XLA asks for the buffers of every step anew. From glibc large ones come straight from the
    system, which must clear each of their pages, and go back to it after the step. To be called
    before JAX is used: its threads then share one pool.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    _set({_TRIM_THRESHOLD: -1, _MMAP_MAX: 0, _ARENA_MAX: 1})
    is_cpu = jax.default_backend() == "cpu"
    if not is_cpu:
        _set(_DEFAULTS)  # the host's memory is for others then
    return is_cpu


def _set(options: dict[int, int]) -> None:
    set_option = ctypes.CDLL(None).mallopt
    for option, value in options.items():
        set_option(option, value)
