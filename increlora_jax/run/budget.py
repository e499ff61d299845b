"""The places of a method in a run's model, and a size that matches a number of parameters."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from flax import nnx

from increlora_jax.config import AdapterConfig, RunConfig
from increlora_jax.errors import InputError
from increlora_jax.files.json_object import read_json_object
from increlora_jax.files.kinds import check_keys
from increlora_jax.methods.base import Method, choose_places
from increlora_jax.methods.registry import build_method, fill_places
from increlora_jax.methods.table import METHODS
from increlora_jax.models.spec import Head, ModelSpec
from increlora_jax.nn.any_model import plan_targets
from increlora_jax.nn.bottleneck import find_places
from increlora_jax.quantization import QuantizedKernel
from increlora_jax.run.folder import RESULTS
from increlora_jax.weights.folder import name_variables

COUNTS = "trainable_parameters"
"""The key of the counts in `results.json`."""

_UNITS = {"": 1, "k": 10**3, "m": 10**6}


def default_places(name: str, spec: ModelSpec, head: Head) -> dict[str, Any]:
    """Return the places of a method that `build_method` takes if the user names none."""
    places = METHODS[name].places if name in METHODS else "target_modules"
    return {
        "default_targets": getattr(spec, places),
        "default_modules_to_save": list(spec.modules_to_save[head]),
    }


def method_builder(
    model: nnx.Module,
    places: Mapping[str, Any],
    steps: int,
    initial_ranks: Mapping[str, int] | None,
) -> Callable[[RunConfig], Method]:
    """Return the function that builds the method of a configuration.

    Args:
        model: The base model with its head, which may be abstract.
        places: The method's places, as `default_places` returns them.
        steps: Optimizer steps of the run.
        initial_ranks: Ranks of the modules that begin with a trained update; None: none do.
    """
    options: Any = {"steps": steps, "initial_ranks": initial_ranks, **places}
    return partial(build_method, model, **options)


def check_frozen(model: nnx.Module, method: Method) -> None:
    """Check that no quantized parameter is trained."""
    for path, parameter in name_variables(model, nnx.Param).items():
        if isinstance(parameter.get_value(), QuantizedKernel) and method.is_trained(path):
            raise InputError(
                f"--quantize-base is for frozen layers, and {path} is trained in full. "
                "Choose another --method than full, or other --modules-to-save"
            )


def match_budget(
    config: RunConfig, model: nnx.Module, places: Mapping[str, Any]
) -> tuple[RunConfig, tuple[str, ...]]:
    """Choose the size whose number of adapter parameters comes nearest to that of the user.

    The parameters of the modules to save are not counted, nor reserve and dormant slots.

    Args:
        config: The configuration of the run.
        model: The base model with its head, which may be abstract.
        places: The method's places, as `default_places` returns them.

    Returns:
        The configuration with the size, and a note for the user.

    Raises:
        InputError: If the method has no size, or the number cannot be read.
    """
    wanted = _read_wanted(config.adapter)
    if wanted is None:
        return config, ()
    name = config.adapter.method
    setting = METHODS[name].size if name in METHODS else None
    if setting is None:
        raise InputError(f"--match-budget: --method {name} has no size to choose. Leave it out")
    cost = _find_cost(name, setting, model, fill_places(config.adapter, **places))
    if name == "increlora":
        cost = cost._replace(least=config.growth.initial_rank * cost.modules)
    size = max(cost.least, round((wanted - cost.fixed) / cost.each))
    count = round(cost.fixed + size * cost.each)
    note = f"--{setting.replace('_', '-')} {size} comes nearest to {wanted:,} adapter parameters"
    about = "about " if METHODS[name].changes_ranks else ""
    changes = {setting: size, "match_budget": str(wanted), "match_budget_of": None}
    if setting == "target_total_rank":
        changes["target_rank"] = size / cost.modules
    return config.changed(changes), (f"{note}: it makes {about}{count:,}",)


class _Cost(NamedTuple):
    """Parameters of a method: fixed + size · each."""

    modules: int
    fixed: int
    each: float
    least: int = 1  # smallest size


def _find_cost(name: str, setting: str, model: nnx.Module, adapter: AdapterConfig) -> _Cost:
    chosen = choose_places(model, None, None, None, adapter)
    if setting == "adapter_size":
        widths = find_places(model, chosen.targets, chosen.exclude).values()
        return _Cost(len(widths), sum(widths), sum(2 * width + 1 for width in widths))
    sizes = plan_targets(model, **chosen._asdict()).sizes.values()
    has_lambda = "training.lambda_lr_ratio" in METHODS[name].reads
    each = sum(inputs + outputs + has_lambda for inputs, outputs in sizes)
    if setting == "target_total_rank":
        return _Cost(len(sizes), 0, each / len(sizes))
    lengths = sum(outputs for _, outputs in sizes) if name == "dora" else 0
    return _Cost(len(sizes), lengths, each)


def _read_wanted(adapter: AdapterConfig) -> int | None:
    if adapter.match_budget is not None and adapter.match_budget_of is not None:
        raise InputError("--match-budget and --match-budget-of both give a budget. Give one")
    if adapter.match_budget_of is not None:
        return _read_run(Path(adapter.match_budget_of).expanduser())
    if adapter.match_budget is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([km]?)", adapter.match_budget.strip().lower())
    if not found or not float(found[1]):
        raise InputError(
            f"--match-budget {adapter.match_budget}: write a number of parameters, as 300000, 300k "
            "or 0.3M"
        )
    return round(float(found[1]) * _UNITS[found[2]])


def _read_run(folder: Path) -> int:
    """Return the adapter parameters of a finished run."""
    path = folder / RESULTS
    content = read_json_object(path, allow_nan=True)
    if COUNTS not in content:
        raise InputError(f"--match-budget-of {folder}: {path} has no {COUNTS}. Name a run's folder")
    check_keys(path, {COUNTS: content[COUNTS]}, {COUNTS: dict[str, int]})
    counts = content[COUNTS]
    total: int = counts.get("active", 0) + counts.get("added", 0)
    if not total:
        raise InputError(f"--match-budget-of {folder}: that run has no adapter parameters")
    return total
