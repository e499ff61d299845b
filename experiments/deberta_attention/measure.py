"""Time DeBERTa-v3-base's attention with skewed scores against picked ones.

`python experiments/deberta_attention/measure.py`; it takes whatever device JAX finds.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from transformers import DebertaV2Config

from increlora_jax.models.deberta_encoder import DebertaEncoder
from increlora_jax.models.layers import LayerFactory
from increlora_jax.models.relative_positions import RelativePositions, find_table_rows

V3_BASE = {
    "hidden_size": 768,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "relative_attention": True,
    "num_hidden_layers": 1,
    "vocab_size": 8,
}


class PickedPositions(RelativePositions):
    """The usual form: every token times every row, and of that the entry of each pair."""

    def score_content_to_position(self, query, projected, dtype):
        """Pick along the rows at i − j."""
        return self._pick(query, projected, dtype, sign=1)

    def score_position_to_content(self, key, projected, dtype):
        """The same with the keys first, transposed."""
        return jnp.swapaxes(self._pick(key, projected, dtype, sign=-1), -1, -2)

    def _pick(self, tokens, projected, dtype, *, sign):
        length = tokens.shape[1]
        rows = projected.reshape(-1, *tokens.shape[2:])
        scores = jnp.einsum("bthd,rhd->bhtr", tokens, rows, preferred_element_type=dtype)
        distance = sign * (np.arange(length)[:, None] - np.arange(length))
        index = jnp.broadcast_to(
            self.choice[distance + length], (*scores.shape[:2], length, length)
        )
        return jnp.take_along_axis(scores, index, axis=-1)


FORMS = {"skewed": RelativePositions, "picked": PickedPositions}


def build(part: str, form: str, length: int, dtype: jnp.dtype) -> tuple[Callable, nnx.State]:
    """The forward pass of a self-attention or a whole layer as a function of (weights, hidden)."""
    config = DebertaV2Config(**V3_BASE)
    encoder = DebertaEncoder(config, LayerFactory(0.02, dtype, dtype, nnx.Rngs(0)))
    encoder.eval()
    layer = encoder.layer[0]
    module = layer if part == "layer" else layer.attention.self
    choice = find_table_rows(length, config.position_buckets, config.max_position_embeddings)
    first, last = choice[0], choice[-1]
    rows = nnx.Param(encoder.rel_embeddings.embedding[first : last + 1])
    graph, weights, streams = nnx.split((module, rows), nnx.Param, ...)

    def forward(weights: nnx.State, hidden: jax.Array) -> jax.Array:
        module, rows = nnx.merge(graph, weights, streams)
        positions = FORMS[form](rows[...], choice - first)
        return module(hidden, jnp.ones(hidden.shape[:2], bool), positions)

    return forward, weights


def with_backward(forward: Callable) -> Callable:
    """Its gradient by the weights, the positions and the input."""
    return jax.grad(lambda *x: jnp.square(forward(*x).astype(jnp.float32)).sum(), argnums=(0, 1))


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def compare(part: str, length: int, options: argparse.Namespace) -> list[list[str]]:
    """Rows of the table: both directions of one part at one length."""
    dtype, batch = jnp.dtype(options.dtype), options.tokens // length
    hidden = jax.random.normal(jax.random.key(1), (batch, length, 768), dtype)
    built = {form: build(part, form, length, dtype) for form in FORMS}
    rows = []
    for direction, wrap in {"forward": lambda f: f, "forward + backward": with_backward}.items():
        calls = {form: (jax.jit(wrap(f)), weights, hidden) for form, (f, weights) in built.items()}
        _check_equal(*(run(*arguments) for run, *arguments in calls.values()))
        seconds = _measure(calls, options.repeats, CLOCKS[options.clock])
        ratios = [p / s for s, p in zip(seconds["skewed"], seconds["picked"], strict=True)]
        times = [f"{1e3 * statistics.median(seconds[form]):.1f}" for form in FORMS]
        spread = statistics.quantiles(ratios, n=4)
        middle = f"{statistics.median(ratios):.2f} ({spread[0]:.2f} to {spread[2]:.2f})"
        rows.append([part, str(length), str(batch), direction, *times, middle])
    return rows


def _measure(
    calls: dict[str, tuple], repeats: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Seconds of each repeat; the forms take turns, so that both meet the machine's bad times."""
    seconds: dict[str, list[float]] = {form: [] for form in calls}
    for repeat in range(repeats):
        for form in list(calls)[:: 1 if repeat % 2 else -1]:
            run, *arguments = calls[form]
            start = clock()
            jax.block_until_ready(run(*arguments))
            seconds[form].append(clock() - start)
    return seconds


def _check_equal(skewed: Any, picked: Any) -> None:
    pairs = list(zip(jax.tree.leaves(skewed), jax.tree.leaves(picked), strict=True))
    largest = max(float(jnp.abs(leaf).max()) for _, leaf in pairs)
    for one, other in pairs:
        # The forms add up in another order; 64 roundings of the largest entry are plenty.
        tolerance = 64 * float(jnp.finfo(one.dtype).eps) * largest
        if not jnp.allclose(one, other, rtol=0, atol=tolerance):
            raise ValueError("the two forms do not compute the same")


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--tokens", type=int, default=1024, help="tokens of a batch")
    parser.add_argument(
        "--clock",
        default="wall",
        choices=CLOCKS,
        help="cpu: of all cores, where others work, too",
    )
    options = parser.parse_args()
    out = sys.stdout
    device = jax.devices()[0].device_kind
    out.write(f"{device}, {options.dtype}, {options.clock} time, jax {jax.__version__}\n\n")
    out.write("| part | length | batch | direction | skewed ms | picked ms | picked / skewed |\n")
    out.write("|---|---|---|---|---|---|---|\n")
    for part in ("self-attention", "layer"):
        for length in (128, 512):
            for row in compare(part, length, options):
                out.write(f"| {' | '.join(row)} |\n")
                out.flush()


if __name__ == "__main__":
    main()
