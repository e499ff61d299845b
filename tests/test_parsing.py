import shlex
import sys
from dataclasses import fields

import pytest
import yaml

from increlora_jax.config import RunConfig
from increlora_jax.errors import InputError
from increlora_jax.parsing import GROUPS, Parser, parse_run, read_run, write_run
from increlora_jax.recipes import RECIPES

# One value a flag, other than its default and than every recipe's.
VALUES = {
    "task": "text", "data_dir": "data", "problem_type": "regression",
    "text_column": ["first", "second"], "label_column": "gold", "model": "folder",
    "max_seq_length": 77, "pad_to_max_length": True, "packing": True, "cls_dropout": 0.25,
    "dtype": "bfloat16", "quantize_base": "nf4",
    "method": "lora", "target_modules": ["query", "key"], "exclude_modules": [r".*\.[0-3]\..*"],
    "modules_to_save": ["classifier"], "lora_alpha": 7.5, "lora_dropout": 0.25, "scaling": "rsqrt",
    "growth": False, "initial_rank": 3, "target_rank": 6.5, "target_total_rank": 99, "top_h": 21,
    "incre_rank_num": 5, "init_warmup": 17, "incre_interval": 19, "max_rank": "40",
    "advance_learn": False, "restart_warmup": False, "importance": "uniform", "beta1": 0.5,
    "beta2": 0.25, "score_window": 13, "reg_orth_coef": 0.75,
    "output_dir": "out", "overwrite_output_dir": True, "seed": 7, "seeds": "3,4",
    "sweep": ["beta1=0.25,0.5", "lora_alpha=8,16"], "learning_rate": 1.5e-05,
    "lr_scheduler_type": "cosine", "warmup_steps": 23, "weight_decay": 0.125, "adam_beta1": 0.8,
    "adam_beta2": 0.9, "adam_epsilon": 1e-07, "max_grad_norm": 2.5, "num_train_epochs": 1.5,
    "max_steps": 29, "train_batch_size": 31, "gradient_accumulation_steps": 2,
    "eval_batch_size": 33, "eval_steps": 37, "logging_steps": 41,
    "steps_per_execution": 3, "resume": False,
    "save_steps": 43, "save_total_limit": 3, "keep_period": 47, "max_skipped_steps": 0,
    "remat": "dots", "scan_layers": True, "attn_implementation": "pallas", "tensorboard": True,
    "compilation_cache_dir": "programs", "distributed": True, "mesh": "data=4,fsdp=2",
}  # fmt: skip
TOGETHER = VALUES | {"seed": 42}  # beside `seeds`


def words_of(name, value):
    values = value if isinstance(value, list) else [value]
    return [f"--{name}", *map(str, values)]


def write_yaml(folder, text):
    path = folder / "settings.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_there_is_a_value_for_every_flag():
    assert list(VALUES) == [field.name for group in GROUPS for field in fields(group)]


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("spelling", [str, lambda name: name.replace("_", "-")])
def test_every_flag_sets_its_own_setting_in_both_spellings(name, spelling):
    flat = parse_run(words_of(spelling(name), VALUES[name])).flat()
    assert flat[name] == VALUES[name]
    assert type(flat[name]) is type(VALUES[name])
    if name not in ("task", "target_rank"):  # those choose among recipes
        others = parse_run([]).flat()
        assert {k: v for k, v in flat.items() if v != others[k]} == {name: VALUES[name]}


@pytest.mark.parametrize("name", ["growth", "advance_learn", "restart_warmup", "resume"])
def test_what_is_on_can_be_turned_off_by_a_flag_of_its_own(name):
    for flag in (f"--no_{name}", f"--no-{name.replace('_', '-')}"):
        assert parse_run([flag]).flat()[name] is False


def test_what_is_off_is_turned_on_by_its_bare_flag():
    assert parse_run(["--tensorboard"]).training.tensorboard


COMMAND = """
--task sst2 --model M --data-dir D --output-dir O --method increlora --target-rank 2 --top-h 4
--init-warmup 60 --incre-interval 40 --warmup-steps 60 --learning-rate 1e-3 --max-steps 600
--max-seq-length 128 --train-batch-size 32 --seed 41 --dtype float32 --lora-alpha 16
--lora-dropout 0 --cls-dropout 0.1 --weight-decay 0 --reg-orth-coef 0.1 --incre-rank-num 1
--modules-to-save classifier
"""


def test_the_issues_command_is_understood():
    config = parse_run(shlex.split(COMMAND))
    assert config.growth.incre_interval == 40
    assert config.adapter.modules_to_save == ["classifier"]
    assert config.training.max_steps == 600
    assert config.task.cls_dropout == 0.1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lerning-rate", "1"], "unrecognized arguments: --lerning-rate"),
        (["--learning", "1"], "unrecognized arguments: --learning"),  # no abbreviations
        (["--seed", "x"], "--seed: invalid int value: 'x'"),
        (["--seed", "1.5"], "invalid int value"),
        (["--learning-rate", "fast"], "invalid float value: 'fast'"),
        (["--method", "magic"], "invalid choice: 'magic'.*increlora"),
        (["--dtype", "int8"], "invalid choice: 'int8'.*bfloat16"),
        (["--growth", "maybe"], "maybe"),
        (["--seed"], "expected one argument"),
        (["--top-h", "0"], "--top-h 0 must be at least 1"),
        (["--learning-rate", "inf"], "--learning-rate inf must be finite"),
        (["--learning-rate", "nan"], "--learning-rate nan must be positive"),
        (["--target-rank", "1" + "0" * 400], "--target-rank inf must be finite"),
        (["--max-steps", "1" + "0" * 400], "--max-steps 10*0 must be at most 2147483646"),
        (["--max-steps", "1" * 5000], "--max-steps.*: invalid int value"),
        (["stray"], "unrecognized arguments: stray"),
        (["--seeds", "1,1"], "--seeds 1,1: one of them stands there twice"),
    ],
)
def test_wrong_flags_are_named(words, message):
    with pytest.raises(InputError, match=message):
        parse_run(words)


