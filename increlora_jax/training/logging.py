"""What a run tells: a progress bar, `metrics.jsonl`, and TensorBoard on request."""

import json
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tqdm.auto import tqdm

from increlora_jax.errors import InputError

METRICS_FILE = "metrics.jsonl"


class RunLog:
    """Writes the numbers of a run as they come; a context manager."""

    def __init__(self, folder: Path, total_steps: int, *, tensorboard: bool):
        self._lines = (folder / METRICS_FILE).open("w", encoding="utf-8", buffering=1)
        self._board = _open_board(folder) if tensorboard else None
        self._bar = tqdm(total=total_steps, unit="step", dynamic_ncols=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._bar.close()
        self._lines.close()
        if self._board is not None:
            self._board.close()

    def step(self, step: int, numbers: dict[str, Any], *, is_written: bool) -> None:
        """Report a training step; `is_written` if its numbers go to the files too."""
        self._bar.update(1)
        shown = {name: numbers[name] for name in ("loss", "total_rank", "tokens_per_second")}
        self._bar.set_postfix(
            loss=f"{shown['loss']:.4f}",
            rank=shown["total_rank"],
            tokens=f"{shown['tokens_per_second']:.0f}/s",
            refresh=False,
        )
        if is_written:
            self._write(step, "train", numbers)

    def evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """Report the metrics on dev after `step` steps."""
        self._write(step, "dev", metrics)
        self.say(f"step {step}: " + ", ".join(f"{n} {v:.4f}" for n, v in metrics.items()))

    def say(self, message: str) -> None:
        """Print a line without disturbing the bar."""
        self._bar.write(message)

    def _write(self, step: int, split: str, numbers: dict[str, Any]) -> None:
        self._lines.write(json.dumps({"step": step, "split": split, **numbers}) + "\n")
        if self._board is not None:
            for name, value in numbers.items():
                self._board.add_scalar(f"{split}/{name}", value, step)


def _open_board(folder: Path) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise InputError(
            "--tensorboard needs tensorboardX: pip install 'increlora_jax[tensorboard]'"
        ) from None
    return SummaryWriter(str(folder / "tensorboard"))
