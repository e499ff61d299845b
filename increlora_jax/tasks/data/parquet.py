"""Records of a Parquet file."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from increlora_jax.errors import InputError
from increlora_jax.tasks.data.lines import check_regular, describe_unreadable
from increlora_jax.tasks.data.records import find_repeated, quote


def read_parquet_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (row number from 1, object) for each row.

    Raises:
        InputError: If the file is not Parquet, or pyarrow is not installed.
    """
    check_regular(path)
    try:
        # A late import: no other kind of file needs it.
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise InputError(
            f"{path}: Parquet files are read by pyarrow, which cannot be imported ({error}). "
            "Run pip install pyarrow, or save the file as .jsonl"
        ) from error
    row = 0
    try:
        with parquet.ParquetFile(path) as file:
            repeated = find_repeated(file.schema_arrow.names)
            for batch in () if repeated else file.iter_batches():
                for record in batch.to_pylist():
                    row += 1
                    yield row, record
    except (ArrowException, OSError, ValueError) as error:
        problem = describe_unreadable(path, ValueError(str(error).strip().split("\n")[0]))
        raise problem from error
    if repeated:
        raise InputError(
            f"{path}: more than one column is called {quote(repeated)}. Rename all but one"
        )
