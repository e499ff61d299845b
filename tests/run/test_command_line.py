import os
import re
import shlex
import sys
from dataclasses import fields

import pytest
import yaml

from increlora_jax.config import DEFAULTS, RunConfig
from increlora_jax.errors import InputError
from increlora_jax.run.command_line import (
    GROUPS,
    parse_command,
    parse_run,
    read_run,
    train_parser,
    write_run,
)
from increlora_jax.run.recipes import RECIPES

# One value a flag, other than its default and than every recipe's.
VALUES = {
    "task": "text", "data_dir": "data", "problem_type": "regression",
    "text_column": ["first", "second"], "label_column": "gold",
    "model": "folder", "model_revision": "main", "model_subfolder": "inner",
    "max_seq_length": 77, "doc_stride": 9, "n_best_size": 5, "max_answer_length": 8,
    "null_score_diff_threshold": 0.5,
    "pad_to_max_length": True, "packing": True, "class_weights": "balanced",
    "cls_dropout": 0.25,
    "dtype": "bfloat16", "quantize_base": "nf4",
    "method": "lora", "method_options": ["budget=8"], "target_modules": ["query", "key"],
    "exclude_modules": [r".*\.[0-3]\..*"],
    "modules_to_save": ["classifier"], "init": "eva", "init_batches": 6,
    "match_budget": "0.3M", "match_budget_of": "runs/first",
    "init_adapter": "first", "ignore_head": True,
    "lora_alpha": 7.5, "lora_dropout": 0.25, "scaling": "rsqrt",
    "growth": False, "initial_rank": 3, "target_rank": 6.5, "target_total_rank": 99, "top_h": 21,
    "incre_rank_num": 5, "init_warmup": 17, "incre_interval": 19, "max_rank": "40",
    "advance_learn": False, "restart_warmup": False, "importance": "uniform", "beta1": 0.5,
    "beta2": 0.25, "prune_interval": 27, "score_window": 13, "reg_orth_coef": 0.75,
    "init_r": 9, "tinit": 51, "tfinal": 53, "delta_t": 6, "swap_ranks": 10, "swap_depth": 3,
    "keep_moments": False, "rank_pattern": ["query=3", "key=1"], "adapter_size": 24,
    "output_dir": "out", "overwrite_output_dir": True, "seed": 7, "seeds": "3,4",
    "sweep": ["adam_beta1=0.25,0.5", "lora_alpha=8,16"], "optimizer": "lion",
    "learning_rate": 1.5e-05, "lora_plus_ratio": 16.0, "lambda_lr_ratio": 4.0,
    "lr_scheduler_type": "cosine", "warmup_steps": 23, "weight_decay": 0.125, "adam_beta1": 0.8,
    "adam_beta2": 0.9, "adam_epsilon": 1e-07, "max_grad_norm": 2.5, "num_train_epochs": 1.5,
    "max_steps": 29, "train_batch_size": 31, "gradient_accumulation_steps": 2,
    "eval_batch_size": 33, "eval_steps": 37, "logging_steps": 41,
    "report_to": ["wandb", "trackio"], "report": True,
    "metric_for_best_model": "loss", "greater_is_better": True,
    "load_best_model_at_end": True, "early_stopping_patience": 4, "early_stopping_threshold": 0.125,
    "resume": False,
    "save_steps": 43, "save_total_limit": 3, "keep_period": 47, "max_skipped_steps": 0,
    "steps_per_execution": 3, "remat": "dots", "scan_layers": True, "attn_implementation": "pallas",
    "compilation_cache_dir": "programs", "distributed": True, "mesh": "data=4,fsdp=2",
}  # fmt: skip
SWEPT = ("seed", "adam_beta1", "lora_alpha")
GIVEN = {name: value for name, value in VALUES.items() if name not in SWEPT}
TOGETHER = VALUES | {name: DEFAULTS[name] for name in SWEPT}


