"""The groups of settings: names, defaults and bounds, checked before anything is loaded."""

import re
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, ClassVar, Literal

from increlora_jax.core.pace import Auto
from increlora_jax.values import (
    Reference,
    expand_homes,
    list_options,
    option,
    require,
    require_each,
    split_names,
)

if TYPE_CHECKING:  # --help and errors in settings come before JAX is imported
    from increlora_jax.core.adapter import Scaling

TaskName = Literal[
    "cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb", "wnli",
    "text", "demo", "squad", "squad_v2",
]  # fmt: skip
Importance = Literal[
    "sensitivity", "lambda_gradient", "gradient_norm", "magnitude", "random", "uniform"
]
Tracker = Literal["tensorboard", "wandb", "trackio", "none"]
OptimizerName = Literal["adamw", "lion", "adafactor", "muon", "sgd"]
ScheduleShape = Literal["linear", "cosine", "constant_with_warmup"]

Count = int | Auto
"""A whole number, or `auto`: then `core.pace` chooses it by the length of the run."""


@list_options
@dataclass(frozen=True)
class TaskConfig:
    """Settings of the task, its data and the base model.

    >>> TaskConfig(task="mrpc").max_seq_length
    128
    """

    sections: ClassVar[dict[str, str]] = {"task": "task, data and base model"}

    task: TaskName = option(
        "sst2", "a GLUE task, squad, squad_v2, text for data of your own, or demo"
    )
    data_dir: str | None = option(None, "folder with train and dev files; default: the hub")
    problem_type: Literal["auto", "single_label_classification", "regression"] = option(
        "auto", "of --task text; auto: by the labels"
    )
    text_column: list[str] | None = option(
        None, "the one or two text columns of the files of --data-dir; default: the task's names"
    )
    label_column: str | None = option(None, "their label column; default: label or labels")
    model: str = option("microsoft/deberta-v3-base", "a local model folder or a hub id")
    model_revision: str | None = option(
        None, "the branch, tag or commit of a hub id; default: the newest"
    )
    model_subfolder: str | None = option(
        None, "where in the folder or repository of --model the model is, as 0_Transformer"
    )
    max_seq_length: int = option(128, "tokens an example is truncated to")
    doc_stride: Count = option(
        "auto", "squad: tokens that windows of a context overlap by; auto is a third of "
        "--max-seq-length"
    )  # fmt: skip
    n_best_size: int = option(20, "squad: starts and ends that are tried for an answer")
    max_answer_length: int = option(30, "squad: tokens of an answer at most")
    null_score_diff_threshold: float = option(
        0.0, "squad_v2: by how much no answer has to score higher than the best one"
    )
    pad_to_max_length: bool = option(
        False, "pad every batch to --max-seq-length: one shape; with --seeds or --sweep each run "
        "then draws the dropout that it draws alone"
    )  # fmt: skip
    packing: bool | Literal["auto"] = option(
        "auto", "put short examples of a batch into one row, one after another: the same loss of "
        "fewer tokens; for BERT, RoBERTa and DeBERTa; auto: where it is worthwhile"
    )  # fmt: skip
    class_weights: Literal["none", "balanced"] = option(
        "none", "weights of classes in the training loss; balanced: rows / (classes * rows of it)"
    )
    cls_dropout: float | None = option(None, "dropout before the classifier; default: the model's")
    dtype: Literal["float32", "bfloat16"] = option("float32", "of base weights and activations")
    quantize_base: Literal["none", "int8", "int4", "nf4"] = option(
        "none", "how the frozen dense layers of the base are stored, at 1 or 1/2 byte a weight"
    )

    def __post_init__(self) -> None:
        """Check the bounds."""
        require_each(self, "max_seq_length", lambda v: v >= 3, "at least 3")
        require_each(self, "n_best_size max_answer_length", lambda v: v >= 1, "at least 1")
        require_each(self, "null_score_diff_threshold", isfinite, "finite")
        require_each(self, "doc_stride", lambda v: v >= 0, "at least 0")
        require_each(self, "cls_dropout", lambda v: 0 <= v < 1, "in [0, 1)")
        expand_homes(self, "data_dir", "model")


