"""What makes a model another model: a byte of its content, and nothing around it."""

import json
import os
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

from increlora_jax.errors import InputError
from increlora_jax.weights.identity import TOKENIZER_NAMES, identify_model, identify_tokenizer


@pytest.fixture
def folder(tmp_path):
    """A folder as the commands see it; nothing is read of it but bytes."""
    save_file({"a": np.arange(4.0)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    for name in ("vocab.txt", "tokenizer_config.json"):
        (tmp_path / name).write_text(f"of {name}")
    (tmp_path / "README.md").write_text("hello")
    return tmp_path


def identify(folder):
    return identify_model(folder), identify_tokenizer(folder)


def flip(path, at=-1):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "changes_model"),
    [
        ("model.safetensors", True),
        ("config.json", True),
        ("vocab.txt", False),
        ("tokenizer_config.json", False),
    ],
)
def test_one_bit_of_content_makes_another(folder, name, changes_model):
    before = identify(folder)
    flip(folder / name)
    after = identify(folder)
    assert (before[0] != after[0]) is changes_model
    assert (before[1] != after[1]) is not changes_model
    flip(folder / name)
    assert identify(folder) == before


def test_place_time_and_other_files_make_no_other(folder, tmp_path_factory):
    before = identify(folder)
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "model"
    shutil.copytree(folder, elsewhere)
    for path in elsewhere.iterdir():
        os.utime(path, (1, 1))
    (elsewhere / "README.md").unlink()
    assert identify(elsewhere) == before


def test_a_file_more_or_under_another_name_makes_another_tokenizer(folder):
    before = identify_tokenizer(folder)
    (folder / "merges.txt").write_text("x")
    assert identify_tokenizer(folder) != before
    (folder / "merges.txt").unlink()
    (folder / "vocab.txt").rename(folder / "spm.model")
    assert identify_tokenizer(folder) != before


def test_every_file_of_a_tokenizer_counts(tmp_path):
    seen = {identify_tokenizer(tmp_path)}
    for name in TOKENIZER_NAMES:
        (tmp_path / name).write_text("x")
        seen.add(identify_tokenizer(tmp_path))
    assert len(seen) == len(TOKENIZER_NAMES) + 1


def test_every_shard_and_the_index_count(folder):
    (folder / "model.safetensors").unlink()
    names = ["model-1.safetensors", "model-2.safetensors"]
    for name in names:
        save_file({name: np.zeros(3)}, folder / name)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: name for name in names}}))
    before = identify_model(folder)
    for path in (*(folder / name for name in names), index):
        content = path.read_bytes()
        if path == index:
            path.write_bytes(content + b"\n")
        else:
            flip(path)
        assert identify_model(folder) != before, path
        path.write_bytes(content)
    assert identify_model(folder) == before


def test_an_index_cannot_lead_elsewhere(folder, tmp_path_factory):
    (folder / "model.safetensors").unlink()
    secret = tmp_path_factory.mktemp("secret") / "model.safetensors"
    save_file({"a": np.zeros(3)}, secret)
    index = folder / "model.safetensors.index.json"
    for name in (str(secret), os.path.relpath(secret, folder)):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(InputError, match=r"index.json: .* is not the name of a file"):
            identify_model(folder)


def test_a_file_that_is_missing_is_named(folder):
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"config.json cannot be read"):
        identify_model(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"none of model.safetensors"):
        identify_model(folder)
