"""What libraries say beside our lines."""

import logging
import os

import pytest

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


def test_in_a_log_libraries_show_no_bars_unless_asked(monkeypatch, logger):
    hub, datasets = BARS
    monkeypatch.setenv(hub, "0")
    monkeypatch.setenv(datasets, "")
    del os.environ[datasets]  # restored after the test
    quiet_libraries()
    assert (os.environ[hub], os.environ[datasets]) == ("0", "1")