@list_options
@dataclass(frozen=True)
class AdapterConfig:
    """Settings of the method, and of the places of its adapters.

    >>> AdapterConfig(lora_alpha=8.0, target_modules=["query"]).scaling
    'rank'
    """

    sections: ClassVar[dict[str, str]] = {"method": "method"}

    method: str = option(
        "increlora", "increlora, adalora, elalora or flexlora of ranks that change; lora, dora or "
        "lora-pattern of fixed ones; houlsby or pfeiffer bottlenecks; full fine-tuning, the "
        "biases (bitfit) or the head on a frozen base; or code of your own"
    )  # fmt: skip
    method_options: list[str] | None = option(None, "settings of a method of your own, as budget=8")
    target_modules: list[str] | None = option(
        None, "one regex, names that end a path, or all-linear; default: the model's own list"
    )
    exclude_modules: list[str] | None = option(None, "targets to leave out, said in the same way")
    modules_to_save: list[str] | None = option(
        None, "modules trained in full and saved; default: the model's pooler and classifier"
    )
    init: Literal["default", "lora", "pissa", "eva", "gora"] = option(
        "default", "how adapters begin: drawn; with B = 0 and lambda = 1 if lambda learns (lora); "
        "from singular vectors of the kernels (pissa) or of the inputs of the first batches (eva); "
        "or from the first gradients (gora)"
    )  # fmt: skip
    init_batches: int = option(8, "batches that eva and gora look at")
    match_budget: str | None = option(
        None, "number of adapter parameters to come near, as 0.3M; sets --target-rank, "
        "--target-total-rank or --adapter-size"
    )  # fmt: skip
    match_budget_of: str | None = option(None, "a run whose number of them is the budget")
    init_adapter: str | None = option(None, "PEFT folder or adapter to begin with")
    ignore_head: bool = option(False, "whether its head is left out")
    lora_alpha: float = option(16.0, "alpha of the scale s = alpha/r")
    lora_dropout: float = option(0.0, "dropout on an adapter's input")
    scaling: Literal["rank", "target", "rsqrt"] = option(
        "rank", "s = alpha/r with the present rank, alpha/target_rank, or alpha/sqrt(r)"
    )

    def __post_init__(self) -> None:
        """Check the bounds."""
        require_each(self, "lora_dropout", lambda v: 0 <= v < 1, "in [0, 1)")
        require_each(self, "lora_alpha", lambda v: v > 0, "positive")
        require_each(self, "init_batches", lambda v: v >= 1, "at least 1")
        for name in ("target_modules", "exclude_modules", "modules_to_save"):
            object.__setattr__(self, name, split_names(getattr(self, name)))

    def scaling_rule(self, target_rank: float) -> "Scaling":
        """Return the rule of the scale s."""
        from increlora_jax.core.adapter import Scaling

        return Scaling(self.lora_alpha, self.scaling, target_rank)


@list_options
@dataclass(frozen=True)
class GrowthConfig:
    """Settings of growth, under the paper's names.

    >>> GrowthConfig(target_rank=4).top_h
    'auto'
    """

    sections: ClassVar[dict[str, str]] = {"growth": "growth"}

    growth: bool = option(True, "whether ranks grow at all")
    initial_rank: int = option(1, "active slots of every module at the start")
    target_rank: float = option(2.0, "mean final rank of a module; --method lora: its rank")
    target_total_rank: int | None = option(None, "the budget itself, instead of --target-rank")
    top_h: Count = option("auto", "modules that grow in a round")
    incre_rank_num: int = option(1, "slots a module grows by")
    init_warmup: Count = option("auto", "steps before the first round")
    incre_interval: Count = option("auto", "steps between rounds; auto ends at 0.35 of the run")
    max_rank: str = option("auto", "slots of a buffer: a number, exact (all the plan could use) "
                           "or auto (exact, but at most max(32, 4 * target_rank))")  # fmt: skip
    advance_learn: bool = option(True, "whether reserve slots learn before they count")
    restart_warmup: bool = option(True, "whether every new slot has a warmup of its own")
    importance: Importance | Reference = option(
        "sensitivity", "score of modules, or code of your own"
    )
    beta1: float = option(0.85, "decay of the average importance")
    beta2: float = option(0.85, "decay of its uncertainty")
    prune_interval: int | None = option(
        None, "steps between prunings, after which ranks grow back where they matter; default: none"
    )
    score_window: Count | None = option(
        None, "steps scored up to a round, or auto for few; default: all that averages remember"
    )
    reg_orth_coef: float = option(0.1, "weight of the orthogonality term (gamma)")

    def __post_init__(self) -> None:
        """Check the bounds."""
        require_each(
            self,
            "initial_rank top_h incre_rank_num incre_interval score_window target_total_rank "
            "prune_interval",
            lambda v: v >= 1,
            "at least 1",
        )
        require_each(self, "target_rank", lambda v: v > 0, "positive")
        require_each(self, "init_warmup reg_orth_coef", lambda v: v >= 0, "at least 0")
        require_each(self, "beta1 beta2", lambda v: 0 <= v < 1, "in [0, 1)")
        is_width = self.max_rank in ("auto", "exact") or re.fullmatch(r"[1-9]\d*", self.max_rank)
        require(bool(is_width), "max_rank", self.max_rank, "a positive number, exact or auto")

    @property
    def max_rank_rule(self) -> int | Literal["auto", "exact"]:
        """`max_rank` as the plan takes it."""
        match self.max_rank:
            case "auto" | "exact":
                return self.max_rank
            case number:
                return int(number)


