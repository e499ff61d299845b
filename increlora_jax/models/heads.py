"""Shared parts of all heads: how a model is built around its body, and called."""

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
    """The sequences that a model is given; `attention_mask` is 1 on tokens and 0 on padding.

    With `firsts` they are packed, several in a row that the mask numbers from 1 on: `firsts` tells
    for each of them the place of its first token, counted over all rows.
    """

    input_ids: Int[Array, "batch length"]
    attention_mask: Int[Array, "batch length"]
    token_type_ids: Int[Array, "batch length"]
    firsts: Int[Array, " sequences"] | None = None


class HeadedModel(nnx.Module):
    """A body under Hugging Face's name for it, and a head; the heads below are its subclasses.

    An architecture's own head says what the body is and is called. All heads take

      config: the architecture, as `config.json` describes it;
      dtype: what is computed in; softmax, norm statistics and logits are float32 at least;
      param_dtype: what the parameters are stored in;
      rngs: the streams `params` and `dropout`;

    sequence classifiers also `num_labels`, of which one is regression, and `classifier_dropout`,
    the rate before the head or in it; None takes the configuration's own. They raise InputError
    where the configuration asks for what the body does not do. New weights are N(0, σ²), biases 0,
    norms 1 and 0.

    Attributes:
        body_name: under which the body is found.
        make_body: makes it, of the configuration and the factory of its layers.
        scale_name: the entry of the configuration that is σ.
        add_head: makes the head's layers, of the same and the head's own arguments.
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
        """Make the body."""
        setattr(self, self.body_name, type(self).make_body(config, make))

    @property
    def body(self) -> Any:
        """The model without its head."""
        return getattr(self, self.body_name)

    @property
    def can_pack(self) -> bool:
        """True if the model reads packed sequences, and judges each by its first token."""
        return False

    def encode(self, tokens: Tokens, take: Take = take_all) -> Float[Array, "rows taken hidden"]:
        """Read whole sequences, and make the states of some tokens or all."""
        return self.body(*tokens[:3], is_packed=tokens.firsts is not None, take=take)


class Scorer(HeadedModel):
    """A head that gives one array of scores: of each sequence, or of each of its tokens."""

    @abstractmethod
    def compute_logits(
        self, hidden: Float[Array, "batch *length hidden"]
    ) -> Float[Array, "batch *length labels"]:
        """Score what has been read."""

    def __call__(
        self,
        input_ids: Int[Array, "batch length"],
        attention_mask: Int[Array, "batch length"],
        token_type_ids: Int[Array, "batch length"],
        firsts: Int[Array, " sequences"] | None = None,
    ) -> Float[Array, "batch *length labels"]:
        """Score each sequence, or each token, padding too; `attention_mask` is 0 on padding.

        With `firsts` the sequences are packed (see `Tokens`).

        Raises:
            InputError: the sequences are longer than the model has positions, or packed, and this
                head does not read such.
        """
        if firsts is not None and not self.can_pack:
            raise InputError(f"this {type(self).__name__} does not read packed sequences")
        states = self.find_states(Tokens(input_ids, attention_mask, token_type_ids, firsts))
        logits = self.compute_logits(states)
        return logits.astype(at_least_float32(logits.dtype))

    def find_states(self, tokens: Tokens) -> Float[Array, "batch *length hidden"]:
        """Make the states that are scored."""
        return self.encode(tokens)


class SequenceClassifier(Scorer):
    """A head that scores the labels of each sequence by one token; one label is regression.

    Attributes:
        rate_names: entries of the configuration for the dropout of the head; the first that is set
            counts, and without any there is none.
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
        """Make the layers."""
        configured = (getattr(config, name, None) for name in self.rate_names)
        rates = (classifier_dropout, *configured, 0.0)
        rate = next(rate for rate in rates if rate is not None)
        self.add_classifier(config, num_labels, rate, make)

    @abstractmethod
    def add_classifier(self, config: Any, num_labels: int, rate: float, make: LayerFactory) -> None:
        """Make the layers with a dropout of `rate`."""

    def find_states(self, tokens: Tokens) -> Float[Array, "batch hidden"]:
        """Make the state of the token by which each sequence is judged."""
        return self.encode(tokens, self.choose(tokens))[:, 0]

    def choose(self, tokens: Tokens) -> Take:
        """Say which token that is: the first, unless an architecture has another."""
        return take_first if tokens.firsts is None else take_firsts(tokens.firsts)


class QuestionAnswerer(HeadedModel):
    """A head with two scores a token: for the start of the answer, and for its end."""

    def add_head(self, config: "PretrainedConfig", make: LayerFactory) -> None:
        """Make the linear layer."""
        self.qa_outputs = make.linear(config.hidden_size, 2)

    def __call__(
        self,
        input_ids: Int[Array, "batch length"],
        attention_mask: Int[Array, "batch length"],
        token_type_ids: Int[Array, "batch length"],
    ) -> tuple[Float[Array, "batch length"], Float[Array, "batch length"]]:
        """Score each token, padding too, as the answer's first and as its last.

        Raises:
            InputError: the sequences are longer than the model has positions.
        """
        hidden = self.encode(Tokens(input_ids, attention_mask, token_type_ids))
        return split_span_logits(self.qa_outputs(hidden))


def split_span_logits(
    logits: Float[Array, "batch length 2"],
) -> tuple[Float[Array, "batch length"], Float[Array, "batch length"]]:
    """Part the scores of starts and of ends, float32 at least."""
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
        """Make vectors that are compared with words."""
        return self.LayerNorm(self.activation(self.dense(hidden)))


class VocabularyHead(nnx.Module):
    """The end of a masked-LM head: word embeddings and a bias, or a decoder of its own.

    `config.tie_word_embeddings` says which; `features` is how wide the vectors of words are.
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
        """Score every word of the vocabulary at every place."""
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
        """Score every word at every place."""
        return self.score_words(self.transform(hidden), words)


def compare_with_words(
    hidden: Float[Array, "*batch word"], words: nnx.Embed
) -> Float[Array, "*batch vocab"]:
    """Multiply with the embedding of every word, summed in float32 at least."""
    wide = at_least_float32(hidden.dtype)
    table = words.embedding[...].astype(hidden.dtype)
    return jnp.einsum("...h,vh->...v", hidden, table, preferred_element_type=wide)
