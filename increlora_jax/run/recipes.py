"""Published hyper-parameters, by task and target rank (arXiv 2308.12043, appendix)."""

from typing import Any, NamedTuple

from increlora_jax.weights.bundled import TINY_ENCODER


class Recipe(NamedTuple):
    """A row of the paper's table; a pair holds the values for rank 2 and for rank 8."""

    learning_rate: tuple[float, float]
    num_train_epochs: tuple[int, int]
    max_seq_length: int
    lora_alpha: int
    lora_dropout: tuple[float, float]
    cls_dropout: float
    weight_decay: float
    reg_orth_coef: float
    interval: int
    top_h: tuple[int, int]
    incre_rank_num: tuple[int, int]


RECIPES = {
    "cola": Recipe((8e-4, 1e-3), (25, 25), 64, 32, (0, 0), 0.1, 0, 0.1, 100, (3, 3), (1, 4)),
    "mnli": Recipe((3.5e-4, 5e-4), (9, 7), 256, 16, (0.2, 0), 0.15, 0, 0.1, 1000, (2, 18), (1, 1)),
    "mrpc": Recipe((1e-3, 1e-3), (30, 30), 320, 32, (0.3, 0.3), 0, 0.01, 0.1, 100, (6, 10), (1, 4)),
    "qnli": Recipe((7e-4, 9e-4), (5, 5), 512, 32, (0, 0), 0.1, 0.01, 0.1, 500, (12, 22), (1, 4)),
    "qqp": Recipe((4e-4, 6e-4), (7, 7), 320, 16, (0, 0), 0.15, 0.01, 0.1, 1000, (3, 3), (1, 4)),
    "rte": Recipe((1.2e-3, 1.2e-3), (50, 50), 320, 32, (0, 0), 0.2, 0.01, 0.3, 100, (5, 9), (1, 4)),
    "sst2": Recipe((8e-4, 8e-4), (24, 24), 128, 16, (0.1, 0.3), 0, 0.01, 0.1, 1000, (5, 6), (1, 4)),
    "stsb": Recipe((2.2e-3, 2.2e-3), (25, 25), 128, 32, (0, 0), 0.2, 0.1, 0.3, 100, (4, 4), (1, 1)),
}
"""Rows of the paper, which has none for WNLI, and STS-B for rank 2 only."""

LARGE_RANK = 8
"""Smallest target rank that takes the second value of a pair."""


TRAIN_ROWS = {
    "cola": 8551, "mnli": 392_702, "mrpc": 3668, "qnli": 104_743, "qqp": 363_846, "rte": 2490,
    "sst2": 67_349, "stsb": 5749,
}  # fmt: skip
"""Numbers of training examples of GLUE, from which the paper's steps follow."""

BATCH_SIZE = 32
"""Batch size of the paper and of the demo."""

IN_STEPS = ("warmup_steps", "init_warmup", "incre_interval")
"""Settings that a recipe gives as steps of a run of its own length."""

FOLLOWS_LENGTH = (*IN_STEPS, "top_h")
"""Settings that follow the length of a run if the user gives none."""

DEMO: dict[str, Any] = {
    "model": str(TINY_ENCODER),
    "max_seq_length": 16,
    "cls_dropout": 0.0,
    "lora_alpha": 32.0,
    "target_rank": 4.0,
    "top_h": 4,
    "init_warmup": 40,
    "incre_interval": 20,
    "learning_rate": 1e-2,
    "warmup_steps": 40,
    "num_train_epochs": 8.0,
    "eval_batch_size": 256,
}
"""Settings of `--task demo` by name; measured in experiments/demo/README.md."""

SQUAD: dict[str, Any] = {"max_seq_length": 384}
"""Settings of `--task squad` and `squad_v2`, from transformers' recipe."""

_DEMO_ROWS = 3000


def recipe(task: str, target_rank: float) -> dict[str, Any]:
    """Return the task's settings by name; empty for a task without a recipe."""
    if task == "demo":
        return DEMO
    if task in ("squad", "squad_v2"):
        return SQUAD
    if task not in RECIPES:
        return {}
    column = int(target_rank >= LARGE_RANK)
    row = RECIPES[task]._asdict()
    chosen = {name: v[column] if isinstance(v, tuple) else v for name, v in row.items()}
    interval = chosen.pop("interval")
    return chosen | dict.fromkeys(("warmup_steps", "init_warmup", "incre_interval"), interval)


def scale(task: str, target_rank: float, steps: int) -> dict[str, Any]:
    """Scale a recipe's `FOLLOWS_LENGTH` settings to a number of steps.

    For the recipe's own length they are the recipe's. For another length they keep their share of
    the run. If an interval would be below one step, all are `auto`. If the recipe sets no growth,
    the result is empty.
    """
    settings = recipe(task, target_rank)
    if "incre_interval" not in settings:
        return {}
    rows = TRAIN_ROWS.get(task, _DEMO_ROWS)
    share = steps / (settings["num_train_epochs"] * -(-rows // BATCH_SIZE))
    if settings["incre_interval"] * share < 1:
        return dict.fromkeys(FOLLOWS_LENGTH, "auto")
    scaled = {name: round(settings[name] * share) for name in IN_STEPS}
    return scaled | {"top_h": settings["top_h"]}
