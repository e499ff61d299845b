"""Folders of weights: whole, sharded, damaged, absent."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from increlora_jax.errors import InputError
from increlora_jax.weights.tensor_files import list_tensors, list_weights

FIRST = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "steps": np.arange(4)}
SECOND = {"b": np.ones(5, np.float16)}


@pytest.fixture
def sharded(tmp_path):
    """A folder of two shards, and a function that writes its index."""
    save_file(FIRST, tmp_path / "model-00001-of-00002.safetensors")
    save_file(SECOND, tmp_path / "model-00002-of-00002.safetensors")

    def write_index(content):
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / "model.safetensors.index.json").write_text(text)
        return tmp_path

    return write_index


def number_shard(number):
    return f"model-0000{number}-of-00002.safetensors"


def test_single_file_is_listed_and_read(tmp_path):
    save_file(FIRST | SECOND, tmp_path / "model.safetensors")
    tensors = list_tensors(tmp_path)
    assert {key: (tensor.shape, tensor.dtype) for key, tensor in tensors.items()} == {
        "a": ((2, 3), "F32"),
        "steps": ((4,), "I64"),
        "b": ((5,), "F16"),
    }
    np.testing.assert_array_equal(tensors["a"].read(), FIRST["a"])


def test_integers_are_listed_but_not_read(tmp_path):
    save_file(FIRST, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"steps holds I64 .*unquantised"):
        list_tensors(tmp_path)["steps"].read()


def test_shards_are_one_listing(sharded):
    index = {"weight_map": {"a": number_shard(1), "steps": number_shard(1), "b": number_shard(2)}}
    tensors = list_tensors(sharded(index))
    assert tensors.keys() == {"a", "steps", "b"}
    np.testing.assert_array_equal(tensors["b"].read(), SECOND["b"])


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{not json", "json:1: not valid JSON"),
        ({}, "'weight_map' is missing"),
        ({"weight_map": ["a"]}, r"weight_map is \['a'\] where dict"),
        ({"weight_map": {"a": ["x"]}}, "where dict"),
        ({"weight_map": {"a": 3}}, "where dict"),
        ({"weight_map": {"a": "../model.safetensors"}}, "is not the name of a file in"),
        ({"weight_map": {"a": "/etc/passwd"}}, "is not the name of a file in"),
        ({"weight_map": {"a": number_shard(2)}}, "a should be in model-00002"),
        ({"weight_map": {"c": number_shard(1)}}, "c should be in model-00001"),
        ({"weight_map": {"a": number_shard(3)}}, r"model-00003.*not a readable"),
    ],
)
def test_an_index_that_is_wrong_is_refused(index, message, sharded):
    with pytest.raises(InputError, match=message):
        list_tensors(sharded(index))


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 9, 40, 0.5, -1])
def test_a_file_cut_short_is_named(kept, tmp_path):
    file = tmp_path / "model.safetensors"
    save_file(FIRST, file)
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content)) if kept == 0.5 else kept])
    with pytest.raises(InputError, match=rf"^{file}: not a readable .*get it again"):
        list_tensors(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 90868376\n",
        b"\xff" * 64,
        (64).to_bytes(8, "little")
        + b'{"a":{"dtype":"F32","shape":[9999999999],"data_offsets":[0,4]}}'.ljust(64)
        + b"1234",
    ],
)
def test_nonsense_is_refused(content, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="not a readable safetensors file"):
        list_tensors(tmp_path)


def test_a_header_that_is_no_json_is_refused(tmp_path):
    header = b'{"a": "nonsense"'
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(InputError, match="not valid JSON"):
        list_tensors(tmp_path)


def test_shards_may_lie_in_folders_and_links_may_not_lead_out(sharded):
    index = {"weight_map": {"a": "deep/x.safetensors", "steps": "deep/x.safetensors"}}
    folder = sharded(index)
    (folder / "deep").mkdir()
    (folder / number_shard(1)).rename(folder / "deep" / "x.safetensors")
    assert list_tensors(folder).keys() == FIRST.keys()
    outside = folder.parent / f"{folder.name}-outside"
    (folder / "deep").rename(outside)
    (folder / "deep").symlink_to(outside)
    with pytest.raises(InputError, match=r"index.json: deep/x.safetensors is a link that leads"):
        list_tensors(folder)


def test_the_files_of_the_weights_are_those_that_are_read(sharded, tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    folder = sharded({"weight_map": {"a": number_shard(1), "b": number_shard(2)}})
    assert list_weights(folder) == [index, folder / number_shard(1), folder / number_shard(2)]
    save_file(FIRST, tmp_path / "model.safetensors")
    assert list_weights(folder) == [tmp_path / "model.safetensors"]


def test_an_empty_folder_says_what_belongs_there(tmp_path):
    with pytest.raises(InputError, match=r"none of model\.safetensors.*pytorch_model\.bin"):
        list_tensors(tmp_path)
    with pytest.raises(InputError, match=r"none of model\.safetensors.*pytorch_model\.bin"):
        list_weights(tmp_path)


def test_safetensors_go_before_pickled_weights(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"never opened")
    save_file(FIRST, tmp_path / "model.safetensors")
    assert list_tensors(tmp_path).keys() == FIRST.keys()


def test_pickled_shards_are_one_listing(tmp_path):
    torch = pytest.importorskip("torch")
    parts = {"pytorch_model-1.bin": ["a", "steps"], "pytorch_model-2.bin": ["b"]}
    everything = FIRST | SECOND
    for name, keys in parts.items():
        torch.save({key: torch.from_numpy(everything[key]) for key in keys}, tmp_path / name)
    index = {"weight_map": {key: name for name, keys in parts.items() for key in keys}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    tensors = list_tensors(tmp_path)
    assert {key: tensor.dtype for key, tensor in tensors.items()} == {
        "a": "F32",
        "steps": "I64",
        "b": "F16",
    }
    np.testing.assert_array_equal(tensors["b"].read(), SECOND["b"])
