"""Messages of libraries that no user of the commands can act on."""

import logging


def quiet_libraries() -> None:
    """Keep such messages from standard error; every other warning passes."""
    # What Orbax logs of a failed write is raised, and said once.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # Tokenizers and configurations need no PyTorch, and nothing else of Transformers is used.
    logging.getLogger("transformers").addFilter(_is_not_of_pytorch)


def _is_not_of_pytorch(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("PyTorch was not found")
