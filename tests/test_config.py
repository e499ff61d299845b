from dataclasses import FrozenInstanceError, fields
from typing import get_args, get_type_hints

import pytest

from increlora_jax.config import (
    KINDS,
    AdapterConfig,
    BottleneckConfig,
    GrowthConfig,
    PatternConfig,
    PruningConfig,
    RunConfig,
    TaskConfig,
    TrainingConfig,
)
from increlora_jax.core.adapter import Scaling
from increlora_jax.core.importance import IMPORTANCE_FUNCTIONS
from increlora_jax.core.schedule import SHAPES
from increlora_jax.errors import InputError
from increlora_jax.methods.table import METHODS
from increlora_jax.values import Reference

GROUPS = (
    TaskConfig, AdapterConfig, GrowthConfig, PruningConfig, PatternConfig,
    BottleneckConfig, TrainingConfig,
)  # fmt: skip

AT_LEAST_ONE = (
    "initial_rank top_h incre_rank_num incre_interval score_window target_total_rank max_steps "
    "train_batch_size gradient_accumulation_steps eval_batch_size eval_steps logging_steps "
    "steps_per_execution save_steps save_total_limit keep_period n_best_size max_answer_length "
    "early_stopping_patience init_r delta_t prune_interval swap_ranks swap_depth "
    "adapter_size init_batches"
)
POSITIVE = (
    "lora_alpha target_rank learning_rate adam_epsilon max_grad_norm num_train_epochs "
    "lora_plus_ratio lambda_lr_ratio"
)
AT_LEAST_ZERO = (
    "init_warmup reg_orth_coef warmup_steps weight_decay seed max_skipped_steps doc_stride "
    "early_stopping_threshold tinit tfinal"
)
FRACTIONS = "cls_dropout lora_dropout beta1 beta2 adam_beta1 adam_beta2"

BOUNDS = [
    *((name, 1, 0, "at least 1") for name in AT_LEAST_ONE.split()),
    *((name, 1e-9, 0.0, "positive") for name in POSITIVE.split()),
    *((name, 0, -1, "at least 0") for name in AT_LEAST_ZERO.split()),
    *((name, 0.0, 1.0, r"in \[0, 1\)") for name in FRACTIONS.split()),
    *((name, 0.999, -0.001, r"in \[0, 1\)") for name in FRACTIONS.split()),
    ("max_seq_length", 3, 2, "at least 3"),
    ("null_score_diff_threshold", -2.0, float("inf"), "finite"),
    *(("max_rank", good, bad, "a positive number, exact or auto")
      for good, bad in [("1", "0"), ("exact", "8.5"), ("auto", "full"), ("24", "-3")]),
]  # fmt: skip


def group_of(name):
    (group,) = [g for g in GROUPS if name in g.__dataclass_fields__]
    return group


@pytest.mark.parametrize(("name", "good", "bad", "wanted"), BOUNDS)
def test_values_out_of_bounds_name_their_flag_and_the_bound(name, good, bad, wanted):
    assert getattr(group_of(name)(**{name: good}), name) == good
    flag = "--" + name.replace("_", "-")
    with pytest.raises(InputError, match=f"{flag} {bad} must be {wanted}"):
        group_of(name)(**{name: bad})


def test_every_number_has_a_bound():
    checked = {name for name, *_ in BOUNDS}
    for group in GROUPS:
        for name, kind in get_type_hints(group).items():
            kinds = {kind, *get_args(kind)}
            if kinds & {int, float}:
                assert name in checked, name


def test_an_empty_data_dir_is_not_the_hub():
    with pytest.raises(InputError, match="--data-dir '' is blank"):
        RunConfig(task=TaskConfig(data_dir=""))


def test_nan_is_no_value():
    with pytest.raises(InputError, match="--learning-rate nan must be positive"):
        TrainingConfig(learning_rate=float("nan"))


@pytest.mark.parametrize("group", GROUPS)
def test_every_setting_says_what_it_is(group):
    for field in fields(group):
        assert field.metadata["help"], field.name


def test_settings_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        GrowthConfig().top_h = 7


def test_flat_gives_every_setting_once_under_its_flags_name():
    names = [field.name for group in GROUPS for field in fields(group)]
    assert len(names) == len(set(names))
    flat = RunConfig(growth=GrowthConfig(top_h=9)).flat()
    assert list(flat) == names
    assert flat["top_h"] == 9
    assert flat["seed"] == 42


def test_defaults_are_the_issues():
    flat = RunConfig().flat()
    expected = {
        "model": "microsoft/deberta-v3-base", "method": "increlora", "train_batch_size": 32,
        "lr_scheduler_type": "linear", "beta1": 0.85, "beta2": 0.85, "initial_rank": 1,
        "advance_learn": True, "restart_warmup": True, "growth": True, "max_grad_norm": 1.0,
        "importance": "sensitivity", "score_window": None, "target_rank": 2.0, "scaling": "rank",
        "max_rank": "auto",
    }  # fmt: skip
    assert {name: flat[name] for name in expected} == expected


def test_choices_are_those_the_code_has():
    growth, training = get_type_hints(GrowthConfig), get_type_hints(TrainingConfig)
    named, code = get_args(growth["importance"])
    assert set(get_args(named)) == set(IMPORTANCE_FUNCTIONS)
    assert code is Reference
    named, code = get_args(KINDS["method"])
    assert set(get_args(named)) == set(METHODS)
    assert code is Reference
    assert set(get_args(training["lr_scheduler_type"])) == set(SHAPES)
    rules = get_args(get_type_hints(AdapterConfig)["scaling"])
    assert rules == get_args(get_type_hints(Scaling)["rule"])


@pytest.mark.parametrize(("given", "rule"), [("auto", "auto"), ("exact", "exact"), ("24", 24)])
def test_max_rank_as_the_plan_wants_it(given, rule):
    assert GrowthConfig(max_rank=given).max_rank_rule == rule


def test_scaling_rule_is_made_of_alpha_rule_and_target():
    config = AdapterConfig(lora_alpha=7.0, scaling="target")
    assert config.scaling_rule(3.0) == Scaling(7.0, "target", 3.0)


def test_output_folder_defaults_to_what_the_run_is():
    config = RunConfig(TaskConfig(task="cola"), AdapterConfig(method="lora"))
    assert config.output_dir == "runs/cola-lora-42"
    own = RunConfig(TaskConfig(task="text", data_dir="data/trec/"))
    assert own.output_dir == "runs/text-trec-increlora-42"
    named = RunConfig(training=TrainingConfig(output_dir="here"))
    assert named.output_dir == "here"


def test_output_folder_of_own_data_is_that_of_its_folder_however_it_is_given(tmp_path, monkeypatch):
    (tmp_path / "trec").mkdir()
    (tmp_path / "latest").symlink_to("trec")
    monkeypatch.chdir(tmp_path / "trec")
    folders = {
        RunConfig(TaskConfig(task="text", data_dir=given)).output_dir
        for given in (".", "../trec", "../latest", str(tmp_path / "trec"))
    }
    assert folders == {"runs/text-trec-increlora-42"}
    long = RunConfig(TaskConfig(task="text", data_dir="x" * 250))
    assert len(long.output_dir) < 100
