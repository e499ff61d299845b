"""The methods by name: a line for each. Nothing is imported before a method is built."""

from typing import NamedTuple


class Entry(NamedTuple):
    """A method as the table holds it.

    Attributes:
        build: `package.module:function`; the function takes the arguments of `il.increlora`.
        reads: the groups of `RunConfig` that the method reads, or settings as `growth.beta1`.
            A whole group beside `adapter` and `growth` is the method's own, the argument `config`.
    """

    build: str
    reads: tuple[str, ...]

    @property
    def has_adapters(self) -> bool:
        """True if the method puts adapters on a model."""
        return "adapter" in self.reads

    @property
    def own_group(self) -> str | None:
        """The group of settings that belongs to this method alone."""
        own = [g for g in self.reads if "." not in g and g not in ("adapter", "growth")]
        return own[0] if own else None


_RATIOS = ("training.lora_plus_ratio", "training.lambda_lr_ratio")

METHODS = {
    "increlora": Entry(
        "increlora_jax.methods.increlora:increlora", ("adapter", "growth", *_RATIOS)
    ),
    "lora": Entry("increlora_jax.methods.lora:lora", ("adapter", "growth.target_rank", _RATIOS[0])),
    "lora-pattern": Entry(
        "increlora_jax.methods.lora_pattern:lora_pattern",
        ("adapter", "growth.target_rank", "pattern", _RATIOS[0]),
    ),
    "full": Entry("increlora_jax.methods.full:full", ()),
    "adalora": Entry(
        "increlora_jax.methods.adalora:adalora",
        (
            "adapter",
            "growth.target_rank",
            "growth.target_total_rank",
            "growth.beta1",
            "growth.beta2",
            "growth.reg_orth_coef",
            "adalora",
            *_RATIOS,
        ),
    ),
    "bitfit": Entry("increlora_jax.methods.bitfit:bitfit", ("adapter.modules_to_save",)),
    "head": Entry("increlora_jax.methods.head:head", ("adapter.modules_to_save",)),
}