def test_help_names_every_flag():
    text = Parser(prog="x").format_help()
    for name in VALUES:
        assert f"--{name}" in text


def test_words_come_from_the_command_line_unless_given(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train", "--seed", "5"])
    assert parse_run().training.seed == 5
    assert parse_run([]).training.seed == 42


def test_a_file_gives_any_setting_under_its_flags_name(tmp_path):
    path = write_yaml(tmp_path, yaml.safe_dump(TOGETHER))
    assert parse_run(["--config", str(path)]).flat() == TOGETHER


def test_flags_win_over_the_file_and_the_file_over_the_recipe(tmp_path):
    path = write_yaml(tmp_path, "task: mnli\ntop_h: 9\nlora_alpha: 3\n")
    flat = parse_run(["--config", str(path), "--top-h", "11"]).flat()
    assert flat["task"] == "mnli"
    assert flat["top_h"] == 11  # flag
    assert flat["lora_alpha"] == 3  # file; the recipe has 16
    assert flat["max_seq_length"] == 256  # recipe
    assert flat["eval_batch_size"] == 64  # default
    # Wherever the flag stands.
    assert parse_run(["--top-h", "11", "--config", str(path)]).flat() == flat


def test_the_recipe_is_that_of_the_task_and_rank_that_win(tmp_path):
    path = write_yaml(tmp_path, "task: cola\ntarget_rank: 8\n")
    assert parse_run(["--config", str(path)]).training.learning_rate == 1e-3
    flat = parse_run(["--config", str(path), "--task", "mnli", "--target-rank", "2"]).flat()
    assert (flat["learning_rate"], flat["top_h"]) == (3.5e-4, 2)


def test_a_setting_of_null_is_as_good_as_none(tmp_path):
    path = write_yaml(tmp_path, "seed: null\nmax_steps:\n")
    assert parse_run(["--config", str(path)]) == parse_run([])


def test_numbers_may_be_written_as_people_do(tmp_path):
    # YAML 1.1 takes 1e-3 for a word.
    path = write_yaml(tmp_path, "learning_rate: 1e-3\nmax_rank: 16\ngrowth: no\n")
    config = parse_run(["--config", str(path)])
    assert config.training.learning_rate == 1e-3
    assert config.growth.max_rank == "16"
    assert config.growth.growth is False


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lerning_rate: 1", "settings.yaml:1: unknown key 'lerning_rate'"),
        ("config: other.yaml", "settings.yaml:1: unknown key 'config'"),
        ("# a comment\n\nseed: 1.5", "settings.yaml:3: seed: '1.5' must be a whole number"),
        ("method: magic", "settings.yaml:1: method: invalid choice: 'magic'.*increlora"),
        ("seed: 3\ntop_h: 0", "settings.yaml:2: --top-h 0 must be at least 1"),
        ("seed: 2147483647", "settings.yaml:1: --seed 2147483647 must be at most 2147483646"),
        ("beta1: 1", "settings.yaml:1: --beta1 1.0 must be in"),
        ("top_h: 3\nsweep: top_h=1,2", "settings.yaml:2: --sweep top_h=1,2: 'top_h' cannot differ"),
        ("just words", "settings.yaml must hold `key: value` lines"),
    ],
)
def test_a_wrong_file_is_named_with_its_fault(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        parse_run(["--config", str(write_yaml(tmp_path, text))])


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere.yaml cannot be read: .*No such file"):
        parse_run(["--config", str(tmp_path / "nowhere.yaml")])
    with pytest.raises(InputError, match="cannot be read"):
        parse_run(["--config", str(tmp_path)])
    (tmp_path / "latin.yaml").write_bytes(b"data_dir: caf\xe9\n")
    with pytest.raises(InputError, match=r"latin.yaml cannot be read"):
        parse_run(["--config", str(tmp_path / "latin.yaml")])


@pytest.mark.parametrize("rank", ["2", "8"])
@pytest.mark.parametrize("task", [*sorted(RECIPES), "wnli", "text", "demo"])
def test_a_resolved_configuration_is_read_as_it_was_written(tmp_path, task, rank):
    config = parse_run(["--task", task, "--target-rank", rank])
    write_run(config, tmp_path / "config.yaml")
    assert read_run(tmp_path / "config.yaml") == config
    # Given back to the command, it resolves to itself: the recipe has no say any more.
    assert parse_run(["--config", str(tmp_path / "config.yaml")]) == config


def test_every_setting_survives_writing(tmp_path):
    config = parse_run([word for name in TOGETHER for word in words_of(name, TOGETHER[name])])
    assert config.flat() == TOGETHER
    write_run(config, tmp_path / "config.yaml")
    assert read_run(tmp_path / "config.yaml") == config


def test_a_written_configuration_keeps_no_default_to_the_reader(tmp_path):
    write_run(RunConfig(), tmp_path / "config.yaml")
    written = yaml.safe_load((tmp_path / "config.yaml").read_text(encoding="utf-8"))
    assert list(written) == list(VALUES)


@pytest.mark.parametrize(
    "folder",
    ["007", "1e-3", "yes", "null", "~", "tür", "数据", "#x", "a: b", " a b", "-x", "--seed", ""],
)
def test_odd_names_survive_writing(tmp_path, folder):
    config = parse_run([f"--data-dir={folder}"])
    assert config.task.data_dir == folder
    write_run(config, tmp_path / "config.yaml")
    assert read_run(tmp_path / "config.yaml") == config
