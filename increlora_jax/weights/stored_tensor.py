"""A tensor on disk, whatever the format of its file."""

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
"""A range of a tensor's rows, or all there is: a scalar has no rows."""

_MOST_BYTES = 1 << 24


@dataclass(frozen=True)
class StoredTensor:
    """A tensor on disk, not yet read; `load` reads rows of it, `dtype` is in safetensors' words."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str
    load: Callable[[Rows], np.ndarray] = field(repr=False, compare=False)

    def read(self, rows: Rows = ...) -> np.ndarray:
        """Read the tensor, or some of its rows.

        Raises:
            InputError: it holds no floating-point numbers, or the file cannot be read.
        """
        if self.dtype not in FLOAT_DTYPES:
            raise InputError(
                f"{self.file}: {self.key} holds {self.dtype} values, not one of "
                f"{', '.join(FLOAT_DTYPES)}; give an unquantised copy of the model"
            )
        return self.load(rows)

    def read_into(self, array: np.ndarray) -> None:
        """Read into an array of the same shape, a few rows at a time, so that memory holds it once.

        Raises:
            InputError: as `read` does.
        """
        if not self.shape:
            array[...] = self.read()
            return
        count = max(1, _MOST_BYTES // max(1, 8 * prod(self.shape[1:])))
        for start in range(0, self.shape[0], count):
            rows = slice(start, min(start + count, self.shape[0]))
            array[rows] = self.read(rows)
