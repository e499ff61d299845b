"""What libraries say beside our lines."""

import logging
import os
import warnings

import pytest

from increlora_jax.nn import targets
from increlora_jax.runtime.libraries import BARS, quiet_libraries


@pytest.fixture
def logger():
    logger = logging.getLogger("transformers")
    before = list(logger.filters)
    yield logger
    logger.filters[:] = before


def test_of_transformers_warnings_only_the_one_about_pytorch_is_dropped(logger, caplog):
    quiet_libraries()
    logger.addHandler(caplog.handler)
    logger.warning("PyTorch was not found. Models won't be available")
    logger.warning("a tokenizer's warning")
    logger.removeHandler(caplog.handler)
    assert {record.getMessage() for record in caplog.records} == {"a tokenizer's warning"}


def test_a_configurations_ids_of_tokens_are_not_told_and_its_errors_are(caplog):
    logger = logging.getLogger("transformers.configuration_utils")
    before = list(logger.filters)
    quiet_libraries()
    logger.addHandler(caplog.handler)
    logger.warning("Model config: eos_token_id must be `None` or an integer within the vocabulary")
    logger.error("Can't set key with value 1")
    logger.removeHandler(caplog.handler)
    logger.filters[:] = before
    assert {record.getMessage() for record in caplog.records} == {"Can't set key with value 1"}


def test_a_warning_of_our_own_is_one_note_and_others_stay(capsys):
    with warnings.catch_warnings(record=True) as others:
        warnings.simplefilter("always")
        quiet_libraries()
        for line in (1, 2):
            warnings.warn_explicit("passes over x: why", UserWarning, targets.__file__, line)
            warnings.warn_explicit("of a library", UserWarning, "/lib/numpy/a.py", line)
    said = capsys.readouterr().err
    assert said.count("passes over x") == said.count("note: passes over x: why\n") == 1
    assert [str(one.message) for one in others] == ["of a library"] * 2


def test_in_a_log_libraries_show_no_bars_unless_asked(monkeypatch, logger):
    hub, datasets = BARS
    monkeypatch.setenv(hub, "0")
    monkeypatch.setenv(datasets, "")
    del os.environ[datasets]  # restored after the test
    quiet_libraries()
    assert (os.environ[hub], os.environ[datasets]) == ("0", "1")
