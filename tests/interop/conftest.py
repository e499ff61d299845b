"""Drawn runs of every family, each made once."""

import pytest

from tests.families import make_folder
from tests.interop.scrambled import make_run


@pytest.fixture(scope="session")
def drawn_run(tmp_path_factory, data_dir):
    """A function from a family, and more words of the command, to the folder of a drawn run."""
    made = {}

    def make(family, *more):
        if (family, more) not in made:
            folder = tmp_path_factory.mktemp(family)
            model = make_folder(family, folder / "model")
            words = ["--task", "rte", "--data-dir", str(data_dir / "glue" / "RTE")]
            words += ["--model", str(model), "--max-steps", "30", "--target-rank", "3"]
            words += ["--max-seq-length", "24", "--lora-alpha", "7", *more]
            made[family, more] = make_run(folder / "run", words)
        return made[family, more]

    return make
