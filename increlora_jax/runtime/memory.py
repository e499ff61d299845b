"""Memory on a CPU: that of one step and no more, which stays with the process."""

import ctypes
import platform

import jax

# Parameters of mallopt(3).
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Have the C library keep what is freed, where it is glibc; tells whether it does.

    XLA asks for a CPU's buffers of every step anew. From glibc large ones come straight from the
    system, which must clear each of their pages, and go back to it after the step. To be called
    before JAX is used: its threads then share one pool.
    """
    if not _is_glibc():
        return False
    set_option = ctypes.CDLL(None).mallopt
    options = {_TRIM_THRESHOLD: -1, _MMAP_MAX: 0, _ARENA_MAX: 1}
    return all(set_option(option, value) for option, value in options.items())


def dispatch_synchronously() -> None:
    """Have a CPU carry out a computation before the call that asks for it returns.

    JAX would give the buffers of a computation to each call that waits for its turn: of four steps
    in flight, four times those of one. To be called before JAX is used; no accelerator minds it.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)


def return_freed_memory() -> None:
    """Give the system what is free at the moment, where the C library is glibc.

    For once a program is compiled or read: what that took, a step can make no use of.
    """
    if _is_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def _is_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"
