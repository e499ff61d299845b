"""Memory on a CPU: buffers of one step at a time, which the process keeps between steps."""

import ctypes
import platform

import jax

# Parameters of mallopt(3).
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Make the C library keep freed memory, if it is glibc, so that steps reuse their buffers.

    On a CPU, XLA allocates the buffers of every step anew. By default glibc takes large buffers
    from the system, which must clear their pages, and returns them after the step. Call this
    function before JAX is used: JAX's threads then share one pool of memory.

    Returns:
        True if the C library now keeps freed memory; False if it is not glibc or refuses.

    Example:
        >>> import increlora_jax as il
        >>> is_kept = il.keep_freed_memory()
        >>> isinstance(is_kept, bool)
        True
    """
    if not _is_glibc():
        return False
    set_option = ctypes.CDLL(None).mallopt
    options = {_TRIM_THRESHOLD: -1, _MMAP_MAX: 0, _ARENA_MAX: 1}
    return all(set_option(option, value) for option, value in options.items())


def dispatch_synchronously() -> None:
    """Make JAX on a CPU finish a computation before the call that dispatches it returns.

    With asynchronous dispatch, JAX allocates the buffers of every waiting call: four steps in
    flight need four times the memory of one. Call this function before JAX is used. It does not
    affect GPUs and TPUs.

    Example:
        >>> import increlora_jax as il, jax
        >>> il.dispatch_synchronously()
        >>> float(jax.jit(lambda x: 2 * x)(3.0))
        6.0
        >>> jax.config.update("jax_cpu_enable_async_dispatch", True)  # JAX's default again
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)


def return_freed_memory() -> None:
    """Return freed memory to the system, if the C library is glibc.

    Call it after programs were compiled or loaded: later steps do not reuse the memory of a
    compilation.

    Example:
        >>> import increlora_jax as il
        >>> il.return_freed_memory()
    """
    if _is_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def _is_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"
