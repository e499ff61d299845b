"""Shared parts of all heads: building a model around its body, and calling it."""

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from increlora_jax.errors import InputError
from increlora_jax.models.layers import LayerFactory, at_least_float32, get_activation
from increlora_jax.models.taking import Take, take_all, take_first, take_firsts

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class Tokens(NamedTuple):
    """Sequences that a model reads; `attention_mask` is 1 on tokens and 0 on padding.

    If `firsts` is given, the sequences are packed: a row holds several, which the mask numbers from
    1 on. `firsts` is the position of each sequence's first token, counted over all rows.
    """

    input_ids: Int[Array, "batch length"]
    attention_mask: Int[Array, "batch length"]
    token_type_ids: Int[Array, "batch length"]
    firsts: Int[Array, " sequences"] | None = None


class HeadedModel(nnx.Module):
    """A body under Hugging Face's name, and a head; all heads are subclasses.

    An architecture's subclass names and makes the body. A classifier with one label is a
    regression. New weights are N(0, σ²), biases 0, norms 1 and 0.

    Args:
        config: The architecture, as in `config.json`.
        dtype: Dtype of computation; softmax, norm statistics and logits are float32 at least.
        param_dtype: Dtype of the parameters.
        rngs: The streams `params` and `dropout`.
        num_labels: Number of labels; only for sequence classifiers.
        classifier_dropout: Dropout of the head; None: the configuration's own; only for sequence
            classifiers.

    Raises:
        InputError: If the body does not support the configuration.

    Attributes:
        body_name: Name of the body's attribute.
        make_body: (config, factory of layers) → the body.
        scale_name: Entry of the configuration that holds σ.
        add_head: Creates the head's layers.
    """

    body_name: ClassVar[str]
    make_body: ClassVar[Callable[..., nnx.Module]]
    scale_name: ClassVar[str] = "initializer_range"
    add_head: ClassVar[Callable[..., None]]

    def __init__(
        self,
        config: "PretrainedConfig",
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        make = LayerFactory(getattr(config, self.scale_name), dtype, param_dtype, rngs)
        self.add_body(config, make)
        self.add_head(config, make, **options)

    def add_body(self, config: "PretrainedConfig", make: LayerFactory) -> None:
        """Create the body."""
        setattr(self, self.body_name, type(self).make_body(config, make))

    @property
    def body(self) -> Any:
        """The model without its head."""
        return getattr(self, self.body_name)

    @property
    def can_pack(self) -> bool:
        """True if the model reads packed sequences and scores each by its first token."""
        return False

    def encode(self, tokens: Tokens, take: Take = take_all) -> Float[Array, "rows taken hidden"]:
        """Read whole sequences; return the states that `take` takes."""
        return self.body(*tokens[:3], is_packed=tokens.firsts is not None, take=take)


class Scorer(HeadedModel):
    """A head with one array of scores: for each sequence, or for each of its tokens."""

    @abstractmethod
    def compute_logits(
        self, hidden: Float[Array, "batch *length hidden"]
    ) -> Float[Array, "batch *length labels"]:
        """Turn states into scores."""

    def __call__(
        self,
        input_ids: Int[Array, "batch length"],
        attention_mask: Int[Array, "batch length"],
        token_type_ids: Int[Array, "batch length"],
        firsts: Int[Array, " sequences"] | None = None,
    ) -> Float[Array, "batch *length labels"]:
        """Score each sequence, or each token including padding; `attention_mask` is 0 on padding.

        With `firsts` the sequences are packed (see `Tokens`).

        Raises:
            InputError: If the sequences exceed the model's positions, or are packed and this head
                does not read packed sequences.
        """
        if firsts is not None and not self.can_pack:
            raise InputError(f"this {type(self).__name__} does not read packed sequences")
        states = self.find_states(Tokens(input_ids, attention_mask, token_type_ids, firsts))
        logits = self.compute_logits(states)
        return logits.astype(at_least_float32(logits.dtype))

    def find_states(self, tokens: Tokens) -> Float[Array, "batch *length hidden"]:
        """Return the states to score."""
        return self.encode(tokens)


class SequenceClassifier(Scorer):
    """A head that scores the labels of each sequence by one token; one label is a regression.

    Attributes:
        rate_names: Entries of the configuration for the head's dropout. The first set one counts;
            without any, there is no dropout.
    """

    rate_names: ClassVar[tuple[str, ...]] = ("classifier_dropout", "hidden_dropout_prob")

    def add_head(
        self,
        config: "PretrainedConfig",
        make: LayerFactory,
        *,
        num_labels: int,
        classifier_dropout: float | None = None,
    ) -> None:
        """Create the layers."""
        configured = (getattr(config, name, None) for name in self.rate_names)
        rates = (classifier_dropout, *configured, 0.0)
        rate = next(rate for rate in rates if rate is not None)
        self.add_classifier(config, num_labels, rate, make)

    @abstractmethod
    def add_classifier(self, config: Any, num_labels: int, rate: float, make: LayerFactory) -> None:
        """Create the layers with a dropout of `rate`."""

    def find_states(self, tokens: Tokens) -> Float[Array, "batch hidden"]:
        """Return the state of each sequence's scored token."""
        return self.encode(tokens, self.choose(tokens))[:, 0]

    def choose(self, tokens: Tokens) -> Take:
        """Take the scored token: the first, unless an architecture overrides this."""
        return take_first if tokens.firsts is None else take_firsts(tokens.firsts)


class QuestionAnswerer(HeadedModel):
    """A head with two scores a token: for the start of the answer, and for its end."""

    def add_head(self, config: "PretrainedConfig", make: LayerFactory) -> None:
        """Create the linear layer."""
        self.qa_outputs = make.linear(config.hidden_size, 2)

    def __call__(
        self,
        input_ids: Int[Array, "batch length"],
        attention_mask: Int[Array, "batch length"],
        token_type_ids: Int[Array, "batch length"],
    ) -> tuple[Float[Array, "batch length"], Float[Array, "batch length"]]:
        """Score each token, including padding, as the answer's first and as its last.

        Raises:
            InputError: If the sequences are longer than the model has positions.
        """
        hidden = self.encode(Tokens(input_ids, attention_mask, token_type_ids))
        return split_span_logits(self.qa_outputs(hidden))


def split_span_logits(
    logits: Float[Array, "batch length 2"],
) -> tuple[Float[Array, "batch length"], Float[Array, "batch length"]]:
    """Split logits into the scores of starts and of ends, in float32 at least."""
    logits = logits.astype(at_least_float32(logits.dtype))
    return logits[..., 0], logits[..., 1]


class ClassificationHead(nnx.Module):
    """A dense layer with tanh, then a linear one, with dropout before each."""

    def __init__(self, features: int, num_labels: int, dropout_rate: float, make: LayerFactory):
        self.dense = make.linear(features, features)
        self.dropout = make.dropout(dropout_rate)
        self.out_proj = make.linear(features, num_labels)

    def __call__(self, state: Float[Array, "batch hidden"]) -> Float[Array, "batch labels"]:
        """Score each sequence's state."""
        return self.out_proj(self.dropout(jnp.tanh(self.dense(self.dropout(state)))))


class PredictionTransform(nnx.Module):
    """A dense layer, an activation and a layer norm: from a token's vector to a word's."""

    def __init__(self, config: "PretrainedConfig", features: int, make: LayerFactory):
        self.dense = make.linear(config.hidden_size, features)
        self.activation = get_activation(config.hidden_act)
        self.LayerNorm = make.layer_norm(features, config.layer_norm_eps)

    def __call__(
        self, hidden: Float[Array, "batch length hidden"]
    ) -> Float[Array, "batch length word"]:
        """Turn states into vectors to compare with words."""
        return self.LayerNorm(self.activation(self.dense(hidden)))


class VocabularyHead(nnx.Module):
    """End of a masked-LM head: word embeddings and a bias, or an own decoder.

    `config.tie_word_embeddings` chooses between the two; `features` is the width of word vectors.
    """

    def __init__(self, config: "PretrainedConfig", features: int, make: LayerFactory):
        self.is_tied = config.tie_word_embeddings
        if self.is_tied:
            self.bias = nnx.Param(jnp.zeros(config.vocab_size, make.param_dtype))
        else:
            self.decoder = make.linear(features, config.vocab_size)

    def score_words(
        self, hidden: Float[Array, "batch length word"], words: nnx.Embed
    ) -> Float[Array, "batch length vocab"]:
        """Score every word of the vocabulary at every position."""
        if not self.is_tied:
            return self.decoder(hidden)
        return compare_with_words(hidden, words) + self.bias[...]


class PredictionHead(VocabularyHead):
    """The masked-LM head of BERT: the transform, then a score for every word."""

    def __init__(self, config: "PretrainedConfig", features: int, make: LayerFactory):
        super().__init__(config, features, make)
        self.transform = PredictionTransform(config, features, make)

    def __call__(
        self, hidden: Float[Array, "batch length hidden"], words: nnx.Embed
    ) -> Float[Array, "batch length vocab"]:
        """Score every word at every position."""
        return self.score_words(self.transform(hidden), words)


def compare_with_words(
    hidden: Float[Array, "*batch word"], words: nnx.Embed
) -> Float[Array, "*batch vocab"]:
    """Multiply with every word's embedding, with sums in float32 at least."""
    wide = at_least_float32(hidden.dtype)
    table = words.embedding[...].astype(hidden.dtype)
    return jnp.einsum("...h,vh->...v", hidden, table, preferred_element_type=wide)
