"""Compiled programs of a run, by the shapes that they are for; the next ones compile meanwhile."""

from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import jax
import numpy as np
from jax.stages import Compiled, Lowered
from jaxtyping import PyTree

from increlora_jax.runtime.console import announced
from increlora_jax.runtime.memory import return_freed_memory
from increlora_jax.runtime.preemption import Stop

Key = TypeVar("Key", bound=Hashable)


class Background:
    """One thread that compiles while the main thread trains.

    With several processes nothing is compiled ahead: their compilers may wait for each other.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="compile")
        self.is_used = jax.process_count() == 1

    def compile(self, lower: Callable[[], Lowered]) -> Future[Compiled]:
        """Compile a program, after those that were asked for before; `lower` runs there too."""
        return self._thread.submit(lambda: lower().compile())

    def close(self, *, waits: bool) -> None:
        """Drop what has not begun; `waits` for the program in work, if there is one."""
        self._thread.shutdown(wait=waits, cancel_futures=True)


class Programs(Generic[Key]):
    """Compiled programs by key."""

    def __init__(self) -> None:
        self._compiled: dict[Key, Compiled] = {}
        self._ahead: dict[Key, Future[Compiled]] = {}
        self._begun: set[Key] = set()

    def __len__(self) -> int:
        return len(self._compiled)

    def __getitem__(self, key: Key) -> Compiled:
        return self._compiled[key]

    def __contains__(self, key: Key) -> bool:
        return key in self._compiled

    def compile_ahead(self, key: Key, lower: Callable[[], Lowered], background: Background) -> None:
        """Compile a program in the background, unless it is there or under way."""
        if background.is_used and key not in self._begun:
            self._begun.add(key)
            self._ahead[key] = background.compile(lower)

    def compile(
        self,
        key: Key,
        lower: Callable[[], Lowered],
        name: str,
        stop: Stop,
        meanwhile: Callable[[], None] | None = None,
    ) -> None:
        """Compile a program now, or wait for it if it is under way.

        Args:
            key: of the program.
            lower: returns the lowered program.
            name: for the message.
            stop: a request to stop.
            meanwhile: called before the compiler begins, to start other work. The compiler needs no
                Python, in which all programs are lowered.

        Raises:
            Preempted: a stop was requested meanwhile.
        """
        self._begun.add(key)
        with announced(name):
            ahead = self._ahead.pop(key, None)
            lowered = None if ahead else lower()
            if meanwhile:
                meanwhile()
            self._compiled[key] = stop.wait(ahead) if ahead else stop.compile(lowered)
            return_freed_memory()


def describe_arrays(tree: PyTree) -> PyTree:
    """Return the shapes, dtypes and shardings of arrays, which may be donated meanwhile."""

    def describe(x: jax.Array | np.ndarray) -> jax.ShapeDtypeStruct:
        sharding, weak_type = getattr(x, "sharding", None), getattr(x, "weak_type", False)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding, weak_type=weak_type)

    return jax.tree.map(describe, tree)
