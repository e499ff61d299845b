"""A contender in its own process, which steps on request."""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from contenders import CONTENDERS, OTHERS, Run
from work import Work

from increlora_jax.runtime.compilation_cache import use_compilation_cache


class FailedError(RuntimeError):
    """Error of a contender that does not run here; the message is its last line of output."""


class Worker:
    """The process, seen from outside; a context manager.

    Only one process works at a time, while the others wait for a line to read. Each is thus timed
    with the whole machine for itself, and has its own memory.
    """

    def __init__(self, name: str, work: Work, cache: Path):
        # Both frameworks cache programs in this folder. JAX must leave the others memory on a GPU,
        # and end an error message with its reason.
        own = {
            "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "JAX_TRACEBACK_FILTERING": "off",
        }
        command = [sys.executable, __file__, name, str(cache / "jax"), json.dumps(asdict(work))]
        self._complaints = (cache / "complaints").open("w+", encoding="utf-8")
        self._process = subprocess.Popen(
            command,
            env=os.environ | own,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            text=True,
        )
        self.start = self._read()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()
        self._complaints.close()

    def run(self, steps: int) -> dict[str, Any]:
        """Run a number of steps; return their seconds and the contender's numbers."""
        assert self._process.stdin
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            self._complaints.seek(0)
            raise FailedError((self._complaints.read().strip().splitlines() or ["no reason"])[-1])
        told: dict[str, Any] = json.loads(line)
        return told


def main() -> None:
    """Make the contender, run two steps, then as many as each line asks for."""
    name, cache, work = sys.argv[1], sys.argv[2], Work(**json.loads(sys.argv[3]))
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # prints of libraries join the error output
    use_compilation_cache(cache)
    contender = (CONTENDERS | OTHERS)[name]
    import_module(contender.module)
    imports = _peak_memory(contender.framework)
    began = time.perf_counter()
    run = contender.make(work)
    built = time.perf_counter()
    run(1)
    first = time.perf_counter()
    run(1)
    second = time.perf_counter()
    start = {"first_step": first - began, "compile": (first - built) - (second - first)}
    _tell(told, start | {"imports": imports, "device": _device(contender.framework)})
    for line in sys.stdin:
        _tell(told, _timed(run, int(line)) | {"memory": _peak_memory(contender.framework)})


def _tell(told: TextIO, numbers: dict[str, Any]) -> None:
    told.write(json.dumps(numbers) + "\n")
    told.flush()


def _timed(run: Run, steps: int) -> dict[str, float]:
    began = time.perf_counter()
    numbers = run(steps)
    seconds = time.perf_counter() - began
    scalars = {name: float(v) for name, v in numbers.items() if not getattr(v, "ndim", 0)}
    return scalars | {"seconds": seconds / steps}


def _device(framework: str) -> str:
    if framework == "jax":
        import jax

        return jax.devices()[0].device_kind
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def _peak_memory(framework: str) -> float:
    """Return the bytes given out by the framework's GPU allocator, or used by the process."""
    if framework == "jax":
        import jax

        statistics = jax.devices()[0].memory_stats() or {}
        if "peak_bytes_in_use" in statistics:
            return statistics["peak_bytes_in_use"]
    else:
        import torch

        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated()
    # Not getrusage: a new process inherits its parent's peak there.
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return 1024.0 * int(found[1])


if __name__ == "__main__":
    main()