def words_of(name, value):
    values = value if isinstance(value, list) else [value]
    return [f"--{name}", *map(str, values)]


def write_yaml(folder, text, name="settings.yaml"):
    path = folder / name
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
    assert parse_run(["--scan-layers"]).training.scan_layers


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
        (["--lerning-rate", "1"], "--lerning-rate: unknown; did you mean --learning-rate?"),
        (["--lerning_rate=1"], "--lerning-rate: unknown; did you mean --learning-rate?"),
        (["--learning", "1"], "--learning: unknown; did you mean --learning-rate"),  # no short form
        (["--lr", "1"], "--lr: unknown; did you mean --learning-rate?"),
        (["--per_device_train_batch_size", "8"], "did you mean --train-batch-size?"),
        (["--no-grwth"], "did you mean --no-growth?"),
        (["--xyzzy"], "--xyzzy: unknown; --help lists the flags"),
        (["-x"], "-x: unknown"),
        (["--seed", "x"], "--seed: 'x' must be a whole number"),
        (["--seed", "1.5"], "--seed: '1.5' must be a whole number"),
        (["--learning-rate", "fast"], "--learning-rate: 'fast' must be a finite number"),
        (["--method", "magic"], "invalid choice: 'magic'.*increlora"),
        (["--method", "incre-lora"], "did you mean increlora?"),
        (["--task", "sst-2"], "--task: invalid choice: 'sst-2' .*sst2.*did you mean sst2?"),
        (["--task", "MRPC"], "did you mean mrpc?"),
        (["--dtype", "int8"], "invalid choice: 'int8'.*bfloat16"),
        (["--growth", "maybe"], "--growth: 'maybe' must be true or false"),
        (["--no-growth=false"], "--no-growth: .*'false'; this flag takes no value"),
        (["--seed"], "--seed: expected one argument"),
        (["--data-dir", "--seed", "3"], "--data-dir: expected .*as --flag=-value"),
        (["--target-modules"], "--target-modules: expected at least one argument"),
        (["--seed", "-1"], "--seed -1 must be at least 0"),
        (["--learning-rate=-1e-3"], "--learning-rate -0.001 must be positive"),
        (["--top-h", "0"], "--top-h 0 must be at least 1"),
        (["--learning-rate", "inf"], "--learning-rate: 'inf' must be a finite number"),
        (["--learning-rate", "nan"], "--learning-rate: 'nan' must be a finite number"),
        (["--target-rank", "1" + "0" * 400], "--target-rank: .* must be a finite number"),
        (["--max-steps", "2147483647"], "--max-steps 2147483647 must be at most 2147483646"),
        (["--max-steps", "1" * 5000], "--max-steps: .* whole number of at most 18 digits"),
        (["stray"], "stray: unexpected; settings are given by flags"),
        (["@words.txt"], "@words.txt: unexpected"),
        (["--scan-layers", "stray"], "--scan-layers: 'stray' must be true or false"),
        (["--report-to", "tensorbord"], "--report-to: invalid choice.*did you mean tensorboard?"),
        (["--early-stopping-patience", "0"], "--early-stopping-patience 0 must be at least 1"),
        (["--seeds", "1,1"], "--seeds 1,1: a value is given twice"),
    ],
)
def test_wrong_flags_are_named(words, message):
    with pytest.raises(InputError, match=message):
        parse_run(words)


def test_help_names_every_flag():
    text = train_parser().format_help()
    for name in VALUES:
        assert f"--{name.replace('_', '-')}" in text
    flags = re.findall(r"^  (--\S+)", text, re.MULTILINE)
    assert len(flags) == len(set(flags)) == len(VALUES) + 4
    assert "_" not in "".join(flags)
    assert max(map(len, text.splitlines())) <= 80
    assert len(text.splitlines()) < 260
    assert text.isascii()
    assert "BOOL" not in text


