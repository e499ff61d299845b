"""A trained model with all that another project must know of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import nnx
from jaxtyping import Array

from increlora_jax.models.registry import find_spec
from increlora_jax.models.spec import Head
from increlora_jax.nn.dora import is_magnitude
from increlora_jax.nn.skeleton import Parts, Skeleton
from increlora_jax.weights.folder import read_config
from increlora_jax.weights.table import WeightTable


class TrainedModel(NamedTuple):
    """A trained model taken apart.

    Attributes:
        folder: The base model's folder, in Hugging Face's layout.
        base_model: The base model's name, for the reader of an export.
        revision: The base model's revision on the hub; None: the newest.
        head: Its head.
        head_options: Options of that head.
        labels: The names of its labels; None without names.
        task: The description of its task, in plain JSON.
        identity: The identities of base model and tokenizer, by content.
        skeleton, parts: The model; its base has the precision of the files.
        drawn: The parameters that the base model's files lack.
        modules_to_save: The names of the modules that were trained in full.
    """

    folder: Path
    base_model: str
    revision: str | None
    head: Head
    head_options: Mapping[str, Any]
    labels: tuple[str, ...] | None
    task: Mapping[str, Any]
    identity: Mapping[str, str]
    skeleton: Skeleton
    parts: Parts
    drawn: tuple[str, ...]
    modules_to_save: tuple[str, ...]

    @property
    def table(self) -> WeightTable:
        """Names of the parameters on disk."""
        return find_spec(read_config(self.folder)).weights

    @property
    def own(self) -> dict[str, Array]:
        """The parameters that the base model's files lack, or have with other values."""
        frozen = self.parts.frozen()
        drawn = {path: frozen[path] for path in self.drawn if path in frozen}
        learned = {path: v for path, v in self.parts.head.items() if not is_magnitude(path)}
        return {**learned, **drawn}

    @property
    def magnitudes(self) -> dict[str, np.ndarray]:
        """DoRA's lengths of the columns of kernels, by the path of the layer."""
        found = {path: v for path, v in self.parts.head.items() if is_magnitude(path)}
        return {path.rpartition(".")[0]: np.asarray(value) for path, value in found.items()}

    def own_on_disk(self) -> dict[str, np.ndarray]:
        """Return these parameters by their keys and shapes on disk."""
        tensors, table = {}, self.table
        for path, value in self.own.items():
            key, is_transposed = table.find_place(path)
            array = np.asarray(value)
            tensors[key] = array.T if is_transposed else array
        return tensors

    def merge(self) -> nnx.Module:
        """Return the plain model for evaluation, with every update added to its kernel."""
        merged: nnx.Module = self.skeleton.merge(self.parts)
        merged.eval()
        return merged
