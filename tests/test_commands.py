"""The commands as a shell starts them: entry points, versions, and what needs no JAX."""

import subprocess
import sys
from configparser import ConfigParser
from importlib.metadata import EntryPoint, PackageNotFoundError
from pathlib import Path

import pytest

import increlora_jax
from increlora_jax.run.command_line import parse_command, parse_run
from increlora_jax.run.evaluate_flags import evaluate_parser
from increlora_jax.run.results import results_of_all
from tests.run.test_results import OUTCOME, plan_of, results  # noqa: F401  (a fixture)

SETUP = Path(__file__).parent.parent / "setup.cfg"


def python(*words, **env):
    done = subprocess.run(
        [sys.executable, *words], env=env, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


LIGHT = """
import sys
import increlora_jax.commands as commands
try:
    getattr(commands, sys.argv.pop(1))()
finally:
    heavy = {"jax", "flax", "transformers", "numpy", "optax"} & sys.modules.keys()
    assert not heavy, heavy
"""


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ("train --help", 0),
        ("train --version", 0),
        ("train --lerning-rate=1", 2),
        ("train --print-config", 0),
        ("evaluate --help", 0),
        ("evaluate --version", 0),
        ("evaluate", 2),
        ("report --help", 0),
        ("report --version", 0),
        ("report", 2),
        ("report --run x --output y --pgn z", 2),
    ],
)
def test_what_flags_alone_answer_needs_no_jax_and_no_letters_but_ascii(words, status):
    code, out, err = python("-c", LIGHT, *words.split(), PYTHONIOENCODING="ascii", LANG="C")
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


def test_a_command_without_words_says_how_to_begin():
    code, out, err = python("-m", "increlora_jax.train")
    assert (code, out) == (2, "")
    assert "--task demo" in err
    assert "--task text --data-dir DIR" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--adapter", "bets"], "--adapter: invalid choice: 'bets'.*; did you mean best?"),
        (["--data-dri", "x"], "--data-dri: unknown; did you mean --data-dir?"),
        (["--run", ""], "--run: '' is blank"),
        (["--data_dir", " "], "--data-dir: ' ' is blank"),
        (["--file="], "--file: '' is blank"),
        (["--label-column", ""], "--label-column: '' is blank"),
        (["--run", "~nobody-here/x"], "--run: ~nobody-here/x: the home folder"),
        (["x"], "x: unexpected"),
    ],
)
def test_evaluates_flags_are_spelt_and_checked_as_trains(words, message):
    with pytest.raises(increlora_jax.InputError, match=message):
        evaluate_parser().parse_flags(["--run", "x", *words])


def test_evaluate_needs_a_run_and_expands_homes(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(increlora_jax.InputError, match="required: --run"):
        evaluate_parser().parse_flags([])
    words = ["--run=~/a", "--data_dir=~/b", "--model", "~/c", "--file", "~/d"]
    found = evaluate_parser().parse_flags(words)
    assert found.run == tmp_path / "a"
    assert [found.data_dir, found.model, found.file] == [f"{tmp_path}/{name}" for name in "bcd"]


def test_the_installed_commands_are_there_and_the_version_has_one_home():
    setup = ConfigParser()
    setup.read(SETUP, encoding="utf-8")
    lines = setup["options.entry_points"]["console_scripts"].split("\n")
    pairs = dict(line.split(" = ") for line in lines if line)
    commands = ("train", "evaluate", "predict", "export", "report")
    assert list(pairs) == [f"increlora-{name}" for name in commands]
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
