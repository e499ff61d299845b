"""Signals that stop a command: at the next safe point save, and leave in time."""

import os
import select
import signal
import threading
import time
from collections.abc import Collection, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from io import FileIO
from typing import Any, NoReturn

import jax
from jax.experimental import multihost_utils

from increlora_jax.runtime.console import is_terminal
from increlora_jax.runtime.signals import Preempted, list_heeded
from increlora_jax.runtime.streams import tell

GRACE = 20.0
"""Seconds from the first signal to leaving without having saved; schedulers give about 30."""

INSISTING = (signal.SIGTERM, signal.SIGINT)
"""Signals of which a second one leaves at once."""

POLL = 0.1
"""Seconds between two looks at the signals while a program is compiled."""


class Stop:
    """A request to stop, if there is one.

    Outside of `listening` nobody ever asks. Outside of `deferred` a signal ends the process at
    once, as there is nothing to save. Within it the signal waits for the next `check`. A second
    SIGTERM or SIGINT, or `GRACE` seconds after the first signal, leaves at once with what was saved
    last. The others come in pairs, as when a terminal closes, and only the first counts.

    A thread ends the process, whatever the main thread is doing. No handler raises: an exception
    would be lost in a callback of the garbage collector or behind a library's `except`.

    Among several processes SIGTERM is left to JAX's own preemption service, which makes all of them
    stop at the same step. Every other signal is passed to the service as SIGTERM, and becomes one.
    """

    def __init__(self, when_stopped: str = "") -> None:
        self._when_stopped = when_stopped  # what to add to the line about a signal
        self._signum: int | None = None
        self._is_deferred = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take over the signals while this lasts; for the main thread."""
        read, write = os.pipe()
        os.set_blocking(write, False)
        # Python runs handlers in the main thread only, between two of its own instructions: not
        # while that thread is in compiled code. The pipe is written to at once, and read elsewhere.
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
        """Let a signal wait for the next `check`; without one, what is at work is finished.

        After a signal this lasts: whoever was told by a `check` saves, and is given the grace.
        """
        before, self._is_deferred = self._is_deferred, True
        try:
            yield
        finally:
            self._is_deferred = before or self._signum is not None

    def check(self) -> None:
        """Stop here if asked to; several processes must agree first (`check_call`).

        Raises:
            Preempted: a signal has come.
        """
        if self._signum is not None and jax.process_count() == 1:
            raise Preempted(self._signum)

    def check_call(self, call: int) -> None:
        """As `check`, before each call of the step, counted: all processes stop at the same one."""
        self.check()
        can_agree = jax.process_count() > 1 and _has_service()
        if can_agree and multihost_utils.reached_preemption_sync_point(call):
            raise Preempted(signal.SIGTERM)

    def compile(self, lowered: Any) -> Any:
        """Compile a lowered program; a signal does not wait for it.

        Raises:
            Preempted: a signal has come; the compiler's thread is left to itself.
        """
        program: Future[Any] = Future()
        threading.Thread(target=_compile_into, args=(program, lowered), daemon=True).start()
        while not wait([program], timeout=POLL).done:
            self.check()
        return program.result()

    def _on_signal(self, signum: int, frame: Any) -> None:
        if self._signum is not None:
            return  # it is on its way out, and must not be interrupted while it saves
        self._signum = signum
        if signum != signal.SIGTERM and _has_service():
            os.kill(os.getpid(), signal.SIGTERM)

    def _leave_in_time(self, read: int) -> None:
        """Wait for a signal, then for a second or for the end of the grace; then leave."""
        heeded = list_heeded()
        with os.fdopen(read, "rb", buffering=0) as signals:
            if not (first := _read_one(signals, heeded)):
                return  # nobody listens any more
            if not (self._is_deferred or jax.distributed.is_initialized()):
                name = signal.Signals(first[0]).name
                _leave(f"stopped by {name}{self._when_stopped}", first[0])
            second = _read_one(signals, INSISTING, time.monotonic() + GRACE)
            if second == b"":
                return
        reason = "a second signal" if second else f"not at a safe point within {GRACE:g} s"
        _leave(f"leaving at once ({reason}); what was saved last stays", first[0])


def _leave(message: str, signum: int) -> NoReturn:
    tell(f"\n{message}" if is_terminal() else message)  # a bar may stand in the last line
    os._exit(128 + signum)


def _read_one(signals: FileIO, wanted: Collection[int], end: float | None = None) -> bytes | None:
    """Read the next signal that is wanted: none if the time is over, empty if nobody listens."""
    while select.select([signals], [], [], end and max(0.0, end - time.monotonic()))[0]:
        byte: bytes = signals.read(1)
        if not byte or byte[0] in wanted:
            return byte
    return None


def _has_service() -> bool:
    """Without JAX's service there is nobody to agree with."""
    is_on: bool = jax.config.jax_enable_preemption_service  # type: ignore[attr-defined]
    return jax.distributed.is_initialized() and is_on


def _compile_into(program: "Future[Any]", lowered: Any) -> None:
    try:
        program.set_result(lowered.compile())
    except BaseException as error:  # handed to whoever waits for the program
        program.set_exception(error)
