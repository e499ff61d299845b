"""Time DeBERTa-v3-base's attention: with skewed scores, with a gather, and with fused kernels.

Run `python experiments/deberta_attention/measure.py`. It uses the device that JAX finds; the
kernels take part if the device is an NVIDIA GPU.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from transformers import DebertaV2Config

from increlora_jax.models.deberta_encoder import DebertaEncoder
from increlora_jax.models.fused_attention import set_attention
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
    """The usual form: every token times every row, then a gather of each pair's entry."""

    def score_content_to_position(self, query, projected, dtype):
        """Gather along the rows at i − j."""
        return self._pick(query, projected, dtype, sign=1)

    def score_position_to_content(self, key, projected, dtype):
        """Gather with the keys first, transposed."""
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


FORMS = {
    "skewed": ("xla", RelativePositions),
    "picked": ("xla", PickedPositions),
    "fused": ("pallas", RelativePositions),
}


def build(part: str, form: str, length: int, dtype: jnp.dtype) -> tuple[Callable, nnx.State]:
    """Build the forward pass of a self-attention or a whole layer.

    Args:
        part: The self-attention, or the layer.
        form: The form of its scores.
        length: Tokens of a sequence.
        dtype: Dtype of computation.

    Returns:
        A function of (weights, hidden), and the weights.
    """
    config = DebertaV2Config(**V3_BASE)
    encoder = DebertaEncoder(config, LayerFactory(0.02, dtype, dtype, nnx.Rngs(0)))
    encoder.eval()
    implementation, positions_of = FORMS[form]
    set_attention(encoder, implementation)
    layer = encoder.layer[0]
    module = layer if part == "layer" else layer.attention.self
    choice = find_table_rows(length, config.position_buckets, config.max_position_embeddings)
    first, last = choice[0], choice[-1]
    rows = nnx.Param(encoder.rel_embeddings.embedding[first : last + 1])
    graph, weights, streams = nnx.split((module, rows), nnx.Param, ...)

    def forward(weights: nnx.State, hidden: jax.Array) -> jax.Array:
        module, rows = nnx.merge(graph, weights, streams)
        positions = positions_of(rows[...], choice - first)
        is_seen = jnp.ones((hidden.shape[0], 1, length, length), bool)
        return module(hidden, is_seen, positions)

    return forward, weights


def with_backward(forward: Callable) -> Callable:
    """Return the gradient of a forward pass by weights, positions and input."""
    return jax.grad(lambda *x: jnp.square(forward(*x).astype(jnp.float32)).sum(), argnums=(0, 1))


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def compare(
    part: str, length: int, forms: Sequence[str], options: argparse.Namespace
) -> list[list[str]]:
    """Return the table's rows for one part at one length: forward, and with the backward pass.

    Args:
        part: The self-attention, or the layer.
        length: Tokens of a sequence.
        forms: The forms to compare.
        options: The command line.
    """
    dtype, batch = jnp.dtype(options.dtype), options.tokens // length
    hidden = jax.random.normal(jax.random.key(1), (batch, length, 768), dtype)
    built = {form: build(part, form, length, dtype) for form in forms}
    rows = []
    for direction, wrap in {"forward": lambda f: f, "forward + backward": with_backward}.items():
        calls = {form: (jax.jit(wrap(f)), weights, hidden) for form, (f, weights) in built.items()}
        _check_equal(calls)
        seconds = _measure(calls, options.repeats, CLOCKS[options.clock])
        times = [f"{1e3 * statistics.median(seconds[form]):.2f}" for form in forms]
        ratios = [_compare_times(seconds[form], seconds["skewed"]) for form in forms[1:]]
        rows.append([part, str(length), str(batch), direction, *times, *ratios])
    return rows


def _compare_times(seconds: list[float], skewed: list[float]) -> str:
    """Return median and quartiles of the ratios to the skewed form within each repeat."""
    ratios = [one / other for one, other in zip(seconds, skewed, strict=True)]
    spread = statistics.quantiles(ratios, n=4)
    return f"{statistics.median(ratios):.2f} ({spread[0]:.2f} to {spread[2]:.2f})"


def _measure(
    calls: dict[str, tuple], repeats: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Return the seconds of each repeat; forms alternate to share the machine's slow times."""
    seconds: dict[str, list[float]] = {form: [] for form in calls}
    for repeat in range(repeats):
        for form in list(calls)[:: 1 if repeat % 2 else -1]:
            run, *arguments = calls[form]
            start = clock()
            jax.block_until_ready(run(*arguments))
            seconds[form].append(clock() - start)
    return seconds


def _check_equal(calls: dict[str, tuple]) -> None:
    # By default a GPU multiplies float32 with 10 bits, and the forms differ in their defaults.
    with jax.default_matmul_precision("highest"):
        results = {form: jax.tree.leaves(run(*given)) for form, (run, *given) in calls.items()}
    skewed = results.pop("skewed")
    largest = max(float(jnp.abs(leaf).max()) for leaf in skewed)
    # The forms add in different orders; the bound is 64 roundings of the largest entry.
    tolerance = 64 * float(jnp.finfo(skewed[0].dtype).eps) * largest
    for form, leaves in results.items():
        for one, other in zip(skewed, leaves, strict=True):
            if not jnp.allclose(one, other, rtol=0, atol=tolerance):
                raise ValueError(f"the skewed and the {form} form do not compute the same")


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
    device = jax.devices()[0]
    forms = [form for form in FORMS if form != "fused" or device.platform == "gpu"]
    times = [f"{form} ms" for form in forms] + [f"{form} / skewed" for form in forms[1:]]
    heads = ["part", "length", "batch", "direction", *times]
    out.write(
        f"{device.device_kind}, {options.dtype}, {options.clock} time, jax {jax.__version__}\n\n"
        f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|\n"
    )
    for part in ("self-attention", "layer"):
        for length in (128, 512):
            for row in compare(part, length, forms, options):
                out.write(f"| {' | '.join(row)} |\n")
                out.flush()


if __name__ == "__main__":
    main()
