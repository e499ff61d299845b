"""All contenders by name."""

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

from work import Work

Run = Callable[[int], dict[str, Any]]
"""A function that runs a number of steps, waits for the last, and returns its numbers."""

SCORED = "increlora, scored step"
UNSCORED = "increlora, unscored step"
NARROW = "increlora, unscored, 8 slots"
WIDE = "increlora, unscored, 32 slots"
SCANNED = "increlora, unscored, --scan-layers"
LORA = "lora"
PEFT_LORA = "peft lora"
PEFT_LORA_EAGER = "peft lora, eager attention"
PEFT_LORA_COMPILED = "peft lora, compiled"
PEFT_ADALORA = "peft adalora"
PEFT_ADALORA_COMPILED = "peft adalora, compiled"
PUBLISHED = "published increlora (its cost)"
RUN = "increlora, a whole run in few steps"
JAX_PEAK = "products of matrices, jax"
TORCH_PEAK = "products of matrices, torch"


class Contender(NamedTuple):
    """A contender: `function` of `module` makes it, in a process that imports nothing else."""

    module: str
    function: str
    options: dict[str, Any] = {}  # noqa: RUF012  (never changed)

    @property
    def framework(self) -> str:
        """The framework it is written in."""
        return "jax" if self.module == "ours" or "jax" in self.function else "torch"

    def make(self, work: Work) -> Run:
        """Build the model, with all preparations of the first step."""
        run: Run = getattr(import_module(self.module), self.function)(work, **self.options)
        return run


CONTENDERS = {
    SCORED: Contender("ours", "run_increlora", {"is_scored": True}),
    UNSCORED: Contender("ours", "run_increlora", {"is_scored": False}),
    NARROW: Contender("ours", "run_increlora", {"is_scored": False, "max_rank": "8"}),
    WIDE: Contender("ours", "run_increlora", {"is_scored": False, "max_rank": "32"}),
    SCANNED: Contender("ours", "run_increlora", {"is_scored": False, "is_scanned": True}),
    LORA: Contender("ours", "run_lora"),
    PEFT_LORA: Contender("pytorch", "run_peft_lora"),
    PEFT_LORA_EAGER: Contender("pytorch", "run_peft_lora", {"attention": "eager"}),
    PEFT_LORA_COMPILED: Contender("pytorch", "run_peft_lora", {"is_compiled": True}),
    PEFT_ADALORA: Contender("pytorch", "run_peft_adalora"),
    PEFT_ADALORA_COMPILED: Contender("pytorch", "run_peft_adalora", {"is_compiled": True}),
    PUBLISHED: Contender("published", "run_published"),
}
SCORING = (SCORED, PUBLISHED)
"""Contenders whose steps have the FLOPs of scored ones."""

OTHERS = {
    RUN: Contender("ours", "run_whole_schedule"),
    JAX_PEAK: Contender("peaks", "run_jax_products"),
    TORCH_PEAK: Contender("peaks", "run_torch_products"),
}
"""Further measurements: a whole run, and the machine's matrix products."""
