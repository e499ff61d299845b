"""Score a saved run on its dev data again: `python -m increlora_jax.evaluate --run DIR`."""

from increlora_jax.runtime.start import begin

if __name__ == "__main__":
    begin()

import json
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from increlora_jax.compilation_cache import use_compilation_cache
from increlora_jax.compose import plan_run, prepare_run
from increlora_jax.config import RunConfig
from increlora_jax.errors import InputError
from increlora_jax.members import members_of
from increlora_jax.memory_advice import advise_evaluation
from increlora_jax.nn.storage import load_adapter, read_adapter_config
from increlora_jax.parsing import read_run
from increlora_jax.run_folder import ADAPTER, BEST_ADAPTER, CONFIG, check_identity
from increlora_jax.runtime.ending import fail_clearly
from increlora_jax.runtime.out_of_memory import explain_shortage
from increlora_jax.runtime.streams import write_result
from increlora_jax.training.preemption import Stop
from increlora_jax.training.processes import check_devices


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command: the metrics go to standard output as one line of JSON."""
    parser = ArgumentParser(prog="python -m increlora_jax.evaluate", description=__doc__)
    parser.add_argument("--run", required=True, type=Path, help="a run's folder")
    parser.add_argument("--data-dir", "--data_dir", help="other data than the run's own")
    parser.add_argument("--adapter", choices=("last", "best"), default="last")
    chosen = parser.parse_args(argv)
    with fail_clearly(), Stop().listening():
        name = ADAPTER if chosen.adapter == "last" else BEST_ADAPTER
        told = evaluate_all(chosen.run, data_dir=chosen.data_dir, adapter=name)
        write_result(json.dumps(told))


def evaluate_all(run: Path, **options: Any) -> dict[str, Any]:
    """Evaluate a run, or, by their names, those that trained together in a folder."""
    names = [member.name for member in members_of(_read_config(run))]
    if names == [""]:
        return evaluate(run, **options)
    return {name: evaluate(run / name, **options) for name in names}


def evaluate(run: Path, *, data_dir: str | None = None, adapter: str = ADAPTER) -> dict[str, float]:
    """Load a run's adapter onto its base model and compute the metrics on dev.

    Raises:
        InputError: the folder holds no such run, or data or adapter do not fit it.
    """
    config = _read_config(run)
    # One process and one device will do, and any kind of it, whatever trained the run.
    alone = replace(config.training, distributed=False, mesh=None, attn_implementation="xla")
    config = replace(config, training=alone)
    if data_dir is not None:
        config = replace(config, task=replace(config.task, data_dir=data_dir))
    check_devices()
    use_compilation_cache(config.training.compilation_cache_dir)
    saved = read_adapter_config(run / adapter)
    plan = plan_run(config, total_steps=saved["total_steps"])
    # Other data is what --data-dir is for.
    here = {key: value for key, value in plan.identity.items() if key != "data"}
    check_identity(f"the adapter in {run / adapter}", saved["identity"], here)
    with explain_shortage(lambda: advise_evaluation(config, run / CONFIG)):
        ready = prepare_run(plan)
        parts = load_adapter(run / adapter, ready.parts)
        return ready.evaluator.metrics(ready.first_state(parts), parts.base)


def _read_config(run: Path) -> RunConfig:
    if not (run / CONFIG).is_file():
        raise InputError(f"--run {run} holds no run: there is no {CONFIG}")
    return read_run(run / CONFIG)


if __name__ == "__main__":
    main()
