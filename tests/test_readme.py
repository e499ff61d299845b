"""What the README prints must run."""

import re
from pathlib import Path

import numpy as np
import pytest

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
    *_, alone, together = blocks()
    names: dict = {}
    exec(compile(alone, str(README), "exec"), names)
    assert int(np.sum(names["info"]["rank"])) == names["method"].rank_budget
    assert float(names["info"]["loss"]) < 0.3  # the frozen model starts near ln 2 = 0.69
    assert capsys.readouterr().out
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
