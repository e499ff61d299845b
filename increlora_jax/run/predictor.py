"""Answers of a trained model to texts, from Python or by the thousand."""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from increlora_jax.errors import InputError
from increlora_jax.nn.skeleton import Parts, split
from increlora_jax.run.build import Plan
from increlora_jax.run.trained import Trained
from increlora_jax.runtime.preemption import Stop
from increlora_jax.tasks.batching import evaluation_batches, length_buckets
from increlora_jax.tasks.kind import Batch, Encoded, Kind, Predictions, Split, count_not_finite
from increlora_jax.training.batches import PROGRAM_COST
from increlora_jax.training.evaluation import choose_batches
from increlora_jax.training.forward import Batches, Forward
from increlora_jax.weights.tokenizer import load_tokenizer

BATCH_SIZE = 64
"""Rows of a batch by default."""

_FEW = (1, 4, 16)
"""Smaller numbers of rows, for a few texts."""


_MARGIN = 1.05
"""Share of the tokens that shapes were chosen for, up to which they are used again."""


class Piece(NamedTuple):
    """Examples, and their rows of numbers."""

    split: Split
    encoded: Encoded


class _Shapes(NamedTuple):
    """Shapes of batches that were chosen for many rows, and that later rows use again."""

    choose: Callable[[Encoded], Batches]
    longest: int
    tokens: int

    def fit(self, encoded: Encoded) -> bool:
        """Return whether rows are no longer and hardly more than those chosen for."""
        lengths = encoded.lengths
        return int(lengths.max()) <= self.longest and int(lengths.sum()) <= _MARGIN * self.tokens


