"""Cost of IncreLoRA's parts beside LoRA's step, from programs that are only compiled.

FLOPs and memory traffic are those that XLA counts in a step compiled for this machine's processor.
No weight is drawn and no step is run, so that shapes of 7B parameters fit on a small machine. All
layers are alike: two depths are compiled, and every depth follows from them on a line.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from plan import HERE
from transformers import AutoConfig, PretrainedConfig

import increlora_jax as il
from increlora_jax.models.registry import find_spec
from increlora_jax.tasks.classification import sequence_loss

Build = Callable[[Any, dict[str, Any]], tuple[Any, Any]]

RESULTS = HERE / "results" / "overhead.jsonl"
STEPS = 1000
SIZE_OF_HEAD = 64
VOCABULARY = 1000
"""Embeddings cost no product; a small table leaves their memory out of the ratios."""


@dataclass(frozen=True)
class Shape:
    """Shape of a LLaMA decoder, its batch and its buffers.

    Attributes:
        width: Hidden size; the inner size is 2.6875 times as large, as in LLaMA-7B.
        depth: Layers.
        length: Tokens of an example.
        batch: Examples of a step.
        slots: Slots of a buffer.
        rank: Target rank of IncreLoRA, and LoRA's rank.
    """

    width: int = 1024
    depth: int = 8
    length: int = 128
    batch: int = 16
    slots: int = 16
    rank: int = 8

    @property
    def config(self) -> PretrainedConfig:
        """Configuration of the model."""
        heads = self.width // SIZE_OF_HEAD
        return AutoConfig.for_model(
            "llama", hidden_size=self.width, intermediate_size=self.width * 43 // 16,
            num_hidden_layers=self.depth, num_attention_heads=heads, num_key_value_heads=heads,
            vocab_size=VOCABULARY, pad_token_id=0,
        )  # fmt: skip


def shapes() -> Iterator[tuple[str, Shape]]:
    """Yield every axis and a shape on it; each axis changes one number of the first shape."""
    usual = Shape()
    axes: Mapping[str, tuple[int, ...]] = {
        "width": (256, 1024, 4096),
        "depth": (2, 8, 32),
        "length": (32, 128, 512),
        "slots": (8, 16, 32, 64),
    }
    for axis, values in axes.items():
        yield from ((axis, replace(usual, **{axis: value})) for value in values)
    yield "7B", Shape(width=4096, depth=32, length=512, slots=32)


def measure(shape: Shape) -> dict[str, dict[str, float]]:
    """Return the counts of every kind of step of one shape, by the kind's name."""
    wide = replace(shape, rank=shape.slots)
    return {
        "lora": _cost(shape, partial(_build, "lora")),
        # LoRA with all slots: the cost of slots that are masked.
        "padded": _cost(wide, partial(_build, "lora")),
        "no orthogonality": _cost(shape, partial(_build, "increlora", is_orthogonal=False)),
        "unscored": _cost(shape, partial(_build, "increlora")),
        "scored": _cost(shape, partial(_build, "increlora"), is_scored=True),
    }


def _cost(shape: Shape, build: Build, *, is_scored: bool = False) -> dict[str, float]:
    """Return the counts at the shape's depth, on the line through depths 1 and 2."""
    one, two = (_compile(replace(shape, depth=d), build, is_scored=is_scored) for d in (1, 2))
    return {name: one[name] + (shape.depth - 1) * (two[name] - one[name]) for name in one}


def _compile(shape: Shape, build: Build, *, is_scored: bool) -> dict[str, float]:
    held: dict[str, Any] = {}
    state, base = jax.eval_shape(partial(build, shape, held))
    ids = jax.ShapeDtypeStruct((shape.batch, shape.length), jnp.int32)
    batch = {
        **dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), ids),
        "labels": jax.ShapeDtypeStruct((shape.batch,), jnp.int32),
        "weight": jax.ShapeDtypeStruct((shape.batch,), jnp.float32),
    }
    step = jax.jit(partial(held["trainer"].step, is_scored=is_scored), donate_argnums=0)
    costs = step.lower(state, base, batch).compile().cost_analysis()
    return {
        "flops": costs["flops"],
        "bytes": costs["bytes accessed"],
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(base)),
    }


def _build(
    method: str, shape: Shape, held: dict[str, Any], *, is_orthogonal: bool = True
) -> tuple[Any, Any]:
    """Build a run and put its trainer, which has no arrays, into `held`."""
    spec = find_spec(shape.config)
    dtypes: Any = {"dtype": jnp.float32, "param_dtype": jnp.float32}
    build = spec.heads["sequence_classification"]
    model = build(shape.config, num_labels=2, rngs=nnx.Rngs(0), **dtypes)
    make = il.lora if method == "lora" else partial(il.increlora, steps=STEPS)
    own = make(
        model,
        targets=spec.target_modules,
        adapter=il.AdapterConfig(),
        growth=il.GrowthConfig(target_rank=shape.rank, max_rank=str(shape.slots)),
        is_trained=il.parameter_selector(model, spec.modules_to_save["sequence_classification"]),
    )
    if not is_orthogonal:
        own = own._replace(regularize=lambda adapters, slots: jnp.zeros(()))
    loss = partial(sequence_loss, is_regression=False)
    held["trainer"], state, base = il.prepare(
        model, own, il.TrainingConfig(), total_steps=STEPS, loss=loss, is_called_once=True
    )
    return state, base


def main() -> None:
    """Measure the shapes that have no line yet, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", help="axes to measure now")
    options = parser.parse_args()
    RESULTS.parent.mkdir(exist_ok=True)
    lines = [json.loads(line) for line in RESULTS.open()] if RESULTS.exists() else []
    for axis, shape in shapes():
        key = {"axis": axis, **asdict(shape)}
        if any(line | key == line for line in lines) or axis not in (options.only or [axis]):
            continue
        line = {**key, **measure(shape)}
        lines.append(line)
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    sys.stdout.write(table(lines))


def table(lines: list[dict[str, Any]]) -> str:
    """Return the ratios to LoRA of every shape, FLOPs / bytes accessed."""
    parts = ("padded", "no orthogonality", "unscored", "scored")
    head = "| width × depth, tokens, slots | parameters | " + " | ".join(parts) + " |"
    rows = [head, "|---|---|" + "---|" * len(parts)]
    for line in lines:
        lora = line["lora"]
        ratios = [
            f"{line[part]['flops'] / lora['flops']:.2f} / {line[part]['bytes'] / lora['bytes']:.2f}"
            for part in parts
        ]
        place = (
            f"{line['width']} × {line['depth']}, {line['batch']} × {line['length']}, "
            f"{line['slots']}"
        )
        rows.append(f"| {place} | {lora['parameters'] / 1e6:,.1f}M | " + " | ".join(ratios) + " |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    main()
