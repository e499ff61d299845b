"""Settings that have no effect beside others, so that the user hears of them."""

from dataclasses import fields

from increlora_jax.config import RunConfig
from increlora_jax.methods.table import METHODS

_OF_ROUNDS = {
    "target_total_rank", "top_h", "incre_rank_num", "init_warmup", "incre_interval",
    "advance_learn", "restart_warmup", "importance", "beta1", "beta2", "score_window",
    "prune_interval",
}  # fmt: skip
_OF_ADAPTERS = ("lora_plus_ratio", "lambda_lr_ratio")
_OF_ADAM = ("adam_beta1", "adam_beta2", "adam_epsilon")
_UNREAD_BY = {"lion": ("adam_epsilon",), "adafactor": _OF_ADAM, "sgd": _OF_ADAM}
_OF_QUESTIONS = {"doc_stride", "n_best_size", "max_answer_length", "null_score_diff_threshold"}
_OF_TEXTS = {"problem_type", "text_column", "label_column", "class_weights", "cls_dropout"}
_QUESTION_TASKS = ("squad", "squad_v2")


def idle_settings(config: RunConfig) -> dict[str, str]:
    """Return the settings without an effect, each with the flag that causes this."""
    method = config.adapter.method
    idle = dict.fromkeys(_unread(config, method), f"--method {method}")
    if not config.growth.growth:
        idle = dict.fromkeys(_OF_ROUNDS, "--no-growth") | idle
    task = config.task.task
    others = _OF_TEXTS if task in _QUESTION_TASKS else _OF_QUESTIONS
    if task == "squad":
        others = {*others, "null_score_diff_threshold"}
    idle |= dict.fromkeys(others, f"--task {task}")
    optimizer = config.training.optimizer
    idle |= dict.fromkeys(_UNREAD_BY.get(optimizer, ()), f"--optimizer {optimizer}")
    if config.training.early_stopping_patience is None:
        idle["early_stopping_threshold"] = "no --early-stopping-patience"
    if config.training.max_steps is not None:
        idle["num_train_epochs"] = f"--max-steps {config.training.max_steps}"
    return idle


def _unread(config: RunConfig, method: str) -> set[str]:
    """Return the settings that a built-in method does not read; an own method may read all."""
    if method not in METHODS:
        return set()
    reads = METHODS[method].reads
    settings = {
        f"{group.name}.{setting.name}": setting.name
        for group in fields(config)
        if group.name not in ("task", "training", "unsaid") and group.name not in reads
        for setting in fields(getattr(config, group.name))
    }
    unread = {name for path, name in settings.items() if path not in reads}
    unread |= {name for name in _OF_ADAPTERS if f"training.{name}" not in reads}
    return (unread | {"method_options"}) - {"method"}
