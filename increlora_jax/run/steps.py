"""Steps of a run, and the settings that follow its length."""

from math import ceil

from increlora_jax.config import LARGEST, RunConfig, TrainingConfig
from increlora_jax.core.pace import choose_warmup
from increlora_jax.errors import InputError
from increlora_jax.run.recipes import scale
from increlora_jax.run.sweep import members_of
from increlora_jax.tasks.batching import steps_per_epoch


def count_steps(training: TrainingConfig, rows: int) -> tuple[int, int]:
    """Return the optimizer steps of an epoch and of the run."""
    batch = training.train_batch_size * training.gradient_accumulation_steps
    epoch_steps = steps_per_epoch(rows, batch)
    steps = training.max_steps or ceil(training.num_train_epochs * epoch_steps)
    if steps > LARGEST:
        raise InputError(
            f"--num-train-epochs {training.num_train_epochs} makes {steps} steps, more "
            f"than the largest possible number, {LARGEST}. Choose less, or --max-steps"
        )
    return epoch_steps, steps


def settle(config: RunConfig, steps: int) -> RunConfig:
    """Set the settings that follow the run's length, except those of its method."""
    scaled = scale(config.task.task, config.growth.target_rank, steps)
    config = config.changed({name: scaled[name] for name in scaled if name in config.unsaid})
    if "warmup_steps" in members_of(config)[0].settings:  # each run has its own
        return config
    return config.changed({"warmup_steps": choose_warmup(config.training.warmup_steps, steps)})
