"""A tensor on disk, whatever the format of its file."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import ml_dtypes
import numpy as np

from increlora_jax.errors import InputError

FLOAT_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor on disk, not yet read; `load` reads it, `dtype` is named as safetensors does."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str
    load: Callable[[], np.ndarray] = field(repr=False, compare=False)

    def read(self) -> np.ndarray:
        """Read the tensor.

        Raises:
          InputError: it holds no floating-point numbers, or the file cannot be read.
        """
        if self.dtype not in FLOAT_DTYPES:
            raise InputError(
                f"{self.file}: {self.key} holds {self.dtype} values, not one of "
                f"{', '.join(FLOAT_DTYPES)}; give an unquantised copy of the model"
            )
        return self.load()
