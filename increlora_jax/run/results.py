"""Results of finished runs, of each run and over seeds that trained together."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from increlora_jax.nn.report import report
from increlora_jax.run.build import Plan, Run
from increlora_jax.run.folder import RESULTS
from increlora_jax.run.runs_on import describe_platform, list_versions
from increlora_jax.training.loop import Outcome
from increlora_jax.training.state import TrainState


def results_of(
    run: Run, state: TrainState, outcome: Outcome, saved: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the content of a run's `results.json`.

    Args:
        run: The run.
        state: Its last state.
        outcome: Its last metrics and counts.
        saved: `step` and `ranks` of its last adapter; default: those of `state`.
    """
    plan = run.plan
    saved = saved or {"step": int(state.step), "ranks": None}
    counts = report(run.trainer.parts(state, run.parts.base), saved["ranks"])
    steps = int(state.step)
    if outcome.stopped is not None:
        steps = outcome.stopped - len(outcome.skipped)
    return {
        **_head(plan),
        "metrics": outcome.metrics,
        "best_metrics": outcome.best_metrics,
        "best_step": outcome.best_step,
        "stopped_early": outcome.stopped is not None,
        "steps": steps,
        "total_steps": plan.total_steps,
        "adapter_step": saved["step"],
        "rank_budget": plan.method.rank_budget,
        "total_rank": counts.total_rank,
        "ranks": counts.ranks,
        "full_modules": list(counts.full),
        "rounds": _rounds_of(plan, outcome),
        "skipped_steps": outcome.skipped,
        "trainable_parameters": {
            "active": counts.active,
            "buffer": counts.buffer,
            "head": counts.head,
            "added": counts.added,
        },
        **_tail(plan, outcome),
    }


def _rounds_of(plan: Plan, outcome: Outcome) -> dict[str, dict[str, int]]:
    """Return the growth up to the last adapter, which may be that of an earlier evaluation."""
    is_best = plan.config.training.load_best_model_at_end
    end = outcome.best_step if is_best and outcome.best_step is not None else plan.total_steps
    return {str(step): growth for step, growth in outcome.rounds.items() if step < end}


def results_of_all(
    plan: Plan, each: Sequence[dict[str, Any]], outcomes: Sequence[Outcome]
) -> dict[str, Any]:
    """Return the results of runs that trained together: means over the seeds.

    Each combination of `--sweep` values is a variant; without `--sweep` there is one variant.
    """
    variants: dict[str, list[int]] = {}
    for index, member in enumerate(plan.members):
        variants.setdefault(member.variant, []).append(index)
    told = [
        {
            "settings": plan.members[indices[0]].settings,
            "members": [plan.members[index].name for index in indices],
            "total_rank": [each[index]["total_rank"] for index in indices],
            **{
                kind: _statistics([each[index][kind] for index in indices])
                for kind in ("metrics", "best_metrics")
            },
        }
        for indices in variants.values()
    ]
    seeds = len(told[0]["members"])
    how = f" (mean ± sample standard deviation of {seeds} seeds)" if seeds > 1 else ""
    summary = "; ".join(map(_say_variant, variants, told)) + how
    speed = sum(outcome.tokens_per_second for outcome in outcomes)
    shares = [o.padding_share for o in outcomes if o.padding_share is not None]
    padding = float(np.mean(shares)) if shares else None
    of_all = outcomes[0]._replace(tokens_per_second=speed, padding_share=padding)
    whole = _tail(plan, of_all)
    return {**_head(plan), "summary": summary, "variants": told, **whole}


def summarize(results: dict[str, Any], folder: Path) -> str:
    """Summarize results in one line."""
    told = results["summary"] if "summary" in results else _say_run(results)
    phases = results.get("seconds_by_phase", {})  # not in results of older versions
    longest = sorted(phases.items(), key=lambda phase: -phase[1])
    spent = ", ".join(f"{name} {seconds:.0f}" for name, seconds in longest if seconds >= 1)
    where = f" ({spent})" if spent else ""
    return f"{told}; {results['seconds']:.0f} s{where}; see {folder / RESULTS}"


def _say_run(results: dict[str, Any]) -> str:
    metrics = ", ".join(f"{name} {value:.4f}" for name, value in results["metrics"].items())
    ranks = ""
    if results["rank_budget"] is not None:
        ranks = f"; total rank {results['total_rank']} of {results['rank_budget']}"
    full = results["full_modules"] if results["rank_budget"] else []
    if results.get("stopped_early"):
        ranks += f"; stopped early after {results['steps']} steps"
    return metrics + ranks + (f"; full: {', '.join(full)}" if full else "")


def _say_variant(variant: str, told: dict[str, Any]) -> str:
    metrics = ", ".join(
        f"{name} {of['mean']:.4f}"
        + ("" if len(of["values"]) == 1 else f" ± {of['sample_standard_deviation']:.4f}")
        for name, of in told["metrics"].items()
    )
    return f"{variant}: {metrics}" if variant else metrics


def _statistics(each: list[dict[str, float]]) -> dict[str, Any]:
    """Return each metric's values, their mean, and √(Σ(x − mean)²/(n − 1)) if n > 1."""
    columns = {name: [metrics[name] for metrics in each] for name in each[0]}
    return {
        name: {
            "mean": float(np.mean(values)),
            "sample_standard_deviation": float(np.std(values, ddof=1)) if len(each) > 1 else None,
            "values": values,
        }
        for name, values in columns.items()
    }


def _head(plan: Plan) -> dict[str, Any]:
    return {
        "task": plan.data.kind.task,
        "method": plan.method.name,
        "model": plan.config.task.model,
    }


def _tail(plan: Plan, outcome: Outcome) -> dict[str, Any]:
    return {
        "mesh": dict(plan.layout.mesh.shape),
        "step_compilations": outcome.step_compilations,
        "data": plan.data.count(),
        "seconds": round(outcome.seconds, 3),
        "seconds_by_phase": {name: round(spent, 3) for name, spent in outcome.phases.items()},
        "seconds_to_first_step": round(outcome.seconds_to_first_step, 3),
        "train_tokens_per_second": round(outcome.tokens_per_second, 1),
        "padding_share": outcome.padding_share and round(outcome.padding_share, 4),
        "identity": plan.identity,
        "versions": list_versions(),
        "platform": describe_platform(),
    }
