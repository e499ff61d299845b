"""Time of a whole job, from the command to the metric, beside PEFT's LoRA, turn by turn.

Three jobs take turns: ours with an empty compilation cache, the same job again with another
learning rate and α, and PEFT's LoRA by a plain loop. All use every core; the machine must be idle.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

HERE = Path(__file__).parent
OTHER = ["--learning-rate", "7e-4", "--lora-alpha", "12"]


def main() -> None:
    """Print the median seconds of each job, and their ratios to PEFT's within a turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=["sst2", "mrpc"], default="sst2")
    parser.add_argument("--model", required=True, help="a folder of a BERT encoder")
    parser.add_argument("--data-dir", required=True, help="the folder of the task's files")
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peft-python", default=sys.executable, help="a Python that has peft")
    options = parser.parse_args()
    turns = []
    for repeat in range(options.repeats):
        with tempfile.TemporaryDirectory() as scratch:
            turns.append(run_turn(options, Path(scratch)))
        say(f"turn {repeat + 1}: " + ", ".join(f"{n} {s:.0f} s" for n, s in turns[-1].items()))
    for name in ("cold", "cached, other numbers"):
        ratio = median(turn[name] / turn["peft"] for turn in turns)
        seconds = median(turn[name] for turn in turns)
        say(f"{name}: {seconds:.0f} s, {ratio:.2f} of PEFT's time")


def run_turn(options: argparse.Namespace, scratch: Path) -> dict[str, float]:
    """Run each job once; return the seconds of each."""
    shared = [
        *("--task", options.task, "--model", options.model, "--data-dir", options.data_dir),
    ]
    ours = [
        *(sys.executable, "-m", "increlora_jax.train", *shared, "--max-steps", str(options.steps)),
        *("--target-rank", "2", "--modules-to-save", "classifier", "--weight-decay", "0"),
        *("--compilation-cache-dir", str(scratch / "cache")),
    ]
    cold = [*ours, "--learning-rate", "1e-3", "--output-dir", str(scratch / "cold")]
    again = [*ours, *OTHER, "--output-dir", str(scratch / "again")]
    loop = str(HERE / "peft_loop.py")
    peft = [options.peft_python, loop, *shared, "--steps", str(options.steps)]
    return {
        "cold": time_of(cold, scratch / "cold"),
        "cached, other numbers": time_of(again, scratch / "again"),
        "peft": time_of(peft),
    }


def time_of(command: list[str], run: Path | None = None) -> float:
    """Return the seconds of a command; print the phases of a run of ours."""
    began = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if run is None:
        say(f"  peft: total, training, accuracy: {done.stdout.strip()}")
    else:
        results = json.loads((run / "results.json").read_text())
        say(f"  {run.name}: {results['metrics']} {results['seconds_by_phase']}")
    return seconds


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
