"""Model cards of exports."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from huggingface_hub import ModelCardData


class Facts(NamedTuple):
    """Facts for a card.

    Attributes:
        name: The name of the export's folder.
        base_model: The base model's name; of a local path, the last part.
        task: The task's name.
        labels: Its labels, if they have names.
        metrics: The metrics of the adapter on dev; empty if they are not known.
        ranks: The rank of each adapted module.
        form: `peft`, `merged` or `native`.
        command: The command that has exported it.
        proof: Sentences on the comparison with the run.
        versions: The versions of the libraries, by name.
    """

    name: str
    base_model: str
    task: str
    labels: Sequence[str] | None
    metrics: Mapping[str, float]
    ranks: Mapping[str, int]
    form: str
    command: str
    proof: Sequence[str]
    versions: Mapping[str, str]


_USES = {
    "peft": "model = PeftModel.from_pretrained(base_model, FOLDER)",
    "merged": "model = AutoModelForSequenceClassification.from_pretrained(FOLDER)",
    "native": 'predictor = increlora_jax.load("FOLDER", model=BASE_MODEL)',
}


def write_card(facts: Facts) -> str:
    """Return the text of a README.md with the metadata that the hub reads."""
    library = {"peft": "peft", "merged": "transformers"}.get(facts.form, "increlora_jax")
    data = ModelCardData(
        base_model=facts.base_model,
        library_name=library,
        tags=["increlora", "lora", facts.task],
        metrics=list(facts.metrics) or None,
        pipeline_tag="question-answering" if facts.task.startswith("squad") else
        "text-classification",
    )  # fmt: skip
    total = sum(facts.ranks.values())
    lines = [
        "---",
        data.to_yaml(),
        "---",
        "",
        f"# {facts.name}",
        "",
        f"{facts.base_model}, fine-tuned for `{facts.task}` with increlora_jax "
        f"(IncreLoRA, arXiv 2308.12043), in the form `{facts.form}`.",
        "",
        "```python",
        _USES[facts.form],
        "```",
        "",
        *_list("Labels", facts.labels or ()),
        *_list("Metrics on dev", [f"{name}: {value:.4f}" for name, value in facts.metrics.items()]),
        *_list(f"Ranks: {total} in {len(facts.ranks)} modules",
               [f"{name}: {rank}" for name, rank in facts.ranks.items()]),
        *_list("Exported by", [f"`{facts.command}`", *facts.proof]),
        *_list("Versions", [f"{name} {version}" for name, version in facts.versions.items()]),
    ]  # fmt: skip
    return "\n".join(lines)


def _list(title: str, entries: Sequence[Any]) -> list[str]:
    return [f"## {title}", "", *(f"- {entry}" for entry in entries), ""] if entries else []
