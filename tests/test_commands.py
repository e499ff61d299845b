"""The commands as a shell starts them: entry points, versions, and what needs no JAX."""

import subprocess
import sys
from configparser import ConfigParser
from importlib.metadata import EntryPoint, PackageNotFoundError
from pathlib import Path

import pytest

import increlora_jax
from increlora_jax import commands
from increlora_jax.parsing import parse_command, parse_run
from increlora_jax.results import results_of_all
from tests.test_results import OUTCOME, plan_of, results  # noqa: F401  (a fixture)

SETUP = Path(__file__).parent.parent / "setup.cfg"


def python(*words, **env):
    done = subprocess.run(
        [sys.executable, *words], env=env, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


def leave(capsys, words, monkeypatch, command=commands.train):
    monkeypatch.setattr(sys, "argv", ["command", *words])
    monkeypatch.setattr(commands, "begin", lambda: None)  # signals stay the tests' own
    with pytest.raises(SystemExit) as end:
        command()
    return end.value.code or 0, *capsys.readouterr()


LIGHT = """
import sys
from increlora_jax.commands import train
try:
    train()
finally:
    heavy = {"jax", "flax", "transformers", "numpy", "optax"} & sys.modules.keys()
    assert not heavy, heavy
"""


@pytest.mark.parametrize(
    ("words", "status"),
    [(["--help"], 0), (["--version"], 0), (["--lerning-rate=1"], 2), (["--print-config"], 0)],
)
def test_what_flags_alone_answer_needs_no_jax_and_no_letters_but_ascii(words, status):
    code, out, err = python("-c", LIGHT, *words, PYTHONIOENCODING="ascii", LANG="C")
    assert "AssertionError" not in err
    assert "Traceback" not in err
    assert code == status
    assert (out + err).isascii()


def test_a_module_is_a_command_too():
    assert python("-m", "increlora_jax.train", "--version")[:2] == (0, "increlora_jax 0.1.0\n")
    code, out, _ = python("-m", "increlora_jax")
    assert code == 0
    assert "increlora_jax.train --task demo" in out
    assert python("-m", "increlora_jax", "train")[0] == 2


def test_a_command_without_words_says_how_to_begin(capsys, monkeypatch):
    code, out, err = leave(capsys, [], monkeypatch)
    assert (code, out) == (2, "")
    assert "--task demo" in err
    assert "--task text --data-dir DIR" in err


def test_the_installed_commands_are_there_and_the_version_has_one_home():
    setup = ConfigParser()
    setup.read(SETUP, encoding="utf-8")
    lines = setup["options.entry_points"]["console_scripts"].split("\n")
    pairs = dict(line.split(" = ") for line in lines if line)
    assert list(pairs) == ["increlora-train", "increlora-evaluate"]
    for name, place in pairs.items():
        assert callable(EntryPoint(name, place, "console_scripts").load())
    assert setup["metadata"]["version"] == "attr: increlora_jax.__version__"
    assert increlora_jax.__version__ == "0.1.0"


def test_a_run_from_a_checkout_that_nobody_installed_still_has_versions(plan_of, monkeypatch):  # noqa: F811
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.distribution", missing)
    plan = plan_of("--seeds", "1,2")
    versions = results_of_all(plan, results(0.5, 0.6), [OUTCOME] * 2)["versions"]
    assert versions["increlora_jax"] == increlora_jax.__version__
    assert versions["jax"] == sys.modules["jax"].__version__


@pytest.mark.parametrize(
    "words",
    [
        ["--task", "mnli", "--no-growth", "--data-dir", "tür"],
        ["--task", "sst2", "--seeds", "1,2", "--sweep", "learning_rate=1e-3,2e-3", "beta1=.1,.2"],
        ["--task=text", "--data-dir=~/x", "--target-modules", "query,key", "--model", "a: b #c"],
    ],
)
def test_a_printed_configuration_is_the_same_run(tmp_path, capsys, words):
    with pytest.raises(SystemExit) as end:
        parse_command([*words, "--print-config"])
    assert not end.value.code
    printed = capsys.readouterr().out
    (tmp_path / "printed.yaml").write_text(printed, encoding="utf-8")
    again = ["--config", str(tmp_path / "printed.yaml")]
    assert parse_run(again) == parse_run(words)
    with pytest.raises(SystemExit):
        parse_command([*again, "--print-config"])
    assert capsys.readouterr().out == printed


def test_wrong_settings_are_not_printed(capsys):
    with pytest.raises(increlora_jax.InputError, match="--top-h 0"):
        parse_command(["--top-h", "0", "--print-config"])
    assert capsys.readouterr().out == ""
