"""Compile the study's programs for chips that are not here: `python compile.py [--only NAME …]`.

Finished programs are lines of results/programs.jsonl and are not compiled again without --again.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from chips import ENVIRONMENT, find_chip
from plan import HERE, RESULTS, plan
from programs import Program
from render import render

VERSIONS = ("jax", "jaxlib", "libtpu", "jax-cuda13-pjrt")


def main() -> None:
    """Compile the programs that have no line yet, then draw the README's table."""
    options = _parse(sys.argv[1:])
    if options.list:
        for name, (topology, program) in plan().items():
            sys.stdout.write(f"{name}: {topology} {json.dumps(program.key)}\n")
        return
    if not options.render:
        for name, topology, program in chosen(options):
            _compile_once(name, topology, program, options)
    if options.results == RESULTS:
        render(read_lines(RESULTS))


def chosen(options: argparse.Namespace) -> Iterator[tuple[str, str, Program]]:
    """Yield the name, the topology and the program of everything to compile now.

    Raises:
        SystemExit: If --only names something that the study does not have.
    """
    known = plan()
    if wrong := sorted(set(options.only or ()) - known.keys()):
        raise SystemExit(f"--only {wrong[0]}: unknown; --list shows the names")
    for name in options.only or known:
        topology, program = known[name]
        if options.mesh is not None:
            program = replace(program, mesh=options.mesh)
        yield name, options.topology or topology, program


def compile_apart(
    topology: str, program: Program, seconds: float, text: Path | None = None
) -> dict[str, Any]:
    """Compile a program in a process of its own; return its results, or an error.

    Args:
        topology: The chips.
        program: The program.
        seconds: Time limit.
        text: The file for the scheduled program; default: none.
    """
    told = json.dumps({"topology": topology, **asdict(program)})
    command = [sys.executable, str(HERE / "worker.py"), told, *([str(text)] if text else [])]
    try:
        done = subprocess.run(
            command,
            env=os.environ | ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"not compiled within {seconds:.0f} s"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of results; none if there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _compile_once(name: str, topology: str, program: Program, options: argparse.Namespace) -> None:
    """Compile a program and add its line, unless there is one that was finished."""
    key = {"name": name, "topology": topology, **asdict(program)}
    held = [line for line in read_lines(options.results) if line | key == line]
    if not options.again and any("error" not in line for line in held):
        return
    sys.stderr.write(f"{name}, {topology} …\n")
    if options.text:
        options.text.mkdir(parents=True, exist_ok=True)
    text = options.text / f"{name.replace(' ', '-')}.txt" if options.text else None
    line = key | {"versions": _versions()} | compile_apart(topology, program, options.limit, text)
    kept = [each for each in read_lines(options.results) if each | key != each]
    written = "".join(json.dumps(each) + "\n" for each in [*kept, line])
    options.results.parent.mkdir(exist_ok=True)
    options.results.write_text(written, encoding="utf-8")
    sys.stderr.write(f"{line.get('error') or 'compiled'}\n")


def _versions() -> dict[str, str]:
    """Return the versions of the libraries that compile."""
    found = {}
    for name in VERSIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", help="names of programs; default: all")
    parser.add_argument("--topology", help="other chips, as v6e:1x1, v5e:4x4 or h100:1")
    parser.add_argument("--mesh", help="another mesh of the chips, as data=4,fsdp=4")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of the results")
    parser.add_argument("--text", type=Path, help="folder that scheduled programs are written to")
    parser.add_argument("--limit", type=float, default=900, help="seconds for one program")
    parser.add_argument("--again", action="store_true", help="also compile finished programs")
    parser.add_argument("--render", action="store_true", help="only draw the table")
    parser.add_argument("--list", action="store_true", help="only list the programs")
    options = parser.parse_args(words)
    if options.topology:
        find_chip(options.topology)
    return options


if __name__ == "__main__":
    main()
