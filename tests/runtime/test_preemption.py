"""Signals, as the operating system gives them."""

import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import pytest

from increlora_jax.runtime.preemption import Stop
from increlora_jax.runtime.signals import SIGNALS, Preempted


def send(signum):
    os.kill(os.getpid(), signum)
    time.sleep(0)  # handlers run between two instructions of this thread


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_stops_at_the_next_check(signum):
    stop = Stop()
    with stop.listening(), stop.deferred():
        send(signum)
        with pytest.raises(Preempted, match=signum.name) as caught:
            stop.check()
    told = {
        "SIGTERM": 143,
        "SIGINT": 130,
        "SIGHUP": 129,
        "SIGUSR1": 138,
        "SIGUSR2": 140,
        "SIGXCPU": 152,
    }
    assert caught.value.exit_status == told[signum.name]


def test_what_was_ignored_from_the_start_stays_so():
    """As `nohup` leaves SIGHUP; what stops every run does so all the same."""
    before = {signum: signal.signal(signum, signal.SIG_IGN) for signum in SIGNALS}
    try:
        stop = Stop()
        with stop.listening(), stop.deferred():
            for signum in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
                send(signum)
            stop.check()
            send(signal.SIGTERM)
            with pytest.raises(Preempted, match="SIGTERM"):
                stop.check()
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def test_what_is_saved_after_a_signal_is_not_interrupted_by_its_twin():
    """A terminal that closes sends SIGHUP twice."""
    stop, saved = Stop(), False
    with stop.listening():
        try:
            with stop.deferred():
                send(signal.SIGHUP)
                stop.check()
        except Preempted:
            send(signal.SIGHUP)
            time.sleep(0.2)
            saved = True
    assert saved


def test_a_deferred_signal_waits_for_the_next_check():
    stop = Stop()
    with stop.listening():
        with stop.deferred():
            stop.check_call(0)
            send(signal.SIGTERM)
            with pytest.raises(Preempted, match="SIGTERM"):
                stop.check_call(1)
        with pytest.raises(Preempted):
            stop.check()


def test_afterwards_signals_are_whose_they_were():
    before = [signal.getsignal(signum) for signum in SIGNALS]
    with Stop().listening():
        assert [signal.getsignal(signum) for signum in SIGNALS] != before
    assert [signal.getsignal(signum) for signum in SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_nobody_asks_where_nobody_listens():
    Stop().check()
    Stop().check_call(0)


def lower_something_long(start):
    def long(x):
        for i in range(150):
            x = jnp.sin(x) @ x + i
        return x + start

    return jax.jit(long).lower(jnp.ones((4, 4)))


def test_a_signal_does_not_wait_for_the_compiler():
    stop, lowered = Stop(), lower_something_long(1)
    with stop.listening(), stop.deferred():
        send(signal.SIGTERM)
        began = time.monotonic()
        with pytest.raises(Preempted):
            stop.compile(lowered)
        stopped = time.monotonic() - began
    began = time.monotonic()
    lower_something_long(2).compile()
    assert stopped < (time.monotonic() - began) / 2


def test_it_compiles_what_it_is_given():
    lowered = jax.jit(lambda x: x + 1).lower(1)
    assert Stop().compile(lowered)(1) == 2


def test_what_the_compiler_raises_is_raised_here():
    call = jax.ffi.ffi_call("there_is_no_such_target", jax.ShapeDtypeStruct((), jnp.float32))
    with pytest.raises(jax.errors.JaxRuntimeError, match="there_is_no_such_target"):
        Stop().compile(jax.jit(call).lower())


IN_COMPILED_CODE = """
import ctypes, os, signal
from increlora_jax.runtime import preemption

preemption.GRACE = 0.5
stop = preemption.Stop()
with stop.listening(), stop.deferred():
    os.kill(os.getpid(), signal.SIGTERM)
    ctypes.CDLL(None).sleep(60)  # no instruction of Python's, like a program on a device
"""


def test_code_that_never_returns_is_left_when_the_grace_is_over():
    done = subprocess.run(
        [sys.executable, "-c", IN_COMPILED_CODE],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 143
    assert "not at a safe point within" in done.stderr


ANYWHERE = """
import ctypes, gc, os, signal, sys
from increlora_jax.runtime.preemption import Stop

def send(*_):
    os.kill(os.getpid(), signal.SIGINT)
    os.getpid()

class Tidy:
    __del__ = send

def swallow():
    try:
        send()
    except BaseException:
        raise RuntimeError("an optional library is missing") from None

MOMENTS = {
    "a finalizer": Tidy,
    "the garbage collector": lambda: (gc.callbacks.append(send), gc.collect()),
    "a library's except": swallow,
    "compiled code": send,
}

with Stop("; go on").listening():
    MOMENTS[sys.argv[1]]()
    ctypes.CDLL(None).sleep(60)
"""


@pytest.mark.parametrize(
    "moment", ["a finalizer", "the garbage collector", "a library's except", "compiled code"]
)
def test_whatever_the_moment_a_signal_is_one_line_and_a_status(moment):
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", ANYWHERE, moment],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (done.returncode, done.stderr) == (130, "stopped by SIGINT; go on\n")
    assert time.monotonic() - began < 30


def test_what_is_at_work_is_finished_if_nothing_checks_any_more():
    """As when the last adapters are written."""
    stop = Stop()
    with stop.listening(), stop.deferred():
        with stop.deferred():
            stop.check()
        send(signal.SIGTERM)
        time.sleep(0.2)
