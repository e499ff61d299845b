"""Encoded splits on disk: found again, never stale, never trusted if damaged."""

import os
import time
from dataclasses import replace

import jax
import numpy as np
import pytest

from increlora_jax.config import TaskConfig
from increlora_jax.run import token_cache
from increlora_jax.run.token_cache import encode_or_load, identify_encoding
from increlora_jax.tasks.labelled_texts import Texts
from increlora_jax.tasks.windows import Windows
from tests.tasks.test_batching import encoded_of


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Keep every encoding, in a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(token_cache, "WORTH_KEEPING", 0.0)
    return tmp_path / "increlora_jax" / "tokens"


class Counted:
    """An encoding that counts how often it is made."""

    def __init__(self, lengths=(3, 1, 2)):
        self.calls = 0
        self._lengths = np.array(lengths)

    def __call__(self):
        self.calls += 1
        spans = np.zeros((6, 2), np.int32)
        beside = Windows(np.arange(3), spans, np.array([0, 3, 4, 6]))
        return replace(encoded_of(self._lengths), beside=beside._asdict(), notes=("a note",))


def test_an_encoding_is_made_once_and_is_the_same_when_read(folder):
    encode = Counted()
    made, read = encode_or_load("key", encode), encode_or_load("key", encode)
    assert encode.calls == 1
    assert read.notes == made.notes
    kinds = [jax.tree.leaves((e.ragged, e.fixed, e.beside)) for e in (made, read)]
    for one, other in zip(*kinds, strict=True):
        np.testing.assert_array_equal(one, other)
        assert np.asarray(one).dtype == np.asarray(other).dtype
    assert folder.stat().st_mode & 0o777 == 0o700
    assert len(list(folder.iterdir())) == 1


def test_a_quick_encoding_is_not_kept(folder, monkeypatch):
    monkeypatch.setattr(token_cache, "WORTH_KEEPING", 60.0)
    encode_or_load("key", Counted())
    assert not folder.exists()


@pytest.mark.parametrize("damage", [lambda c: c[:-1], lambda c: b"", lambda c: c[:-9] + b"x" * 9])
def test_a_damaged_file_is_said_and_made_again(folder, damage, capsys):
    encode = Counted()
    encode_or_load("key", encode)
    (path,) = folder.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert len(encode_or_load("key", encode)) == 3
    assert f"note: tokenizing again, as {path} is damaged" in capsys.readouterr().err
    assert len(encode_or_load("key", encode)) == 3
    assert encode.calls == 2


def test_a_folder_of_somebody_else_is_neither_read_nor_written(folder, monkeypatch, capsys):
    encode = Counted()
    encode_or_load("key", encode)
    mine = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: mine + 1)
    monkeypatch.setattr(token_cache, "open_tensors", None)
    encode_or_load("key", encode)
    assert encode.calls == 2
    assert "tokens are not kept" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_costs_nothing_but_a_note(folder, capsys):
    folder.parent.mkdir()
    folder.write_text("")
    assert len(encode_or_load("key", Counted())) == 3
    assert f"note: tokens are not kept: {folder} cannot be used" in capsys.readouterr().err


def test_what_was_read_least_recently_is_removed(folder, monkeypatch):
    for key, seconds in (("a", 100), ("b", 200), ("c", 300)):
        encode_or_load(key, Counted())
        (path,) = folder.glob(f"{key}-*")
        os.utime(path, (seconds, seconds))
    encode_or_load("a", Counted())  # read: now the most recent
    monkeypatch.setattr(token_cache, "MOST_BYTES", 3 * path.stat().st_size)
    encode_or_load("d", Counted())
    assert sorted(file.name[0] for file in folder.iterdir()) == ["a", "c", "d"]


def test_what_a_killed_process_has_left_is_removed_after_a_day(folder):
    encode_or_load("a", Counted())
    for name, age in (("old", 90_000), ("new", 60)):
        (folder / f".{name}").mkdir()
        (folder / f".{name}" / "encoded").write_bytes(b"x")
        os.utime(folder / f".{name}", (time.time() - age,) * 2)
    encode_or_load("b", Counted())
    assert sorted(path.name[:4] for path in folder.iterdir() if path.is_dir()) == [".new"]


def texts(*words):
    return Texts(list(words), None, np.zeros(len(words), np.int32))


def test_the_key_is_of_all_that_an_encoding_depends_on():
    task = TaskConfig(model="a", data_dir="b")
    key = identify_encoding(task, "tokenizer", texts("one", "two"), "train")
    moved = replace(task, model="x", data_dir="y")
    assert identify_encoding(moved, "tokenizer", texts("one", "two"), "train") == key
    others = [
        (replace(task, max_seq_length=64), "tokenizer", texts("one", "two"), "train"),
        (replace(task, doc_stride=5), "tokenizer", texts("one", "two"), "train"),
        (task, "another", texts("one", "two"), "train"),
        (task, "tokenizer", texts("one", "too"), "train"),
        (task, "tokenizer", texts("one", "two"), "dev"),
    ]
    assert len({identify_encoding(*other) for other in others} | {key}) == 6
