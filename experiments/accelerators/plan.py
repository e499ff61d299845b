"""Programs of the study, by name: their topology, and the settings of each."""

from pathlib import Path
from typing import Any

from programs import KINDS, Program

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "programs.jsonl"

ONE, POD, GPU = "v5e:1x1", "v5e:4x4", "h100:1"

FAMILIES = (
    "bert", "roberta", "deberta-v2", "gpt2", "llama", "mistral", "qwen2", "qwen3", "t5", "bart",
)  # fmt: skip

_LLAMA: dict[str, Any] = {
    "batch": 16,
    "length": 512,
    "remat": "full",
    "scan": True,
    "mesh": "fsdp=16",
}
_ON_ONE: dict[str, Any] = {
    "batch": 8,
    "length": 1024,
    "remat": "full",
    "scan": True,
    "quantize": "nf4",
}
_VARIANTS: dict[str, dict[str, Any]] = {
    "five seeds": {"seeds": 5},
    "scan": {"scan": True},
    "remat": {"remat": "full"},
}


def plan() -> dict[str, tuple[str, Program]]:
    """Return the topology and the program of every name."""
    found: dict[str, tuple[str, Program]] = {}
    for kind in KINDS:
        found[f"minilm {kind}"] = ONE, Program("minilm-l6", kind)
    for kind in KINDS:
        found[f"llama-7b {kind}"] = POD, Program("llama-7b", kind, **_LLAMA)
    for quantize in ("int8", "nf4"):
        more = _LLAMA | {"quantize": quantize}
        found[f"llama-7b {quantize}"] = POD, Program("llama-7b", "scored", **more)
    for family in FAMILIES:
        for kind in ("scored", "evaluation"):
            found[f"{family} {kind}"] = ONE, Program(family, kind, batch=8)
    for name, more in _VARIANTS.items():
        found[f"bert {name}"] = ONE, Program("bert", "scored", batch=8, **more)
    for quantize in ("int8", "nf4"):
        found[f"llama {quantize}"] = ONE, Program("llama", "scored", batch=8, quantize=quantize)
    for kind in KINDS:
        two = Program("deberta-v3-base", kind, layers=2)
        found[f"deberta-v3-base, two layers, {kind}"] = ONE, two
    for kind in ("unscored", "scored"):
        found[f"H100, minilm {kind}"] = GPU, Program("minilm-l6", kind)
        for attention in ("xla", "pallas"):
            name = f"H100, deberta-v3-base, two layers, {attention}, {kind}"
            two = Program("deberta-v3-base", kind, layers=2, attention=attention)
            found[name] = GPU, two
        found[f"H100, llama-7b nf4 {kind}"] = GPU, Program("llama-7b", kind, **_ON_ONE)
    return found
