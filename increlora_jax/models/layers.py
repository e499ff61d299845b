"""Shared parts of encoders: layers initialised as Hugging Face does, activations."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from increlora_jax.dropout import Dropout
from increlora_jax.errors import InputError
from increlora_jax.models.products import multiply_narrow

Activation = Callable[[jax.Array], jax.Array]


def at_least_float32(dtype: DTypeLike) -> jnp.dtype:
    """Widen bfloat16 and float16 to float32; return other dtypes as they are."""
    return jnp.promote_types(dtype, jnp.float32)


def _exact_gelu(x: jax.Array) -> jax.Array:
    """x · Φ(x) by erf, as in PyTorch; `jax.nn` uses erfc, which is one more pass over x."""
    wide = x.astype(at_least_float32(x.dtype))  # 1 + erf has no digits left in bfloat16
    return (0.5 * wide * (1 + jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


_tanh_gelu = partial(jax.nn.gelu, approximate=True)

# Hugging Face's names, some of which mean one function up to rounding.
ACTIVATIONS: dict[str, Activation] = {
    "gelu": _exact_gelu,
    "gelu_python": _exact_gelu,
    "gelu_new": _tanh_gelu,
    "gelu_fast": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}


def get_activation(name: str) -> Activation:
    """Look up an activation by the name that `config.json` gives it.

    Raises:
        InputError: the name is not in `ACTIVATIONS`.
    """
    if name not in ACTIVATIONS:
        raise InputError(
            f"config.json: the activation {name!r} is not known here. "
            f"Use a model with one of {', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[name]


@dataclass(frozen=True)
class LayerFactory:
    """A maker of the layers of one model, with the same dtypes, scale and random streams.

    Attributes:
        initializer_range: Standard deviation of new kernels and embeddings; new biases are 0.
        dtype: Dtype of computation (layer norm statistics: float32 at least).
        param_dtype: Dtype of the parameters.
        rngs: The streams `params` and `dropout`.
    """

    initializer_range: float
    dtype: DTypeLike
    param_dtype: DTypeLike
    rngs: nnx.Rngs

    def scaled(self, scale: float) -> "LayerFactory":
        """Return a factory whose new kernels and embeddings are `scale` times as large."""
        return replace(self, initializer_range=scale * self.initializer_range)

    def linear(self, in_features: int, out_features: int, *, use_bias: bool = True) -> nnx.Linear:
        """Create a dense layer."""
        is_narrow = at_least_float32(self.dtype) != self.dtype
        return nnx.Linear(
            in_features,
            out_features,
            use_bias=use_bias,
            kernel_init=nnx.initializers.normal(self.initializer_range),
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            dot_general=multiply_narrow if is_narrow else jax.lax.dot_general,
            rngs=self.rngs,
        )

    def embedding(self, rows: int, features: int) -> nnx.Embed:
        """Create a table of `rows` vectors."""
        return nnx.Embed(
            rows,
            features,
            embedding_init=nnx.initializers.normal(self.initializer_range),
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            rngs=self.rngs,
        )

    def layer_norm(self, features: int, epsilon: float) -> nnx.LayerNorm:
        """Create a layer norm over the last axis."""
        return nnx.LayerNorm(
            features,
            epsilon=epsilon,
            # E[x²] − E[x]² loses digits that the parity with PyTorch needs.
            use_fast_variance=False,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            rngs=self.rngs,
        )

    def convolution(self, features: int, width: int, groups: int) -> nnx.Conv:
        """Create a convolution along the tokens that keeps their number; `width` is odd."""
        return nnx.Conv(
            features,
            features,
            width,
            feature_group_count=groups,
            kernel_init=nnx.initializers.normal(self.initializer_range),
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            rngs=self.rngs,
        )

    def rms_norm(self, features: int, epsilon: float) -> nnx.RMSNorm:
        """Create a root-mean-square norm over the last axis: no mean, no bias."""
        return nnx.RMSNorm(
            features,
            epsilon=epsilon,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            rngs=self.rngs,
        )

    def dropout(self, rate: float) -> Dropout:
        """Create a dropout with its own random stream."""
        return Dropout(rate, rngs=self.rngs)
