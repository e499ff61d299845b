"""Write a trained model for others: `python -m increlora_jax.export --run DIR --format peft …`."""

if __name__ == "__main__":  # before the imports below, which take seconds
    from increlora_jax.commands import export as run_command

    run_command()
    raise SystemExit

import json
import shlex
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from increlora_jax.errors import InputError
from increlora_jax.files.json_object import read_json_object
from increlora_jax.files.replace import replace_folder
from increlora_jax.interop.card import Facts, write_card
from increlora_jax.interop.merged import usual_dtype, write_merged
from increlora_jax.interop.peft_files import Layout, write_peft
from increlora_jax.interop.proof import (
    Difference,
    check,
    compare,
    compute_outputs,
    compute_torch,
    has_torch,
)
from increlora_jax.nn.adapter_files import save_adapter
from increlora_jax.nn.bottleneck import is_bottleneck
from increlora_jax.nn.factors import factors_of
from increlora_jax.run.compaction import compact
from increlora_jax.run.export_flags import parse_export
from increlora_jax.run.folder import RESULTS, name_adapter
from increlora_jax.run.loading import base_from, load_trained
from increlora_jax.run.runs_on import list_versions
from increlora_jax.run.splits import choose_examples, score_dev
from increlora_jax.run.trained import Trained
from increlora_jax.runtime.compilation_cache import use_compilation_cache
from increlora_jax.runtime.console import prints_apart, say
from increlora_jax.runtime.ending import fail_clearly
from increlora_jax.runtime.libraries import quiet_libraries
from increlora_jax.runtime.preemption import Stop
from increlora_jax.runtime.processes import check_devices
from increlora_jax.runtime.streams import write_result
from increlora_jax.tasks.kind import Batch

BOUNDS = {"float32": 5e-5, "bfloat16": 5e-2, "float16": 5e-3}
"""Largest difference of logits by the dtype of the export, relative to the largest logit.

In float32 sums have another order: 2e-5 was seen in a T5, whose attention has no scale.
"""


EXACT = {"dtype": "float32", "quantize_base": "none"}
"""Settings that an export is made and proved with; a run may compute with less precision."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command: print one line of JSON on standard output, and notes on standard error."""
    quiet_libraries()
    with fail_clearly(), Stop().listening():
        chosen = parse_export(argv)
        chosen.output_dir = _check_place(chosen.output_dir)
        with prints_apart():
            told = export(
                chosen, " ".join(map(shlex.quote, sys.argv[1:] if argv is None else argv))
            )
        write_result(json.dumps(told))


def _check_place(folder: Path) -> Path:
    """Return the whole path of a folder that is empty or can be made."""
    whole = folder.resolve()
    if whole.exists() and (not whole.is_dir() or any(whole.iterdir())):
        raise InputError(f"--output-dir {folder}: not an empty folder. Name a new one")
    above = next(parent for parent in whole.parents if parent.exists())
    if not above.is_dir():
        raise InputError(f"--output-dir {folder}: {above} is no folder. Name another place")
    return whole


def export(chosen: Namespace, words: str) -> dict[str, Any]:
    """Export a model as the flags say; nothing is left unless it computes the same.

    Returns:
        The format, the ranks, and the differences of the proof.

    Raises:
        InputError: If the model cannot be exported so, or the export computes otherwise.
    """
    check_devices()
    options: Any = {"adapter": chosen.adapter, "base": base_from(chosen), "method": chosen.method}
    is_native = chosen.format == "native"
    trained = load_trained(chosen.run, **options, changes={} if is_native else EXACT)
    use_compilation_cache(trained.plan.config.training.compilation_cache_dir)
    _check_form(trained, chosen.format)
    for note in (*trained.notes, *([] if is_native else _note_quantized(trained))):
        say(f"note: {note}")
    if chosen.rank_budget is not None or chosen.energy is not None:
        trained = _shrink(trained, chosen)
    batches, where = choose_examples(trained)
    expected = compute_outputs(trained.model, batches)
    with replace_folder(chosen.output_dir) as aside:
        _write(aside, trained, chosen)
        found = _prove(aside, trained, chosen, batches, expected)
        proof = [f"on {where}: {one.describe()}" for one in found]
        (aside / "README.md").write_text(
            write_card(_tell(trained, chosen, words, proof)), encoding="utf-8"
        )
    for line in proof:
        say(line)
    if chosen.push_to_hub:
        _push(chosen.output_dir, chosen.push_to_hub)
    return {
        "format": chosen.format,
        "output_dir": str(chosen.output_dir),
        "differences": {one.reader: one.largest for one in found},
        "ranks": {path: own.rank for path, own in factors_of(trained.model.parts).items()},
    }


