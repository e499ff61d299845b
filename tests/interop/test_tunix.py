"""The trainer for tunix, where tunix is not installed; its README has the command where it is."""

import sys

import pytest

from increlora_jax.errors import InputError
from increlora_jax.interop import tunix


def test_a_missing_tunix_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "tunix", None)
    with pytest.raises(InputError, match=r"needs tunix.*experiments/examples/README\.md"):
        _ = tunix.IncreLoraPeftTrainer
    with pytest.raises(AttributeError, match="has no attribute 'Other'"):
        _ = tunix.Other