def test_help_says_defaults_and_which_of_them_a_recipe_changes():
    text = " ".join(train_parser().format_help().split())
    assert "peak learning rate (default 0.001*)" in text
    assert "(default 32)" in text
    assert "on; --no-growth turns it off" in text


def test_words_come_from_the_command_line_unless_given(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train", "--seed", "5"])
    assert parse_run().training.seed == 5
    assert parse_run([]).training.seed == 42


def test_a_file_gives_any_setting_under_its_flags_name(tmp_path):
    path = write_yaml(tmp_path, yaml.safe_dump(GIVEN))
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


def test_null_in_a_file_undoes_an_earlier_file_but_no_flag(tmp_path):
    first = write_yaml(tmp_path, "seed: 7\nmax_steps: 3\n", "first.yaml")
    second = write_yaml(tmp_path, "max_steps: null\n", "second.yaml")
    flags = ["--config", str(first), "--config", str(second)]
    assert parse_run(flags) == parse_run(["--seed", "7"])
    assert parse_run([*flags, "--max-steps", "5"]).training.max_steps == 5
    assert parse_run(["--config", str(second), "--config", str(first)]).training.max_steps == 3


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
        (
            "lerning_rate: 1",
            "settings.yaml:1: unknown key 'lerning_rate'; did you mean learning_rate?",
        ),
        ("config: other.yaml", "settings.yaml:1: unknown key 'config'"),
        ("# a comment\n\nseed: 1.5", "settings.yaml:3: seed: '1.5' must be a whole number"),
        ("method: magic", "settings.yaml:1: method: invalid choice: 'magic'.*increlora"),
        ("seed: 3\ntop_h: 0", "settings.yaml:2: --top-h 0 must be at least 1"),
        ("task: sst", "settings.yaml:1: task: invalid choice: 'sst'.*; did you mean sst2?"),
        ("output_dir: ''", "settings.yaml:1: --output-dir '' is blank"),
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
    config = parse_run([word for name in GIVEN for word in words_of(name, GIVEN[name])])
    assert config.flat() == TOGETHER
    write_run(config, tmp_path / "config.yaml")
    assert read_run(tmp_path / "config.yaml") == config


def test_a_written_configuration_keeps_no_default_to_the_reader(tmp_path):
    write_run(RunConfig(), tmp_path / "config.yaml")
    written = yaml.safe_load((tmp_path / "config.yaml").read_text(encoding="utf-8"))
    assert list(written) == list(VALUES)


@pytest.mark.parametrize(
    "folder",
    [
        "007",
        "1e-3",
        "yes",
        "null",
        "./~",
        "tür",
        "数据",
        "#x",
        "a: b",
        " a b",
        "-x",
        "--seed",
        "\udcff",
    ],
)
def test_odd_names_survive_writing(tmp_path, folder):
    config = parse_run([f"--data-dir={folder}"])
    assert config.task.data_dir == folder
    write_run(config, tmp_path / "config.yaml")
    assert read_run(tmp_path / "config.yaml") == config


@pytest.mark.parametrize("name", ["data_dir", "model", "output_dir", "compilation_cache_dir"])
def test_a_home_folder_is_written_out_once_wherever_it_is_given(monkeypatch, tmp_path, name):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = write_yaml(tmp_path, f"{name}: ~/x\n")
    for words in ([f"--{name}=~/x"], ["--config", "~/settings.yaml"], ["--config", str(path)]):
        assert parse_run(words).flat()[name] == f"{tmp_path}/x"
    assert parse_run([f"--{name}", "~root/x"]).flat()[name] == os.path.expanduser("~root/x")
    flag = "--" + name.replace("_", "-")
    with pytest.raises(InputError, match=f"{flag} ~nobody-here/x: the home folder ~nobody-here is"):
        parse_run([flag, "~nobody-here/x"])


def test_a_settings_file_in_an_unknown_home_is_refused():
    with pytest.raises(InputError, match="--config: ~nobody-here/x: the home folder"):
        parse_run(["--config", "~nobody-here/x"])


TEXTS = [name for name in VALUES if isinstance(VALUES[name], str | list)]


@pytest.mark.parametrize("name", [*TEXTS, "config"])
@pytest.mark.parametrize("blank", ["", "  ", "\t"])
def test_blank_text_is_an_error_and_not_a_default(name, blank):
    flag = "--" + name.replace("_", "-")
    with pytest.raises(InputError, match=flag):
        parse_run([flag, blank])
    with pytest.raises(InputError, match=flag):
        parse_run([f"{flag}={blank}"])


def test_switches_take_a_value_or_none_and_both_have_an_opposite():
    words = ["--no-distributed", "--no-growth", "--packing", "true", "--resume", "false"]
    flat = parse_run([*words, "--remat=full", "--no_advance_learn", "--scan-layers=on"]).flat()
    assert {name: flat[name] for name in ("distributed", "growth", "packing", "resume")} == {
        "distributed": False, "growth": False, "packing": True, "resume": False,
    }  # fmt: skip
    assert flat["remat"] == "full"
    assert flat["scan_layers"]
    assert not flat["advance_learn"]
    assert parse_run(["--no-growth", "--growth"]).growth.growth


def test_of_a_flag_given_twice_the_last_counts_but_lists_and_files_add_up(tmp_path):
    assert parse_run(["--seed", "1", "--seed=2"]).training.seed == 2
    words = ["--target-modules", "query", "--target_modules", "key", "value"]
    assert parse_run(words).adapter.target_modules == ["query", "key", "value"]
    one = write_yaml(tmp_path, "seed: 5\ntop_h: 9\n")
    two = tmp_path / "two.yaml"
    two.write_text("seed: 6\n")
    flat = parse_run(["--config", str(one), "--config", str(two)]).flat()
    assert (flat["seed"], flat["top_h"]) == (6, 9)


@pytest.mark.parametrize("name", ["target_modules", "exclude_modules", "modules_to_save"])
def test_names_of_modules_may_stand_between_commas(tmp_path, name):
    names = ["query", "key", "attention.output"]
    for words in (["query,key,attention.output"], ["query, key", "attention.output"], names):
        assert parse_run([f"--{name}", *words]).flat()[name] == names
    path = write_yaml(tmp_path, f"{name}: query,key,attention.output\n")
    assert parse_run(["--config", str(path)]).flat()[name] == names
    for regex in (".{1,3}", r"encoder\.layer\.[0,1]\..*", "(query|key){1,2}", "all-linear"):
        assert parse_run([f"--{name}", regex]).flat()[name] == [regex]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--method lora --top-h 3 --beta1 .5 --lora-alpha 8 --target-rank 4", "top-h beta1"),
        ("--method head --lora-alpha 8 --modules-to-save pooler", "lora-alpha"),
        ("--method full --modules-to-save pooler --learning-rate 1", "modules-to-save"),
        (
            "--no-growth --init-warmup 7 --target-rank 3 --importance random",
            "init-warmup importance",
        ),
        ("--max-steps 7 --num-train-epochs 2", "num-train-epochs"),
        ("--top-h 3 --num-train-epochs 2 --initial-rank 2", ""),
    ],
)
def test_flags_without_effect_are_named(words, said):
    notes = parse_command(words.split()).notes
    assert [note.split()[0] for note in notes] == [f"--{name}" for name in said.split()]
    assert all(" has no effect with --" in note for note in notes)


@pytest.mark.parametrize(
    "words",
    ["--method lora --sweep beta1=.1,.2", "--no-growth --sweep adam_beta1=.1,.2 beta2=.1,.2"],
)
def test_a_sweep_without_effect_is_refused(words):
    with pytest.raises(
        InputError, match=r"--sweep beta.=.*: beta. has no effect with --.*the same"
    ):
        parse_run(words.split())
