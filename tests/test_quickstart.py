"""The quickstart notebook, executed in a Jupyter kernel from an empty folder."""

import json
import os
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent.parent / "experiments" / "quickstart.ipynb"


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The notebook with its outputs, and the folder that it ran in."""
    folder = tmp_path_factory.mktemp("quickstart")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        resources = {"metadata": {"path": str(folder)}}
        NotebookClient(notebook, timeout=900, resources=resources).execute()
    return notebook, folder


def words_of(cell):
    """All text that a cell has printed or shown."""
    outputs = cell.get("outputs", ())
    return "".join(one.get("text") or one["data"]["text/plain"] for one in outputs)


def test_it_trains_exports_and_grows(executed):
    _, folder = executed
    for run, total in (("quickstart", 48), ("grown", 144)):
        results = json.loads((folder / "runs" / run / "results.json").read_text())
        assert results["metrics"]["accuracy"] > 0.95
        assert results["total_rank"] == total
    assert (folder / "out" / "peft" / "adapter_model.safetensors").is_file()
    assert "<svg" in (folder / "out" / "report.html").read_text()


def test_every_cell_prints_and_none_warns_or_fails(executed):
    notebook, _ = executed
    cells = [cell for cell in notebook.cells if cell["cell_type"] == "code"]
    for cell in cells:
        said = words_of(cell)
        assert said.strip(), cell["source"]
        assert "Traceback" not in said
        assert "error: " not in said
        assert "Warning" not in said.replace("TqdmWarning", "")  # of Jupyter without its widgets
    assert "Classified(label='1'" in words_of(cells[-1])


def test_it_is_committed_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    assert not any(cell.get("execution_count") for cell in notebook.cells)
