"""What the README prints must run."""

import re
from pathlib import Path

import numpy as np

README = Path(__file__).parent.parent / "README.md"


def test_the_example_in_your_own_code_learns_and_spends_its_budget(capsys):
    alone, together = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
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


def test_every_file_that_the_readme_shows_is_there():
    for path in re.findall(r"\]\((?!http)([^)]+)\)", README.read_text()):
        assert (README.parent / path).is_file()
