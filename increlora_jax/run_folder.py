"""The files of a run's folder, and how a command ends when something cannot be done."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from increlora_jax.errors import InputError
from increlora_jax.training.loop import NonFiniteError

ADAPTER = "adapter"
BEST_ADAPTER = "adapter-best"
CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
RESULTS = "results.json"


@contextmanager
def fail_clearly() -> Iterator[None]:
    """Turn an error the user can mend into its message and exit status 2; numbers gone bad, 3."""
    try:
        yield
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None
    except NonFiniteError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(3) from None
