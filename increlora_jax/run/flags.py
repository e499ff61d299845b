"""Command line of all commands: flags in both spellings, and errors that name the flag."""

import sys
from argparse import ArgumentParser, ArgumentTypeError, HelpFormatter, Namespace
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from increlora_jax import __version__
from increlora_jax.errors import InputError, suggest
from increlora_jax.values import convert, expand_home

_OTHER_NAMES = {
    "--lr": "--learning-rate",
    "--rank": "--target-rank",
    "--r": "--target-rank",
    "--alpha": "--lora-alpha",
    "--epochs": "--num-train-epochs",
    "--batch-size": "--train-batch-size",
    "--per-device-train-batch-size": "--train-batch-size",
    "--per-device-eval-batch-size": "--eval-batch-size",
    "--model-name-or-path": "--model",
}
"""Flags of other trainers, with their names here."""


SWITCH = "[BOOL]"
"""Placeholder of a switch's value, which the list of flags leaves out."""


class Parser(ArgumentParser):
    """A parser of flags: `--a_b` means `--a-b`, and errors are `InputError`s."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(
            prog=f"python -m increlora_jax.{command}",
            usage="%(prog)s [flags]",
            description=description,
            allow_abbrev=False,
            add_help=False,
            formatter_class=partial(HelpFormatter, max_help_position=32, width=80),
        )
        self.others = self.add_argument_group("about this command")
        self.others.add_argument("-h", "--help", action="help", help="list the flags and exit")
        self.others.add_argument(
            "--version",
            action="version",
            version=f"increlora_jax {__version__}",
            help="print the version and exit",
        )

    def parse_flags(self, argv: Sequence[str] | None = None) -> Namespace:
        """Parse words into flags; default: the words of this process.

        Raises:
            InputError: If a flag is unknown, lacks its value or has a wrong one.
        """
        words = sys.argv[1:] if argv is None else argv
        given, rest = self.parse_known_args(list(map(_dash, words)))
        if rest:
            raise InputError(self._explain(rest[0]))
        return given

    def format_help(self) -> str:
        """Return the list of flags."""
        shown = f"[{SWITCH}]"
        return super().format_help().replace(shown, " " * len(shown))

    def error(self, message: str) -> NoReturn:
        """Raise an error instead of exiting, so that commands end in one place."""
        message = message.removeprefix("argument ")
        if "expected" in message:
            message += ". Write a value that begins with - as --flag=-value"
        if "ignored explicit argument" in message:
            message += "; this flag takes no value"
        raise InputError(message)

    def _explain(self, word: str) -> str:
        if not word.startswith("-"):
            return f"{word}: unexpected; settings are given by flags, as --task sst2 (see --help)"
        flag = word.partition("=")[0]
        known = [f for f in self._option_string_actions if f.startswith("--")]
        other = _OTHER_NAMES.get(flag)
        hint = f"; did you mean {other}?" if other in known else suggest(flag, known)
        return f"{flag}: unknown{hint or '; --help lists the flags'}"


def type_of(kind: Any) -> Callable[[str], Any]:
    """Return the function that converts a flag's words."""

    def read(text: str) -> Any:
        try:
            return convert(text, kind)
        except ValueError as error:
            raise ArgumentTypeError(str(error)) from None

    return read


def text(word: str) -> str:
    """Return a flag's word; refuse a blank one."""
    if not word.strip():
        raise ArgumentTypeError(f"{word!r} is blank. Fill it, or leave the flag out")
    return word


def path_text(word: str) -> str:
    """Return a flag's word with a leading `~` replaced by the home folder."""
    try:
        return expand_home(text(word))
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None


def path(word: str) -> Path:
    """Return a flag's word as a path; see `path_text`."""
    return Path(path_text(word))


def _dash(word: str) -> str:
    """Replace the underscores of a flag by dashes, but not those of a value behind it."""
    flag, equals, value = word.partition("=")
    return flag.replace("_", "-") + equals + value if flag.startswith("--") else word