@list_options
@dataclass(frozen=True)
class PruningConfig:
    """Settings of methods that prune slots, adalora, elalora and flexlora, under PEFT's names.

    >>> PruningConfig(init_r=12).tinit
    'auto'
    """

    sections: ClassVar[dict[str, str]] = {"init_r": "adalora, elalora, flexlora"}

    init_r: Count = option("auto", "adalora: slots of a module at first; auto: 1.5 * target_rank")
    tinit: Count = option("auto", "steps before the first pruning; auto: 0.1 of the run")
    tfinal: Count = option("auto", "last steps, without pruning; auto: 0.4 of the run")
    delta_t: Count = option(
        "auto", "steps between prunings; auto: 0.002 of the run, of elalora and flexlora 0.02"
    )
    swap_ranks: int = option(4, "elalora, flexlora: slots that change their module in a round")
    swap_depth: int = option(2, "elalora: slots that a module loses or gains in a round at most")
    keep_moments: bool = option(
        True, "elalora, flexlora: keep Adam's moments in a round; the published code does not"
    )

    def __post_init__(self) -> None:
        """Check the bounds."""
        require_each(self, "init_r delta_t swap_ranks swap_depth", lambda v: v >= 1, "at least 1")
        require_each(self, "tinit tfinal", lambda v: v >= 0, "at least 0")


@list_options
@dataclass(frozen=True)
class PatternConfig:
    """The ranks of `--method lora-pattern`.

    >>> PatternConfig(["query=4", "value=0"]).rank_pattern
    ['query=4', 'value=0']
    """

    sections: ClassVar[dict[str, str]] = {"rank_pattern": "lora-pattern"}

    rank_pattern: list[str] | None = option(
        None, "a run's results.json, whose ranks are taken, or NAME=RANK of every module"
    )


@list_options
@dataclass(frozen=True)
class BottleneckConfig:
    """Settings of `--method houlsby` and `pfeiffer`.

    >>> BottleneckConfig(adapter_size=8).adapter_size
    8
    """

    sections: ClassVar[dict[str, str]] = {"adapter_size": "houlsby, pfeiffer"}

    adapter_size: int = option(16, "inner width of a bottleneck")

    def __post_init__(self) -> None:
        """Check the bounds."""
        require_each(self, "adapter_size", lambda v: v >= 1, "at least 1")


