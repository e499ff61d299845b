import json
import struct

import numpy as np
import pytest
from safetensors.numpy import load_file

from increlora_jax.errors import InputError
from increlora_jax.files.tensors import Claim, open_tensors, read_claims, write_tensors

A = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


def craft(path, header, body=b"1234", length=None):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    start = struct.pack("<Q", len(header) if length is None else length)
    path.write_bytes(start + header + body)
    return path


def test_what_is_written_is_claimed_and_read(tmp_path):
    tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(True)}
    write_tensors(tensors, tmp_path / "x")
    assert read_claims(tmp_path / "x") == {"a": Claim("F32", (2, 3)), "b": Claim("BOOL", ())}
    with open_tensors(tmp_path / "x") as reader:
        for name, value in tensors.items():
            np.testing.assert_array_equal(reader.get_tensor(name), value)
    assert load_file(tmp_path / "x").keys() == tensors.keys()


def test_an_array_is_written_as_it_reads_whatever_its_memory(tmp_path):
    grid = np.arange(12, dtype=np.float32).reshape(3, 4)
    tensors = {
        "transposed": grid.T,
        "every second": grid[:, ::2],
        "backwards": grid[::-1],
        "broadcast": np.broadcast_to(np.float32(7), (5, 2)),
        "big-endian": grid.T.astype(">f4"),
    }
    write_tensors(tensors, tmp_path / "x")
    for name, value in load_file(tmp_path / "x").items():
        np.testing.assert_array_equal(value, tensors[name])


def test_a_file_that_cannot_be_written_is_an_error_of_the_system(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        write_tensors({"a": np.zeros(2)}, tmp_path / "nowhere" / "x")


@pytest.mark.parametrize("length", [0, 1, 12, 2**24 + 1, 2**40, 2**63, 2**64 - 1])
def test_a_header_longer_than_its_file_is_refused(tmp_path, length):
    with pytest.raises(InputError, match=r"x.*: not (a readable safetensors|valid JSON)"):
        read_claims(craft(tmp_path / "x", b"{}", b"", length))


def test_a_header_of_gigabytes_is_refused_though_the_file_is_as_long(tmp_path):
    path = craft(tmp_path / "x", b"{}", b"", 2**33)
    with path.open("r+b") as file:
        file.truncate(2**34)  # takes no room
    with pytest.raises(InputError, match="its header claims 8589934592"):
        read_claims(path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"a": A | {"shape": [1] * 33}}, "a claims a shape that no tensor has"),
        ({"a": A | {"shape": [0, 2**62], "data_offsets": [0, 0]}}, "a claims a shape"),
        ({"a": A | {"shape": [-1, -1]}}, "a claims a shape"),
        ({"a": A | {"shape": [2**62, 4]}}, "a claims a shape"),
        ({"a": A | {"shape": [10**9]}}, "not a readable safetensors file"),
        ({"a": A | {"shape": [True]}}, r"shape is \[True\] where list\[int\]"),
        ({"a": A | {"dtype": "F8192"}}, "not a readable safetensors file"),
        ({"a": A | {"dtype": 7}}, "dtype is 7 where str is needed"),
        ({"a": A | {"data_offsets": [4, 8]}}, "not a readable safetensors file"),
        ({"a": A, "b": A}, "not a readable safetensors file"),
        ({"a": A | {"more": 1}}, "unknown key 'more'"),
        ({"a": {}}, "'dtype' is missing"),
        ({"a": [1]}, "a is described by no object"),
        ({"__metadata__": {"a": 1}, "a": A}, "not a readable safetensors file"),
        ([1], "holds no JSON object"),
        (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
         b'"a":{"dtype":"I32","shape":[1],"data_offsets":[0,4]}}', "'a' appears twice"),
        (b"[" * 100_000, "not valid JSON"),
        (b"\xff", "not UTF-8"),
    ],
)  # fmt: skip
def test_a_header_that_lies_is_refused(tmp_path, header, message):
    with pytest.raises(InputError, match=message):
        read_claims(craft(tmp_path / "x", header))


def test_bytes_after_the_last_tensor_are_refused(tmp_path):
    with pytest.raises(InputError, match="not a readable safetensors file"):
        read_claims(craft(tmp_path / "x", {"a": A}, b"1234and more"))


def test_what_is_no_file_is_refused(tmp_path):
    (tmp_path / "zero").symlink_to("/dev/zero")
    for path in (tmp_path / "zero", tmp_path / "nothing", tmp_path):
        with pytest.raises(InputError, match="not a readable safetensors file"):
            read_claims(path)
