"""Forms in which one label may be written: blanks, case, width, spellings of a number."""

import re
import unicodedata

_NUMBER = re.compile(r"([+-]?)(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_INTEGER = re.compile(r"[+-]?\d+", re.ASCII)
_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+", re.ASCII)
_UNSEEN = "\u200b\u200c\u200d\u2060\ufeff\u00ad"
_QUOTES = " \"'`´“”„‘’‚«»"
_MINUSES = str.maketrans(dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212", "-"))
_UNITS = " %‰$€£¥"
_MISSING = frozenset(("", "nan", "na", "n/a", "null", "none", "nil", "-", "--", "?", "#n/a", "."))


def strip_blanks(label: str) -> str:
    """Remove the blanks around a label, including Unicode's and those of no width."""
    shorter = label.strip().strip(_UNSEEN)
    return shorter if shorter == label else strip_blanks(shorter)


def is_number(text: str) -> bool:
    """Return whether a label's text is a decimal number."""
    # ASCII digits only: float() would also take "1_000", "nan" and digits of other scripts.
    return _NUMBER.fullmatch(text) is not None


def is_integer(text: str) -> bool:
    """Return whether a label's text is an integer literal."""
    return _INTEGER.fullmatch(text) is not None


def has_decimal_comma(text: str) -> bool:
    """Return whether a label's text would be a number if its comma were a point."""
    return _DECIMAL_COMMA.fullmatch(text) is not None


def has_other_signs(text: str) -> bool:
    """Return whether a text would be a number if its minus and digits were those of ASCII."""
    return not is_number(text) and is_number(
        unicodedata.normalize("NFKC", text).translate(_MINUSES)
    )


def has_unit(text: str) -> bool:
    """Return whether a label's text is a number with a sign of per cent or of a currency."""
    bare = text.strip(_UNITS).strip()
    return bare != text and (is_number(bare) or has_decimal_comma(bare))


def may_be_missing(label: str) -> bool:
    """Return whether a label is a common word for a missing value."""
    return label.lower() in _MISSING


def fold(label: str) -> str:
    """Return one form for labels that differ only by blanks, quotes, case, width or spelling."""
    text = unicodedata.normalize("NFKC", label).casefold().strip(_QUOTES) or label
    seen = "".join(c for c in text if unicodedata.category(c) != "Cf")
    text = unicodedata.normalize("NFKC", " ".join(seen.split()))
    match = _NUMBER.fullmatch(text)
    if match is None:
        return text
    sign, digits, exponent = match.groups()
    if exponent:
        return str(float(text))
    whole, _, part = digits.partition(".")
    return f"{sign.replace('+', '')}{whole.lstrip('0') or '0'}.{part.rstrip('0') or '0'}"
