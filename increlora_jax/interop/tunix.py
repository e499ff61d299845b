"""Tunix's PeftTrainer with growth by the paper's score."""

from functools import cache
from typing import Any

import optax
from flax import nnx
from jaxtyping import PyTree

from increlora_jax.config import GrowthConfig
from increlora_jax.errors import InputError
from increlora_jax.interop.growth import growth, ranks_of
from increlora_jax.interop.scores import scored_value_and_grad
from increlora_jax.methods.increlora import choose_importance

NAME = "IncreLoraPeftTrainer"
_PLAN = "increlora"


def __getattr__(name: str) -> Any:
    """Make the class at its first use: tunix is no dependency of this package."""
    if name != NAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from tunix.sft.peft_trainer import PeftTrainer
    except ImportError as error:
        raise InputError(
            f"{NAME} needs tunix, which cannot be imported ({error}). See "
            "experiments/examples/README.md for its packages"
        ) from error
    return _derive(PeftTrainer)


@cache
def _derive(parent: type) -> type:
    """Derive the trainer from tunix's own class."""
    return type(NAME, (_Growing, parent), {"__doc__": _Growing.__doc__})


_Parent: Any = object  # tunix's class, once it is there


class _Growing(_Parent):
    """Part of a `PeftTrainer` of tunix whose model gets adapters that grow by the paper's score.

    Every step scores the dense gradient. With gradient accumulation the host would pass the
    scores of the last micro-batch only; there, give `PeftTrainer` an `il.growth`.

    Args:
        model: an NNX model of tunix, which is changed in place.
        optimizer: any optax transformation.
        training_config: tunix's, with `max_steps`.
        settings: budget and rounds; default: `GrowthConfig()`.
        **given: as of `il.growth`.
    """

    def __init__(
        self,
        model: nnx.Module,
        optimizer: optax.GradientTransformation,
        training_config: Any,
        settings: GrowthConfig = GrowthConfig(),
        **given: Any,
    ) -> None:
        steps = training_config.max_steps
        if steps is None:
            raise InputError(f"{NAME}: growth is planned by the run's steps. Give max_steps")
        if training_config.gradient_accumulation_steps not in (None, 1):
            raise InputError(
                f"{NAME}: gradient_accumulation_steps scores only the last micro-batch. Give "
                "PeftTrainer the transformation il.growth(model, …) instead"
            )
        grow = growth(
            model, optimizer, steps=steps, growth=settings, is_scored_by_host=True, **given
        )
        self._importance = choose_importance(given.get("importance"), settings.importance)
        self._plan = {"steps": steps, "settings": repr(settings)}
        super().__init__(model, grow, training_config)
        saved = self._restored_custom_metadata.get(_PLAN, self._plan)
        for key, value in self._plan.items():
            if saved.get(key) != value:
                raise InputError(
                    f"{training_config.checkpoint_root_directory}: the checkpoint has other "
                    f"{key} of growth: saved {saved.get(key)}, given {value}. Give the same, "
                    "or another folder"
                )

    def create_train_step_fn(self) -> Any:
        """Return tunix's training step with scores for the optimizer."""

        def step(model: nnx.Module, optimizer: Any, inputs: Any) -> tuple[PyTree, Any, PyTree]:
            differentiate = scored_value_and_grad(
                self.loss_fn, importance=self._importance, has_aux=self._has_aux
            )
            given = self.gen_model_input_fn(inputs)
            result, gradients, scores = differentiate(model, **given)
            optimizer.update(model, gradients, scores=scores)
            loss, aux = result if self._has_aux else (result, None)
            return loss, aux, optax.global_norm(gradients)

        return step

    def close(self) -> None:
        """Save the last step with the plan of growth, which tunix's own last save leaves out."""
        saved = self.checkpoint_manager.latest_step()
        if saved is None or saved < self.train_steps:
            self.checkpoint_manager.save(
                self.train_steps,
                self.model,
                self.optimizer,
                save_only_lora_params=True,
                force=True,
                custom_metadata=self.custom_checkpoint_metadata(),
            )
        super().close()

    def custom_checkpoint_metadata(self) -> dict[str, Any]:
        """Return tunix's metadata with the plan of growth and the ranks."""
        ranks = ranks_of(self.optimizer)
        return super().custom_checkpoint_metadata() | {_PLAN: {**self._plan, "ranks": ranks}}
