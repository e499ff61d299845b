"""Advice after running out of memory: the sizes in use, and flags that lower them."""

from pathlib import Path

from increlora_jax.config import RunConfig
from increlora_jax.run.folder import CHECKPOINTS
from increlora_jax.training.checkpoint import find_last


def advise_training(config: RunConfig) -> str:
    """Return the sizes of a training run, the flags that lower them, and the last checkpoint."""
    training, length = config.training, config.task.max_seq_length
    asked = (
        f"--train-batch-size {training.train_batch_size} and --eval-batch-size "
        f"{training.eval_batch_size} examples of up to --max-seq-length {length} tokens at once"
    )
    return f"{asked}. For less, give {', '.join(_list_remedies(config))}. {_tell_saved(config)}"


def advise_evaluation(config: RunConfig, file: Path) -> str:
    """Return the sizes of an evaluation, and the advice to lower them in the run's file."""
    rows, length = config.training.eval_batch_size, config.task.max_seq_length
    return (
        f"eval_batch_size {rows} examples of up to {length} tokens at once. Lower eval_batch_size "
        f"in {file}. The run is unchanged"
    )


def _list_remedies(config: RunConfig) -> list[str]:
    training, task = config.training, config.task
    rows, parts = training.train_batch_size, training.gradient_accumulation_steps
    remedies = {
        f"--train-batch-size {rows // 2} with --gradient-accumulation-steps {parts * 2}": rows > 1,
        "a lower --eval-batch-size": training.eval_batch_size > 1,
        "a lower --max-seq-length": True,
        "--remat full": training.remat != "full",
        "--dtype bfloat16": task.dtype == "float32",
        "--quantize-base nf4": task.quantize_base == "none" and config.adapter.method != "full",
        "fewer --seeds or --sweep values": bool(training.seeds or training.sweep),
    }
    return [remedy for remedy, helps in remedies.items() if helps]


def _tell_saved(config: RunConfig) -> str:
    last = find_last(Path(config.output_dir) / CHECKPOINTS)
    if last is None:
        return "No checkpoint was saved: add --overwrite-output-dir"
    return (
        f"The last checkpoint is {last}, intact: --remat, --eval-batch-size, --scan-layers and "
        "--mesh resume from it, other flags need another --output-dir"
    )
