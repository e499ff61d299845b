"""Signals that ask a command to stop, and their handling before a run begins."""

import os
import signal
from contextlib import suppress
from types import FrameType

SIGNALS = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGXCPU,
)
"""Signals of schedulers and terminals; SIGXCPU says that the limit of CPU time is near."""

_ALWAYS = (signal.SIGTERM, signal.SIGINT)


class Preempted(BaseException):
    """Request of a signal to stop the run; not an error, hence no `Exception`."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.signum = signum

    @property
    def exit_status(self) -> int:
        """128 + the signal's number, as shells have it: 143 for SIGTERM, 130 for SIGINT."""
        return 128 + self.signum


def list_heeded() -> tuple[signal.Signals, ...]:
    """List the signals that stop this process, without those that `nohup` made it ignore."""
    return tuple(s for s in SIGNALS if s in _ALWAYS or signal.getsignal(s) is not signal.SIG_IGN)


def leave_on_signals() -> None:
    """Make every signal end the process at once with one line: there is nothing to save yet."""
    for signum in list_heeded():
        signal.signal(signum, _leave)


def _leave(signum: int, frame: FrameType | None) -> None:
    # os.write instead of sys.stderr: the signal may have interrupted a write to the stream.
    with suppress(OSError):
        os.write(2, f"stopped by {signal.Signals(signum).name}\n".encode())
    os._exit(128 + signum)
