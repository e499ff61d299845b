"""Signals that stop a command: save at the next safe point, and exit in time."""

import os
import select
import signal
import threading
import time
from collections.abc import Collection, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from io import FileIO
from typing import Any, NoReturn, TypeVar

import jax
from jax.experimental import multihost_utils

from increlora_jax.runtime.console import is_terminal
from increlora_jax.runtime.signals import Preempted, list_heeded
from increlora_jax.runtime.streams import tell

T = TypeVar("T")

GRACE = 20.0
"""Seconds from the first signal to an exit without saving; schedulers allow about 30."""

INSISTING = (signal.SIGTERM, signal.SIGINT)
"""Signals that exit at once when they come a second time."""

POLL = 0.1
"""Seconds between two checks for signals while a program compiles."""


class Stop:
    """A request to stop, if a signal has asked for one.

    Signals count only within `listening`. Outside of `deferred`, a signal ends the process at once,
    since there is nothing to save. Within `deferred`, the signal waits for the next `check`. A
    second SIGTERM or SIGINT, or `GRACE` seconds after the first signal, end the process without
    saving. Of the other signals only the first counts, since a closing terminal sends several.

    A thread ends the process, even if the main thread is busy. Handlers raise no exceptions: an
    exception could be lost in a callback of the garbage collector or behind a library's `except`.

    With several processes, JAX's preemption service handles SIGTERM and stops all of them at the
    same step. Every other signal is passed to the service as SIGTERM.
    """

    def __init__(self, when_stopped: str = "") -> None:
        self._when_stopped = when_stopped  # appended to the line about a signal
        self._signum: int | None = None
        self._is_deferred = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals while this lasts; for the main thread only."""
        read, write = os.pipe()
        os.set_blocking(write, False)
        # Python runs handlers in the main thread, and only between two Python instructions: not
        # while compiled code runs. The pipe is written at once, and another thread reads it.
        pipe_before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        before = {signum: signal.signal(signum, self._on_signal) for signum in list_heeded()}
        threading.Thread(target=self._leave_in_time, args=(read,), daemon=True).start()
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)
            signal.set_wakeup_fd(pipe_before)
            os.close(write)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Let a signal wait for the next `check`; without a check, the work is finished first.

        After a signal, deferral stays on: the code that `check` interrupted saves within the grace.
        """
        before, self._is_deferred = self._is_deferred, True
        try:
            yield
        finally:
            self._is_deferred = before or self._signum is not None

    @property
    def is_requested(self) -> bool:
        """Return whether a signal has come."""
        return self._signum is not None

    def check(self) -> None:
        """Raise `Preempted` after a signal; with several processes only `check_call` does.

        Raises:
            Preempted: If a signal has come.
        """
        if self._signum is not None and jax.process_count() == 1:
            raise Preempted(self._signum)

    def check_call(self, call: int) -> None:
        """Check before a call of the step; all processes stop before the same call.

        Args:
            call: The number of the call, equal in all processes.

        Raises:
            Preempted: If a signal has come to this process, or by agreement to any.
        """
        self.check()
        can_agree = jax.process_count() > 1 and _has_service()
        if can_agree and multihost_utils.reached_preemption_sync_point(call):
            raise Preempted(signal.SIGTERM)

    def compile(self, lowered: Any) -> Any:
        """Compile a lowered program, without making a signal wait for the compiler.

        Raises:
            Preempted: If a signal has come. The compiler's thread continues in the background.
        """
        program: Future[Any] = Future()
        threading.Thread(target=_compile_into, args=(program, lowered), daemon=True).start()
        return self.wait(program)

    def wait(self, work: "Future[T]") -> T:
        """Wait for work of another thread, without making a signal wait for it.

        Raises:
            Preempted: If a signal has come. The other thread continues.
        """
        while not wait([work], timeout=POLL).done:
            self.check()
        return work.result()

    def _on_signal(self, signum: int, frame: Any) -> None:
        if self._signum is not None:
            return  # the process is saving before it exits and must not be interrupted
        self._signum = signum
        if signum != signal.SIGTERM and _has_service():
            os.kill(os.getpid(), signal.SIGTERM)

    def _leave_in_time(self, read: int) -> None:
        """Wait for a signal, then for a second one or the end of the grace; then exit."""
        heeded = list_heeded()
        with os.fdopen(read, "rb", buffering=0) as signals:
            if not (first := _read_one(signals, heeded)):
                return  # `listening` has ended
            if not (self._is_deferred or jax.distributed.is_initialized()):
                name = signal.Signals(first[0]).name
                _leave(f"stopped by {name}{self._when_stopped}", first[0])
            second = _read_one(signals, INSISTING, time.monotonic() + GRACE)
            if second == b"":
                return
        reason = "a second signal" if second else f"not at a safe point within {GRACE:g} s"
        _leave(f"leaving at once ({reason}); the last save is kept", first[0])


def _leave(message: str, signum: int) -> NoReturn:
    tell(f"\n{message}" if is_terminal() else message)  # the last line may hold a bar
    os._exit(128 + signum)


def _read_one(signals: FileIO, wanted: Collection[int], end: float | None = None) -> bytes | None:
    """Read the next wanted signal; return None after the end, and b"" if the pipe is closed."""
    while select.select([signals], [], [], end and max(0.0, end - time.monotonic()))[0]:
        byte: bytes = signals.read(1)
        if not byte or byte[0] in wanted:
            return byte
    return None


def _has_service() -> bool:
    """Return whether JAX's preemption service is running."""
    is_on: bool = jax.config.jax_enable_preemption_service  # type: ignore[attr-defined]
    return jax.distributed.is_initialized() and is_on


def _compile_into(program: "Future[Any]", lowered: Any) -> None:
    try:
        program.set_result(lowered.compile())
    except BaseException as error:  # handed to whoever waits for the program
        program.set_exception(error)
