"""What the README prints must run."""

import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import yaml

import increlora_jax
from increlora_jax.config import GROUPS
from increlora_jax.run.command_line import train_parser
from increlora_jax.run.export_flags import export_parser
from increlora_jax.run.predict_flags import prediction_parser

README = Path(__file__).parent.parent / "README.md"
PAGES = [README, *sorted((README.parent / "experiments").rglob("*.md"))]


def blocks():
    return re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_the_examples_of_answers_answer(run_once, tmp_path, monkeypatch):
    for name, seed in (("sst2", "7"), ("books", "8"), ("music", "9")):
        (tmp_path / "runs").mkdir(exist_ok=True)
        (tmp_path / "runs" / name).symlink_to(run_once("--seed", seed))
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in blocks()[:2]:
        exec(compile(block, str(README), "exec"), names)
    assert names["predictor"].names == ("films", "books", "music")


def test_the_example_in_your_own_code_learns_and_spends_its_budget(capsys):
    *_, alone, inside, together = blocks()
    names: dict = {}
    exec(compile(alone, str(README), "exec"), names)
    assert int(np.sum(names["info"]["rank"])) == names["method"].rank_budget
    assert float(names["info"]["loss"]) < 0.3  # the frozen model starts near ln 2 = 0.69
    assert capsys.readouterr().out
    hosted = dict(names)
    exec(compile(inside, str(README), "exec"), hosted)
    assert float(hosted["value"]) < 0.3
    assert sum(hosted["il"].ranks_of(hosted["optimizer"]).values()) == 4
    before = float(names["info"]["loss"])
    exec(compile(together, str(README), "exec"), names)
    np.testing.assert_allclose(names["info"]["loss"], before, atol=0.2)  # a few steps of each
    assert names["states"].step.tolist() == [5, 5]
    slow, fast = names["info"]["learning_rate"].tolist()
    assert 0 < slow < fast


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(README.parent)))
def test_every_file_that_a_page_shows_is_there(page):
    links = re.findall(r"\]\((?!http|#)([^)#]+)\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).is_file()] == []


MIGRATION = README.parent / "experiments" / "migration" / "README.md"
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9_-]*")


def cells_of(page):
    """The cells of every row below the head of a table."""
    rows = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]
    return [row for row in cells if row[1] not in ("here", "---")]


def test_every_flag_of_the_migration_table_is_one_of_ours():
    commands = (train_parser(), export_parser(), prediction_parser())
    known = {option for parser in commands for option in parser._option_string_actions}
    for there, here, note in cells_of(MIGRATION):
        same = there if here.startswith("the same") and "--" in there else ""
        for flag in FLAG.findall(f"{here} {note} {same}"):
            assert flag.replace("_", "-") in known, (there, flag)


def test_every_setting_that_is_named_alike_is_one_of_ours():
    settings = {field.name for group in GROUPS for field in fields(group)}
    for there, here, _ in cells_of(MIGRATION):
        if here.startswith("the same"):
            assert set(re.findall(r"`(?:--)?([a-z]\w+)`", there)) <= settings, there


def test_every_argument_of_peft_in_the_migration_table_is_one_of_theirs():
    peft = pytest.importorskip("peft")
    theirs = {
        field.name for kind in (peft.LoraConfig, peft.AdaLoraConfig) for field in fields(kind)
    }
    of_methods = {"prepare_model_for_kbit_training", "merge_and_unload", "save_pretrained",
                  "set_adapter", "update_and_allocate", "from_pretrained"}  # fmt: skip
    text = MIGRATION.read_text(encoding="utf-8").split("## Hugging Face")[0]
    for line in filter(lambda line: line.startswith("| `"), text.splitlines()):
        for name in re.findall(
            r"`(?:PeftModel\.)?([a-z_0-9]+)", line.split(" | ")[0], re.IGNORECASE
        ):
            assert name in theirs | of_methods, name


def test_the_citation_has_the_version_and_the_paper():
    citation = yaml.safe_load((README.parent / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == increlora_jax.__version__
    assert citation["references"][0]["url"].endswith("2308.12043")
