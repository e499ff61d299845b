"""Answers to a file of a million lines: throughput beside evaluation's, and memory over time.

The two commands take turns on the same file of the demo's sentences. The machine must be idle.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from increlora_jax.tasks.demo import load_demo

EVERY = 0.5
"""Seconds between two readings of a process's memory."""

QUARTERS = 4


def main() -> None:
    """Print the lines a second of both commands, their ratio, and the memory by quarters."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", required=True, help="a run of --task demo")
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "texts.tsv"
        write_lines(source, options.lines)
        answers = ["--input", str(source), "--output", str(Path(scratch) / "answers.jsonl")]
        jobs = {"predict": answers, "evaluate": ["--file", str(source)]}
        ratios = []
        for _ in range(options.repeats):
            seconds = {}
            for name, words in jobs.items():
                seconds[name], memory = follow(name, options.run, words)
                say(name, options.lines / seconds[name], memory)
            ratios.append(seconds["evaluate"] / seconds["predict"])
        sys.stdout.write(f"predict has {median(ratios):.2f} of evaluate's throughput\n")


def write_lines(path: Path, count: int) -> None:
    """Write so many labelled sentences, the demo's dev split over and over."""
    data = load_demo()
    (dev,) = data.dev.values()
    labels = [(data.task.labels or ())[label] for label in dev.labels]
    rows = [f"{text}\t{label}\n" for text, label in zip(dev.first, labels, strict=True)]
    with path.open("w", encoding="utf-8") as file:
        file.write(f"{data.task.columns[0]}\tlabel\n")
        for start in range(0, count, len(rows)):
            file.writelines(rows[: count - start])


def follow(name: str, run: str, words: list[str]) -> tuple[float, list[int]]:
    """Run a command; return its seconds, and its memory in MiB at every reading."""
    command = [sys.executable, "-m", f"increlora_jax.{name}", "--run", run, *words]
    began = time.perf_counter()
    memory = []
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            memory.append(resident(process.pid))
            time.sleep(EVERY)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return time.perf_counter() - began, memory


def resident(process: int) -> int:
    """Return the resident memory of a process in MiB; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) // 1024 for line in lines if "VmRSS" in line), 0)


def say(name: str, speed: float, memory: list[int]) -> None:
    """Print a command's speed and the most memory of each quarter of its time."""
    size = max(1, -(-len(memory) // QUARTERS))
    most = [max(memory[start : start + size]) for start in range(0, len(memory), size)]
    sys.stdout.write(f"{name}: {speed:,.0f} lines/s; MiB at most by quarters: {most}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
