"""Errors that say that memory is lacking, and those that do not."""

import errno

import jax
import pytest

from increlora_jax.errors import InputError, OutOfMemoryError
from increlora_jax.runtime.out_of_memory import explain_shortage, is_out_of_memory

JAX = jax.errors.JaxRuntimeError


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        JAX("RESOURCE_EXHAUSTED: Out of memory allocating 26317944772 bytes."),
        JAX("INTERNAL: Failed to allocate request for 2.0GiB"),
        ImportError("cmath.so: failed to map segment from shared object"),
        OutOfMemoryError("x"),
    ],
)
def test_memory_that_lacks_is_recognised(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "x"), JAX("INVALID_ARGUMENT: x"), InputError("out of memory")]
)
def test_other_errors_are_not(error):
    assert not is_out_of_memory(error)
    with pytest.raises(type(error)), explain_shortage(lambda: "less"):
        raise error


def test_what_was_asked_for_is_said_with_the_advice():
    with pytest.raises(OutOfMemoryError) as told, explain_shortage(lambda: "ask for less"):
        raise JAX("RESOURCE_EXHAUSTED: Out of memory allocating 26317944772 bytes.")
    assert str(told.value) == "out of memory (Out of memory allocating 24.51 GiB): ask for less"