class Predictor:
    """A trained model that answers texts; several threads may call it.

    One program is compiled for each length of batches and each of few numbers of rows, when it is
    first needed.

    Args:
        plan: The plan of the model's run, on no data.
        model: The arrays of the model.
        predict: (model, batch) → predictions; traced.
        batch_size: Rows of a batch.
        stop: A request to stop, checked between batches.
        pack: Builds batches by sequence packing; None if `predict` takes no such batches.

    Raises:
        InputError: If the task's kind cannot answer.

    >>> import inspect
    >>> import increlora_jax as il
    >>> list(inspect.signature(il.Predictor.__call__).parameters)
    ['self', 'texts', 'top_k']
    """

    def __init__(
        self,
        plan: Plan,
        model: PyTree,
        predict: Callable[[PyTree, Batch], Predictions],
        *,
        batch_size: int = BATCH_SIZE,
        stop: Stop | None = None,
        pack: Callable[..., Batch] | None = None,
    ) -> None:
        self.kind: Kind = plan.data.kind
        if batch_size < 1:
            raise InputError(f"batch_size {batch_size} is not at least 1")
        if self.kind.answer is None:
            raise InputError(f"--run: models for {self.kind.task} have no answers here")
        self._model, self._pack = model, pack
        self._forward = Forward(predict, plan.layout)
        self._layout, self._stop = plan.layout, stop or Stop()
        self._tokenizer = load_tokenizer(plan.folder)
        self._length = plan.config.task.max_seq_length
        self._batch_size = -(-batch_size // plan.layout.blocks) * plan.layout.blocks
        self._lock = threading.Lock()  # a tokenizer is not made for several threads
        self._shapes: _Shapes | None = None

    def __call__(self, texts: Any, *, top_k: int | None = None) -> Any:
        """Answer a text, or a sequence of texts.

        Args:
            texts: A string, or a pair of strings as a tuple, or a sequence of them. A question
                comes with its context: (question, context).
            top_k: The number of labels to keep, the most probable first; default: all.

        Returns:
            A record for each text, such as `Classified(label, probabilities)`; one record for one
                text.

        Raises:
            InputError: If a text is no such thing.
        """
        rows, is_one = self.rows_of(texts)
        if not rows:
            return []
        piece = self.encode(rows)
        answers = self._answer(piece)
        if top_k is not None:
            answers = keep_top(self.kind, answers, top_k)
        return answers[0] if is_one else answers

    def rows_of(self, texts: Any) -> tuple[list[Any], bool]:
        """Return the given texts as a list, and whether it was one text or one pair."""
        if isinstance(texts, Mapping | bytes) or not isinstance(texts, Iterable):
            raise InputError(f"texts: {type(texts).__name__}. Give a string, or a list of them")
        is_pair = isinstance(texts, tuple) and len(texts) == 2
        is_one = isinstance(texts, str) or (is_pair and all(isinstance(t, str) for t in texts))
        return ([texts] if is_one else list(texts)), is_one

    def encode(
        self, rows: Sequence[Any], change: Callable[[Encoded], Encoded] = lambda encoded: encoded
    ) -> Piece:
        """Encode texts; `change` may add to the rows."""
        assert self.kind.take_inputs is not None
        piece = self._encode(self.kind.take_inputs(rows))
        return piece._replace(encoded=change(piece.encoded))

    def stream(self, splits: Iterable[Split]) -> Iterator[tuple[Split, Encoded, Sequence[Any]]]:
        """Answer splits one after the other; the next is read and encoded meanwhile.

        Yields:
            A split, its rows, and the answers to its examples.

        Raises:
            InputError: If a split cannot be read.
            Preempted: If a stop was requested.
        """
        source = iter(splits)

        def encode_next() -> Piece | None:
            found = next(source, None)
            return None if found is None else self._encode(found)

        with ThreadPoolExecutor(1, thread_name_prefix="encode") as ahead:
            future: Future[Piece | None] = ahead.submit(encode_next)
            while (piece := future.result()) is not None:
                future = ahead.submit(encode_next)
                yield piece.split, piece.encoded, self._answer(piece)

    def _encode(self, inputs: Split) -> Piece:
        with self._lock:
            return Piece(inputs, self.kind.encode(inputs, self._tokenizer, self._length, ""))

    def _answer(self, piece: Piece) -> Sequence[Any]:
        assert self.kind.answer is not None
        return self.kind.answer(self.predict(piece), piece.encoded, piece.split)

    def predict(self, piece: Piece) -> Predictions:
        """Predict every row.

        Raises:
            InputError: If a prediction is not finite.
        """
        count = len(piece.encoded)
        batches = self._batches(piece.encoded)
        predictions = self._forward.over(batches, count, self._model, self._stop)
        if bad := count_not_finite(predictions):
            raise InputError(
                f"the model gives numbers that are not finite for {bad} of {count} rows. Restore "
                "its weights, or train again with a lower --learning-rate"
            )
        return predictions

    def _batches(self, encoded: Encoded) -> Batches:
        buckets = length_buckets(self._length)
        few = next((n for n in _FEW if n >= len(encoded)), self._batch_size)
        if len(encoded) <= self._batch_size:
            few = -(-min(few, self._batch_size) // self._layout.blocks) * self._layout.blocks
            rows = self._layout.own_rows(few)
            return evaluation_batches(encoded, batch_size=few, buckets=buckets, rows=rows)
        shapes = self._shapes
        if shapes is None or not shapes.fit(encoded):
            choose = choose_batches(
                [encoded],
                self._batch_size,
                buckets,
                self._layout.own_rows(self._batch_size),
                self._pack,
                is_free=True,
                program_cost=PROGRAM_COST.get(jax.default_backend(), PROGRAM_COST["gpu"]),
            )
            shapes = _Shapes(choose, int(encoded.lengths.max()), int(encoded.lengths.sum()))
            self._shapes = shapes
        return shapes.choose(encoded)


def check_top(kind: Kind, count: int) -> None:
    """Raise an InputError if answers have no probabilities, or the count is not positive."""
    if kind.labels is None:
        raise InputError(f"--top-k is for classes, and {kind.task} has none here. Leave it out")
    if count < 1:
        raise InputError(f"--top-k {count} is not at least 1")


def keep_top(kind: Kind, answers: Sequence[Any], count: int) -> list[Any]:
    """Return the answers with their `count` most probable labels only.

    Raises:
        InputError: If the answers have no probabilities, or the count is not positive.
    """
    check_top(kind, count)

    def cut(probabilities: dict[str, float]) -> dict[str, float]:
        return dict(sorted(probabilities.items(), key=lambda pair: -pair[1])[:count])

    return [answer._replace(probabilities=cut(answer.probabilities)) for answer in answers]


def merged_predictor(
    trained: Trained, batch_size: int = BATCH_SIZE, stop: Stop | None = None
) -> Predictor:
    """Return a predictor whose updates are merged into the base.

    Its answers are exactly those of the whole model that `interop.merged` writes in float32.
    """
    plan, predict = trained.plan, trained.kind.predict
    skeleton, parts = split(trained.model.merge(), lambda path: False)
    empty, dtype = Parts({}, {}, {}, {}, parts.statistics), jnp.dtype(plan.config.task.dtype)
    base = plan.layout.place({path: value.astype(dtype) for path, value in parts.base.items()})

    def forward(base: dict[str, Array], batch: Batch) -> Predictions:
        return predict(skeleton.assemble(empty._replace(base=plan.layout.gather(base))), batch)

    pack = trained.kind.pack if plan.can_pack else None
    return Predictor(plan, base, forward, batch_size=batch_size, stop=stop, pack=pack)