@list_options
@dataclass(frozen=True)
class TrainingConfig:
    """Settings of steps, optimizer, evaluation and output.

    >>> TrainingConfig(learning_rate=5e-4).train_batch_size
    32
    """

    sections: ClassVar[dict[str, str]] = {
        "output_dir": "output, seeds and sweeps",
        "optimizer": "optimizer and steps",
        "eval_batch_size": "evaluation and logging",
        "resume": "checkpoints and resuming",
        "steps_per_execution": "speed, memory and devices",
    }
    """The titles in `--help`, each by the first setting below it."""

    output_dir: str | None = option(
        None, "the run's folder; default: runs/TASK-METHOD-SEED, or runs/text-FOLDER-METHOD-SEED"
    )
    overwrite_output_dir: bool = option(False, "replace a run that the folder already holds")
    seed: int = option(42, "of data order, dropout and new weights")
    seeds: str | None = option(
        None, "several seeds, as 41,42,43: a run for each, all trained at once over one base"
    )
    sweep: list[str] | None = option(
        None, "values of a setting, as learning_rate=5e-4,1e-3: a run for each, all trained at "
        "once; several settings, or --seeds beside, make every combination"
    )  # fmt: skip
    optimizer: OptimizerName = option("adamw", "optimizer of everything trainable")
    learning_rate: float = option(1e-3, "peak learning rate")
    lora_plus_ratio: float = option(1.0, "rate of B over that of A, as in LoRA+")
    lambda_lr_ratio: float = option(1.0, "rate of lambda over that of A")
    lr_scheduler_type: ScheduleShape = option("linear", "shape after the warmup")
    warmup_steps: Count = option("auto", "steps of warmup, of the run and of every new slot")
    weight_decay: float = option(0.0, "decoupled weight decay")
    adam_beta1: float = option(0.9, "beta1 of AdamW and Lion")
    adam_beta2: float = option(0.999, "beta2 of AdamW and Lion")
    adam_epsilon: float = option(1e-8, "AdamW's epsilon")
    max_grad_norm: float = option(1.0, "clip by the global norm of everything trainable")
    num_train_epochs: float = option(3.0, "passes over the training data")
    max_steps: int | None = option(None, "optimizer steps, instead of --num-train-epochs")
    train_batch_size: int = option(32, "examples a forward pass")
    gradient_accumulation_steps: int = option(1, "forward passes an optimizer step")
    eval_batch_size: int = option(64, "examples a forward pass of evaluation")
    eval_steps: int | None = option(None, "steps between evaluations; default: an epoch")
    logging_steps: int = option(1, "steps between lines of metrics.jsonl")
    report_to: list[Tracker] | None = option(
        None, "trackers that also get the lines of metrics.jsonl; each is a package of its own"
    )
    report: bool = option(False, "write report.html in the run's folder at every evaluation")
    metric_for_best_model: str | None = option(
        None, "metric on dev that the best adapter is chosen by, or loss; default: the task's first"
    )
    greater_is_better: bool | Literal["auto"] = option(
        "auto", "whether a larger value of it is better; auto: unless it is a loss"
    )
    load_best_model_at_end: bool = option(False, "make the best adapter the run's last one")
    early_stopping_patience: int | None = option(
        None, "evaluations in a row without a better value of it that end the run"
    )
    early_stopping_threshold: float = option(0.0, "by how much a value must be better to count")
    resume: bool = option(True, "continue the folder's run if its settings are the same")
    save_steps: int = option(500, "steps between checkpoints")
    save_total_limit: int = option(2, "checkpoints kept, beside the best one")
    keep_period: int | None = option(None, "also keep the checkpoints of multiples of this step")
    max_skipped_steps: int = option(
        10, "steps in a row, of a loss or gradient that is not finite, that a run passes over"
    )
    steps_per_execution: int = option(
        1, "steps a call of the compiled program carries out: more where a step is too short to "
        "keep the device busy; their batches are padded to the longest of them"
    )  # fmt: skip
    remat: Literal["none", "dots", "full"] = option(
        "none",
        "parts of a layer to recompute in the backward pass, to save memory: nothing, "
        "all but its dense products, or all of it",
    )
    scan_layers: bool = option(
        False,
        "make layers that are alike one loop: a program that does not grow with their number and "
        "compiles sooner; steps are slower (on a CPU by a third)",
    )
    attn_implementation: Literal["xla", "pallas"] = option(
        "xla",
        "implementation of DeBERTa's attention: XLA, or kernels for NVIDIA GPUs that never write "
        "its scores to memory; these are not measured yet",
    )
    compilation_cache_dir: str | None = option(
        None, "where compiled programs are kept, or off; default: a private folder in ~/.cache"
    )
    distributed: bool = option(
        False, "this is one of several processes that train together, found by jax.distributed"
    )
    mesh: str | None = option(
        None,
        "sizes of the mesh of all devices, as data=4,fsdp=2,tensor=2; default: one device, and "
        "with --distributed all devices along data",
    )

    def __post_init__(self) -> None:
        """Check the bounds."""
        require_each(
            self,
            "max_steps train_batch_size gradient_accumulation_steps eval_batch_size eval_steps "
            "logging_steps steps_per_execution save_steps save_total_limit keep_period "
            "early_stopping_patience",
            lambda v: v >= 1,
            "at least 1",
        )
        positive = "learning_rate adam_epsilon max_grad_norm num_train_epochs "
        positive += "lora_plus_ratio lambda_lr_ratio"
        require_each(self, positive, lambda v: v > 0, "positive")
        require_each(
            self,
            "warmup_steps weight_decay seed max_skipped_steps early_stopping_threshold",
            lambda v: v >= 0,
            "at least 0",
        )
        require_each(self, "adam_beta1 adam_beta2", lambda v: 0 <= v < 1, "in [0, 1)")
        expand_homes(self, "output_dir", "compilation_cache_dir")
