"""The methods by name: a line for each. Nothing is imported before a method is built."""

from typing import NamedTuple


class Entry(NamedTuple):
    """A method as the table holds it.

    Attributes:
        build: `package.module:function`; the function takes the arguments of `il.increlora`.
        reads: the groups of `RunConfig` that the method reads, or settings as `growth.beta1`. A
            group beside `adapter`, `growth` and `training` is the argument `config`.
        places: the field of `ModelSpec` that names its places by default.
        size: the setting that the number of its parameters follows; None if there is none.
    """

    build: str
    reads: tuple[str, ...]
    places: str = "target_modules"
    size: str | None = None

    @property
    def has_adapters(self) -> bool:
        """True if the method puts adapters on a model."""
        return "adapter" in self.reads

    @property
    def changes_ranks(self) -> bool:
        """True if slots change their module, or grow or shrink in number."""
        return "growth" in self.reads or any(path.startswith("pruning.") for path in self.reads)

    @property
    def own_group(self) -> str | None:
        """The group of settings that is the argument `config` of the method."""
        groups = [path.partition(".")[0] for path in self.reads]
        return next((g for g in groups if g not in ("adapter", "growth", "training")), None)


_RATIOS = ("training.lora_plus_ratio", "training.lambda_lr_ratio")
_SWAPS = (
    "adapter", "growth.target_rank", "growth.max_rank", "growth.reg_orth_coef", "pruning.tinit",
    "pruning.tfinal", "pruning.delta_t", "pruning.swap_ranks", "pruning.keep_moments", *_RATIOS,
)  # fmt: skip
_PLACES = ("adapter.target_modules", "adapter.exclude_modules", "adapter.modules_to_save")

METHODS = {
    "increlora": Entry(
        "increlora_jax.methods.increlora:increlora",
        ("adapter", "growth", *_RATIOS),
        size="target_total_rank",
    ),
    "lora": Entry(
        "increlora_jax.methods.lora:lora",
        ("adapter", "growth.target_rank", _RATIOS[0]),
        size="target_rank",
    ),
    "lora-pattern": Entry(
        "increlora_jax.methods.lora_pattern:lora_pattern",
        ("adapter", "growth.target_rank", "pattern", _RATIOS[0]),
    ),
    "dora": Entry(
        "increlora_jax.methods.dora:dora",
        ("adapter", "growth.target_rank", _RATIOS[0]),
        size="target_rank",
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
            "pruning.init_r",
            "pruning.tinit",
            "pruning.tfinal",
            "pruning.delta_t",
            *_RATIOS,
        ),
        size="target_total_rank",
    ),
    "elalora": Entry(
        "increlora_jax.methods.elalora:elalora",
        (*_SWAPS, "pruning.swap_depth", "growth.beta1", "growth.beta2"),
        size="target_rank",
    ),
    "flexlora": Entry("increlora_jax.methods.flexlora:flexlora", _SWAPS, size="target_rank"),
    "houlsby": Entry(
        "increlora_jax.methods.bottleneck:houlsby",
        (*_PLACES, "bottleneck"),
        "sublayer_ends",
        size="adapter_size",
    ),
    "pfeiffer": Entry(
        "increlora_jax.methods.bottleneck:pfeiffer",
        (*_PLACES, "bottleneck"),
        "layer_ends",
        size="adapter_size",
    ),
    "bitfit": Entry("increlora_jax.methods.bitfit:bitfit", ("adapter.modules_to_save",)),
    "head": Entry("increlora_jax.methods.head:head", ("adapter.modules_to_save",)),
}
