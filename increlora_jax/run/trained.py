"""A trained model with the plan of its run."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from increlora_jax.interop.model import TrainedModel
from increlora_jax.models.registry import find_spec
from increlora_jax.nn.skeleton import Parts, Skeleton
from increlora_jax.run.build import Plan
from increlora_jax.tasks.kind import Kind
from increlora_jax.weights.folder import LoadReport, read_config

TOLD = (
    "max_seq_length", "doc_stride", "n_best_size", "max_answer_length",
    "null_score_diff_threshold", "dtype",
)  # fmt: skip
"""Settings that a model's answers depend on."""


class Trained(NamedTuple):
    """A trained model with the plan of its run.

    Attributes:
        plan: The plan, on no data.
        model: The model.
        saved: The content of its `adapter_config.json`; empty for a whole model.
        notes: Notes for the user.
    """

    plan: Plan
    model: TrainedModel
    saved: Mapping[str, Any]
    notes: tuple[str, ...]

    @property
    def kind(self) -> Kind:
        """The kind of task it is trained for."""
        return self.plan.data.kind


def describe_model(
    plan: Plan, skeleton: Skeleton, parts: Parts, report: LoadReport
) -> TrainedModel:
    """Describe a model to other projects.

    Args:
        plan: The plan of its run.
        skeleton: The model without its arrays.
        parts: Its arrays.
        report: A report of the loading of its base.
    """
    kind, task = plan.data.kind, plan.config.task
    told = {name: getattr(task, name) for name in TOLD} | {"task": kind.task}
    defaults = find_spec(read_config(plan.folder)).modules_to_save[kind.head]
    return TrainedModel(
        folder=plan.folder,
        base_model=task.model,
        revision=task.model_revision,
        head=kind.head,
        head_options=kind.head_options,
        labels=kind.labels,
        task={**kind.saved, **told},
        identity={name: plan.identity[name] for name in ("base model", "tokenizer")},
        skeleton=skeleton,
        parts=parts,
        drawn=report.new_parameters,
        modules_to_save=tuple(plan.config.adapter.modules_to_save or defaults),
    )
