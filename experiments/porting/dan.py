"""Deep averaging network (Iyyer et al., "Deep Unordered Composition", ACL 2015), as a port."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int
from transformers import AutoConfig, PretrainedConfig

from increlora_jax.models.heads import SequenceClassifier, Tokens
from increlora_jax.models.layer_loop import apply_layers
from increlora_jax.models.layers import LayerFactory
from increlora_jax.models.registry import MODELS
from increlora_jax.models.repeated_layer import RepeatedLayer
from increlora_jax.models.spec import ModelSpec, allow_any_length
from increlora_jax.models.taking import Take
from increlora_jax.weights.table import Rule, WeightTable


class DanConfig(PretrainedConfig):
    """Entries of `config.json`, with their defaults."""

    model_type = "dan"
    vocab_size = 6000
    hidden_size = 32
    num_hidden_layers = 2
    hidden_dropout_prob = 0.0
    initializer_range = 0.1


class DanLayer(RepeatedLayer):
    """A dense layer with tanh."""

    def __init__(self, config: DanConfig, make: LayerFactory):
        self.dense = make.linear(config.hidden_size, config.hidden_size)

    def apply(
        self, hidden: Float[Array, "batch 1 hidden"], *, take: Take
    ) -> Float[Array, "batch 1 hidden"]:
        """Compute the layer; there is one state a text, so nothing is left out."""
        return jnp.tanh(self.dense(hidden))


class DanModel(nnx.Module):
    """Mean of the word vectors, then the layers."""

    def __init__(self, config: DanConfig, make: LayerFactory):
        self.word_embeddings = make.embedding(config.vocab_size, config.hidden_size)
        self.layers = nnx.List([DanLayer(config, make) for _ in range(config.num_hidden_layers)])

    def __call__(
        self, input_ids: Int[Array, "batch length"], attention_mask: Int[Array, "batch length"]
    ) -> Float[Array, "batch hidden"]:
        """Return the state of each text."""
        is_token = attention_mask[..., None]
        words = self.word_embeddings(input_ids) * is_token
        mean = words.sum(axis=1, keepdims=True) / is_token.sum(axis=1, keepdims=True)
        return apply_layers(self.layers, mean)[0][:, 0]


class DanForSequenceClassification(SequenceClassifier):
    """A deep averaging network with a linear head."""

    body_name, make_body = "dan", DanModel

    def add_classifier(
        self, config: DanConfig, num_labels: int, rate: float, make: LayerFactory
    ) -> None:
        """Create the dropout and the linear layer."""
        self.dropout = make.dropout(rate)
        self.classifier = make.linear(config.hidden_size, num_labels)

    def find_states(self, tokens: Tokens) -> Float[Array, "batch hidden"]:
        """Return the states to score."""
        return self.body(tokens.input_ids, tokens.attention_mask)

    def compute_logits(self, hidden: Float[Array, "batch hidden"]) -> Float[Array, "batch labels"]:
        """Score each text."""
        return self.classifier(self.dropout(hidden))


DAN_WEIGHTS = WeightTable(
    rules=(
        Rule(r"dan\.word_embeddings\.embedding", "dan.word_embeddings.weight"),
        Rule(r"(dan\.layers\.\d+\.dense|classifier)\.kernel", r"\1.weight", is_transposed=True),
        Rule(r"(.+)\.bias", r"\1.bias"),
    ),
    may_be_missing=(r"classifier\..+",),
    outputs=(r"classifier\..+",),
    body=(r"dan\..+",),
)

DAN = ModelSpec(
    heads={"sequence_classification": DanForSequenceClassification},
    weights=DAN_WEIGHTS,
    target_modules=r"dan\.layers\.\d+\.dense",
    modules_to_save={"sequence_classification": ("classifier",)},
    shardings={
        r"dan\.word_embeddings\.embedding": (None, "fsdp"),
        r"dan\.layers\.\d+\.dense\.kernel": ("fsdp", "tensor"),
        r"dan\.layers\.\d+\.dense\.bias": ("tensor",),
        r"classifier\..+": (),
    },
    max_length=allow_any_length,
)


def register() -> None:
    """Make the family known to transformers, which reads `config.json`, and to this package."""
    AutoConfig.register("dan", DanConfig, exist_ok=True)
    MODELS["dan"] = DAN
