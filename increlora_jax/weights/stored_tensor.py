"""Tensors on disk, in any file format."""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from types import EllipsisType

import ml_dtypes
import numpy as np

from increlora_jax.errors import InputError

FLOAT_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


Rows = slice | EllipsisType
"""A range of a tensor's rows, or `...` for the whole: a scalar has no rows."""

_MOST_BYTES = 1 << 24


@dataclass(frozen=True)
class StoredTensor:
    """A tensor on disk, not read yet.

    Attributes:
        file: The file.
        key: Its key in the file.
        dtype: Its dtype, by the safetensors format's name.
        shape: Its shape.
        load: A function that reads rows.
    """

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str
    load: Callable[[Rows], np.ndarray] = field(repr=False, compare=False)

    def read(self, rows: Rows = ...) -> np.ndarray:
        """Read the tensor, or some of its rows.

        Raises:
            InputError: If the numbers are not floating-point, or the file cannot be read.
        """
        if self.dtype not in FLOAT_DTYPES:
            raise InputError(
                f"{self.file}: {self.key} holds {self.dtype} values, not one of "
                f"{', '.join(FLOAT_DTYPES)}. Give an unquantised copy of the model"
            )
        return self.load(rows)

    def read_into(self, array: np.ndarray) -> None:
        """Read into an array of the same shape, a few rows at a time, to hold the data only once.

        Raises:
            InputError: As `read` raises.
        """
        if not self.shape:
            array[...] = self.read()
            return
        count = max(1, _MOST_BYTES // max(1, 8 * prod(self.shape[1:])))
        for start in range(0, self.shape[0], count):
            rows = slice(start, min(start + count, self.shape[0]))
            array[rows] = self.read(rows)
