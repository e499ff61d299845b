"""What runs `--seeds` and `--sweep` ask for, and what they may not."""

from dataclasses import replace

import pytest

from increlora_jax.config import VARIABLE, RunConfig, TrainingConfig
from increlora_jax.errors import InputError
from increlora_jax.run.command_line import parse_run, read_run, write_run
from increlora_jax.run.sweep import members_of

BASE = ["--task", "mrpc", "--output-dir", "out"]


def members(*words):
    return members_of(parse_run([*BASE, *words]))


def test_without_either_a_run_is_its_own_only_member():
    config = parse_run(BASE)
    assert members_of(config) == (("", config, "", {}),)


def test_every_seed_is_the_run_it_would_be_alone():
    assert [member.name for member in members("--seeds", "41, 43,42")] == [
        "seed-41",
        "seed-43",
        "seed-42",
    ]
    member = members("--seeds", "41,43")[1]
    assert member.config == parse_run([*BASE, "--seed", "43", "--output-dir", "out/seed-43"])
    assert (member.variant, member.settings) == ("", {})


def test_a_sweep_sets_each_value_in_its_group():
    found = members("--sweep", "learning-rate=5e-4,1e-3", "lora_alpha=8,16")
    assert [member.name for member in found] == [
        "learning_rate-5e-4,lora_alpha-8",
        "learning_rate-5e-4,lora_alpha-16",
        "learning_rate-1e-3,lora_alpha-8",
        "learning_rate-1e-3,lora_alpha-16",
    ]
    alone = ["--learning-rate", "1e-3", "--lora-alpha", "8", "--output-dir", f"out/{found[2].name}"]
    assert found[2].config == parse_run([*BASE, *alone])
    assert found[2].settings == {"learning_rate": 1e-3, "lora_alpha": 8.0}
    assert found[2].variant == found[2].name


def test_seeds_and_sweeps_make_every_pair_and_share_variants():
    found = members("--seeds", "1,2", "--sweep", "warmup_steps=5,6")
    assert [member.name for member in found] == [
        "seed-1,warmup_steps-5",
        "seed-1,warmup_steps-6",
        "seed-2,warmup_steps-5",
        "seed-2,warmup_steps-6",
    ]
    assert [member.variant for member in found] == ["warmup_steps-5", "warmup_steps-6"] * 2
    assert found[3].settings == {"warmup_steps": 6}


def test_what_can_vary_is_a_number_of_the_configuration():
    flat = RunConfig().flat() | {"warmup_steps": 100}  # unless told, chosen by the run's length
    assert all(type(flat[name]) in (int, float) for name in VARIABLE)


def test_the_default_folder_is_that_of_all_of_them():
    config = parse_run(["--task", "mrpc", "--seeds", "1,2", "--sweep", "beta1=.5,.6"])
    assert config.output_dir == "runs/mrpc-increlora-1,2-beta1=.5,.6"
    assert members_of(config)[0].config.output_dir == f"{config.output_dir}/seed-1,beta1-.5"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", "1,2", "--seed", "3"], "--seed 3 and --seeds 1,2: give only one"),
        (["--seeds", "1,2", "--seed", "42"], "--seed 42 and --seeds 1,2: give only one"),
        (
            ["--lora-alpha", "16", "--sweep", "lora_alpha=8,16"],
            "--lora-alpha 16.0 and --sweep lora",
        ),
        (["--sweep", "lr=1,2", "--sweep", "beta1=.1,.2"], "--sweep lr=1,2: 'lr' cannot differ"),
        (["--seeds", "1,2,1"], "--seeds 1,2,1: a value is given twice"),
        (["--seeds", "1,x"], "--seeds 1,x: .*'x'.*numbers with commas between"),
        (["--seeds", "1,"], "--seeds 1,: .*''"),
        (["--seeds", "7"], "one run only. Give --seed 7 instead"),
        (["--seeds", "1,-2"], "--seed -2 must be at least 0"),
        (["--sweep", "beta1=0.5"], "one run only. Give --beta1 0.5 instead"),
        (["--sweep", "top_h=2,3"], "'top_h' cannot differ.*learning_rate, .*, and the seed by"),
        (["--sweep", "seed=2,3"], "'seed' cannot differ.*the seed by --seeds"),
        (["--sweep", "learning_rate"], "--sweep learning_rate: .*numbers with commas"),
        (["--sweep", "learning_rate=1e-3,0.001"], "a value is given twice"),
        (["--sweep", "learning_rate=1e-3,-1"], "--learning-rate -1.0 must be positive"),
        (["--sweep", "learning_rate=1e-3,inf"], "'inf' must be a finite number"),
        (["--sweep", "warmup_steps=1.5,2"], "--sweep warmup_steps=1.5,2: .*1.5"),
        (["--sweep", "beta1=.1,.2", "beta1=.3,.4"], "beta1 is given twice"),
    ],
)
def test_what_cannot_be_is_refused_with_its_words(words, message):
    with pytest.raises(InputError, match=message):
        members(*words)


@pytest.mark.parametrize("name", VARIABLE)
def test_a_setting_is_given_once_and_a_sweep_of_it_is_never_ignored(tmp_path, name):
    default = str(RunConfig().flat()[name])
    sweep = ["--sweep", f"{name}=3,4" if name == "warmup_steps" else f"{name}=0.25,0.5"]
    message = f"{default} and --sweep {name}=.*: give only one"
    with pytest.raises(InputError, match=f"--{name.replace('_', '-')} {message}"):
        members(*sweep, f"--{name}", default)
    file = tmp_path / "a.yaml"
    file.write_text(f"# mine\n{name}: {default}\n")
    with pytest.raises(InputError, match=f"a.yaml:2: {name} {message}"):
        members(*sweep, "--config", str(file))
    file.write_text(f"{name}: {default}\nsweep: {sweep[1]}\n")
    with pytest.raises(InputError, match="give only one"):
        members("--config", str(file))


def test_all_sweeps_of_a_line_count():
    found = members("--sweep", "beta1=.1,.2", "--sweep", "beta2=.3,.4", "warmup_steps=1,2")
    assert len(found) == 8


def test_a_run_of_a_sweep_is_read_from_its_file_and_from_those_of_older_versions(tmp_path):
    config = parse_run([*BASE, "--seeds", "1,2", "--sweep", "learning_rate=1e-3,2e-3"])
    write_run(config, tmp_path / "config.yaml")
    assert read_run(tmp_path / "config.yaml") == config
    assert parse_run(["--config", str(tmp_path / "config.yaml")]) == config
    text = (tmp_path / "config.yaml").read_text()
    assert "\nseed:" not in text
    assert "\nlearning_rate:" not in text
    (tmp_path / "config.yaml").write_text(text + "seed: 42\nlearning_rate: 0.0008\n")
    assert read_run(tmp_path / "config.yaml") == config


def test_a_configuration_made_in_code_is_checked_too():
    config = RunConfig()
    config = replace(config, training=replace(config.training, seeds="a,b"))
    with pytest.raises(InputError, match="--seeds a,b"):
        members_of(config)
    config = RunConfig(training=TrainingConfig(learning_rate=0.5, sweep=["learning_rate=1,2"]))
    with pytest.raises(InputError, match=r"--learning-rate 0\.5 and --sweep learning_rate=1,2"):
        members_of(config)
