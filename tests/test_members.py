"""What runs `--seeds` and `--sweep` ask for, and what they may not."""

from dataclasses import replace

import pytest

from increlora_jax.config import VARIABLE, RunConfig
from increlora_jax.errors import InputError
from increlora_jax.members import members_of
from increlora_jax.parsing import parse_run

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
    flat = RunConfig().flat()
    assert all(type(flat[name]) in (int, float) for name in VARIABLE)


def test_the_default_folder_is_that_of_all_of_them():
    config = parse_run(["--task", "mrpc", "--seeds", "1,2", "--sweep", "beta1=.5,.6"])
    assert config.output_dir == "runs/mrpc-increlora-1,2-beta1=.5,.6"
    assert members_of(config)[0].config.output_dir == f"{config.output_dir}/seed-1,beta1-.5"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", "1,2", "--seed", "3"], "--seed 3 and --seeds 1,2: give only one"),
        (["--seeds", "1,2,1"], "--seeds 1,2,1: one of them stands there twice"),
        (["--seeds", "1,x"], "--seeds 1,x: .*'x'.*numbers with commas between"),
        (["--seeds", "1,"], "--seeds 1,: .*''"),
        (["--seeds", "7"], "one run only; give --seed 7 instead"),
        (["--seeds", "1,-2"], "--seed -2 must be at least 0"),
        (["--sweep", "beta1=0.5"], "one run only; give --beta1 0.5 instead"),
        (["--sweep", "top_h=2,3"], "'top_h' cannot differ.*learning_rate, .*, and the seed by"),
        (["--sweep", "seed=2,3"], "'seed' cannot differ.*the seed by --seeds"),
        (["--sweep", "learning_rate"], "--sweep learning_rate: .*numbers with commas"),
        (["--sweep", "learning_rate=1e-3,0.001"], "stands there twice"),
        (["--sweep", "learning_rate=1e-3,-1"], "--learning-rate -1.0 must be positive"),
        (["--sweep", "learning_rate=1e-3,inf"], "--learning-rate inf must be finite"),
        (["--sweep", "warmup_steps=1.5,2"], "--sweep warmup_steps=1.5,2: .*1.5"),
        (["--sweep", "beta1=.1,.2", "beta1=.3,.4"], "beta1 is given twice"),
    ],
)
def test_what_cannot_be_is_refused_with_its_words(words, message):
    with pytest.raises(InputError, match=message):
        members(*words)


def test_a_configuration_made_in_code_is_checked_too():
    config = RunConfig()
    config = replace(config, training=replace(config.training, seeds="a,b"))
    with pytest.raises(InputError, match="--seeds a,b"):
        members_of(config)