def _check_form(trained: Trained, form: str) -> None:
    if form != "native" and any(map(is_bottleneck, trained.model.parts.head)):
        raise InputError(
            f"--format {form}: bottlenecks are layers of their own, for which it has no place. "
            "Export by --format native, or use the run itself"
        )


def _note_quantized(trained: Trained) -> list[str]:
    stored = trained.saved.get("quantize_base", "none")
    told = f"the run's base is {stored}; the export is for the base without quantization"
    return [] if stored == "none" else [told]


def _write(folder: Path, trained: Trained, chosen: Namespace) -> None:
    match chosen.format:
        case "peft":
            is_apart = chosen.head == "separate"
            layout: Layout = chosen.layout or "portable"
            write_peft(folder, trained.model, layout=layout, is_head_apart=is_apart)
        case "merged":
            write_merged(folder, trained.model, dtype=chosen.dtype)
        case _:
            if not trained.saved:
                raise InputError("--format native is for runs and adapters of this project")
            save_adapter(folder, trained.model.parts, trained.saved)


def _prove(
    folder: Path, trained: Trained, chosen: Namespace, batches: list[Batch], expected: Any
) -> list[Difference]:
    """Load the export, compute the same examples, and check the differences."""
    base = {"model": str(trained.model.folder), "model_revision": None, "model_subfolder": None}
    form = chosen.format
    options: Any = {} if form == "merged" else {"base": base, "method": chosen.method}
    again = load_trained(folder, **options, changes={} if form == "native" else EXACT)
    count = sum(len(batch["weight"]) for batch in batches)
    found = [compare("increlora_jax", expected, compute_outputs(again.model, batches), count)]
    dtype = "float32"
    if form == "merged":
        dtype = chosen.dtype or usual_dtype(trained.model.folder)
    check(found, BOUNDS[dtype])
    needed = ("transformers", "peft") if form == "peft" else ("transformers",)
    if form != "native" and chosen.head != "separate" and has_torch(*needed):
        outputs = compute_torch(trained.model, folder, batches, is_peft=form == "peft")
        found.append(compare("PEFT" if form == "peft" else "PyTorch", expected, outputs, count))
        check(found[1:], BOUNDS[dtype])
    elif form != "native":
        say("note: not compared by PyTorch, as it is not installed or cannot read this form")
    return found


def _shrink(trained: Trained, chosen: Namespace) -> Trained:
    if not trained.saved or not trained.model.parts.adapters:
        raise InputError("--rank-budget and --energy are for adapters of this project's runs")
    small = compact(trained, rank_budget=chosen.rank_budget, energy=chosen.energy)
    for when, one in (("before", trained), ("after", small)):
        metrics = score_dev(one)
        told = "dev data are not here"
        if metrics is not None:
            told = ", ".join(f"{name} {value}" for name, value in metrics.items())
        say(f"{when}: total rank {sum(one.saved['ranks'].values())}, {told}")
    return small


def _tell(trained: Trained, chosen: Namespace, words: str, proof: Sequence[str]) -> Facts:
    model = trained.model
    results = chosen.run / RESULTS
    metrics: dict[str, float] = {}
    if results.is_file() and chosen.rank_budget is None and chosen.energy is None:
        key = "metrics" if name_adapter(chosen.adapter) == "adapter" else "best_metrics"
        metrics = read_json_object(results).get(key, {})
    is_local = Path(model.base_model).exists()
    return Facts(
        name=chosen.output_dir.name,
        base_model=Path(model.base_model).name if is_local else model.base_model,
        task=trained.kind.task,
        labels=model.labels,
        metrics=metrics,
        ranks={path: own.rank for path, own in factors_of(model.parts).items()},
        form=chosen.format,
        command=f"python -m increlora_jax.export {words}",
        proof=proof,
        versions=list_versions(),
    )


def _push(folder: Path, repository: str) -> None:
    """Upload an export to a repository of the hub, which is made if needed."""
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(repository, exist_ok=True)
        say(f"pushed to {api.upload_folder(repo_id=repository, folder_path=folder)}")
    # The hub's library raises errors of its HTTP client, which differ between releases.
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise InputError(
            f"--push-to-hub {repository}: {reason}. The export is in {folder}; log in by hf auth "
            "login and upload it"
        ) from error
