"""Programs that are compiled in the background, and those that are waited for."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from increlora_jax.runtime.preemption import Stop
from increlora_jax.training.programs import Background, Programs, describe_arrays


@pytest.fixture
def background():
    background = Background()
    yield background
    background.close(waits=True)


def lowering(factor, threads):
    """Return a function that lowers x · factor, and notes the thread that it runs in."""

    def lower():
        threads.append(threading.current_thread())
        return jax.jit(lambda x: x * factor).lower(jax.ShapeDtypeStruct((), jnp.float32))

    return lower


def test_a_program_is_compiled_once_in_the_background_or_here(background):
    programs, threads = Programs[str](), []
    for _ in range(2):
        programs.compile_ahead("twice", lowering(2, threads), background)
    programs.compile("twice", lowering(2, threads), "compiling", Stop())
    programs.compile("thrice", lowering(3, threads), "compiling", Stop())
    programs.compile_ahead("thrice", lowering(3, threads), background)
    x = np.float32(5)
    assert [float(programs[name](x)) for name in ("twice", "thrice")] == [10, 15]
    assert len(programs) == 2
    assert [thread is threading.main_thread() for thread in threads] == [False, True]


def test_an_error_of_the_compiler_reaches_who_needs_the_program(background):
    def lower():
        raise MemoryError("no room")

    programs = Programs[str]()
    programs.compile_ahead("bad", lower, background)
    with pytest.raises(MemoryError, match="no room"):
        programs.compile("bad", lower, "compiling", Stop())


def test_arrays_are_described_as_a_program_takes_them():
    arrays = {"a": jnp.ones((2, 3)), "weak": jnp.asarray(1.0), "key": jax.random.key(0)}
    described = describe_arrays(arrays | {"host": np.zeros(4, np.int32)})
    jitted = jax.jit(lambda tree: jax.tree.map(jnp.shape, tree))
    compiled = jax.jit(lambda tree: tree["a"].sum()).lower(described).compile()
    assert float(compiled(arrays | {"host": np.zeros(4, np.int32)})) == 6
    assert (
        jitted.lower(described).args_info
        == jitted.lower(arrays | {"host": np.zeros(4, np.int32)}).args_info
    )
