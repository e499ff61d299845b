"""SIGTERM and SIGINT: stop at the next safe point, save, and leave in time."""

import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import Any

import jax
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGTERM, signal.SIGINT)
GRACE = 20.0
"""Seconds from the first signal to leaving without having saved; schedulers give about 30."""

POLL = 0.1
"""Seconds between two looks at the signals while a program is compiled."""


class Preempted(BaseException):
    """A signal asked the run to stop; no error, hence no `Exception`."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.signum = signum

    @property
    def exit_status(self) -> int:
        """128 + the signal's number, as shells have it: 143 for SIGTERM, 130 for SIGINT."""
        return 128 + self.signum


class Stop:
    """Whether a run was asked to stop.

    Outside of `listening` nobody ever asks. The second signal, or `GRACE` seconds after the first,
    leaves at once with what was saved last, whatever the main thread is doing then.

    Among several processes SIGTERM is left to JAX's own preemption service, which makes all of them
    stop at the same step.
    """

    def __init__(self) -> None:
        self._signum: int | None = None
        self._is_deferred = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take over both signals while this lasts; for the main thread."""
        read, write = os.pipe()
        os.set_blocking(write, False)
        # Python runs handlers in the main thread only, between two of its own instructions: not
        # while that thread is in compiled code. The pipe is written to at once, and read elsewhere.
        pipe_before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        before = {signum: signal.signal(signum, self._on_signal) for signum in SIGNALS}
        threading.Thread(target=_leave_in_time, args=(read,), daemon=True).start()
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)
            signal.set_wakeup_fd(pipe_before)
            os.close(write)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Let a signal wait for the next `check`; outside of this it raises where it arrives."""
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False

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
        # Without the service there is nobody to agree with.
        has_service = jax.config.jax_enable_preemption_service  # type: ignore[attr-defined]
        can_agree = jax.process_count() > 1 and has_service
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
        self._signum = self._signum or signum
        if not self._is_deferred:
            raise Preempted(signum)


def _compile_into(program: "Future[Any]", lowered: Any) -> None:
    try:
        program.set_result(lowered.compile())
    except BaseException as error:  # handed to whoever waits for the program
        program.set_exception(error)


def _leave_in_time(read: int) -> None:
    """Wait for a signal, then for the second or for the end of the grace; then leave."""
    with os.fdopen(read, "rb", buffering=0) as signals:
        if not (first := signals.read(1)):
            return  # nobody listens any more
        has_second, _, _ = select.select([signals], [], [], GRACE)
        if has_second and not signals.read(1):
            return
    reason = "a second signal" if has_second else f"not at a safe point within {GRACE:.0f} s"
    sys.stderr.write(f"\nleaving at once ({reason}); what was saved last stays\n")
    sys.stderr.flush()
    os._exit(128 + first[0])
