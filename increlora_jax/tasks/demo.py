"""Task with bundled data: small, and usable without a network."""

from importlib import resources
from pathlib import Path

from increlora_jax.tasks.data.layout import Layout
from increlora_jax.tasks.labelled_files import load_folder
from increlora_jax.tasks.labelled_texts import TextData, TextTask

DEMO_TASK = TextTask("demo", ("sentence",), ("0", "1"), ("accuracy",))


def load_demo() -> TextData:
    """Load the bundled examples."""
    folder = Path(str(resources.files("increlora_jax").joinpath("bundled", "demo")))
    return load_folder(DEMO_TASK, folder, [Layout((*DEMO_TASK.columns, "label"))])
