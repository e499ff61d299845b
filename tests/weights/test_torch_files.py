"""PyTorch's own weight files of both formats: whole, odd, damaged and malicious."""

import io
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from increlora_jax.errors import InputError
from increlora_jax.weights.torch_files import list_torch_file

torch = pytest.importorskip("torch")

FORMATS = pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
FILE = "pytorch_model.bin"


def save(content, file, is_zip=True):
    torch.save(content, file, _use_new_zipfile_serialization=is_zip)
    return file


def make_weights():
    """Everything that a file of weights may hold."""
    shared = torch.arange(24.0).reshape(4, 6)
    module = torch.nn.Linear(2, 3)
    weights = module.state_dict()  # of the class OrderedDict, with an attribute
    return weights | {
        "shared": shared,
        "tied": shared,
        "transposed": shared.T,
        "part": shared[1:3, 1::2],
        "parameter": torch.nn.Parameter(shared[0]),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "double": torch.linspace(0, 1, 5, dtype=torch.float64),
        "half": torch.linspace(0, 1, 5).half(),
        "bfloat": torch.linspace(0, 1, 6).bfloat16().reshape(2, 3).mT,
    }


@FORMATS
@pytest.mark.parametrize("protocol", [2, 5])
def test_every_tensor_comes_as_it_was_saved(is_zip, protocol, tmp_path):
    weights, file = make_weights(), tmp_path / FILE
    torch.save(weights, file, pickle_protocol=protocol, _use_new_zipfile_serialization=is_zip)
    tensors = list_torch_file(file)
    assert tensors.keys() == weights.keys()
    for key, tensor in tensors.items():
        expected = weights[key].detach()
        assert tensor.shape == expected.shape
        array = tensor.read()
        assert array.itemsize == expected.itemsize
        np.testing.assert_array_equal(array.astype(np.float64), expected.double())


@FORMATS
def test_other_numbers_are_listed_but_not_read(is_zip, tmp_path):
    names = {
        "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
    }  # fmt: skip
    weights = {name: torch.ones(3, dtype=getattr(torch, name)) for name in names}
    weights["after"] = torch.ones(2)
    tensors = list_torch_file(save(weights, tmp_path / FILE, is_zip))
    assert {key: tensor.dtype for key, tensor in tensors.items()} == names | {"after": "F32"}
    np.testing.assert_array_equal(tensors["after"].read(), [1, 1])
    with pytest.raises(InputError, match=r"int64 holds I64 .*unquantised"):
        tensors["int64"].read()


@FORMATS
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.ones(2), "no dictionary"),
        ([torch.ones(2)], "no dictionary"),
        ({"model": {"a": torch.ones(2)}}, "model is no tensor"),
        ({"a": torch.ones(2), "epoch": 3}, "epoch is no tensor"),
        ({3: torch.ones(2)}, "key of a dictionary"),
        ({"a": torch.ones(2).to(torch.float8_e4m3fn)}, r"import torch\._utils\._rebuild_tensor_v3"),
        ({"a": torch.ones(2).to_sparse()}, r"import torch\._utils\._rebuild_sparse_tensor"),
        (torch.nn.Linear(1, 1), r"import torch\.nn\.modules\.linear\.Linear"),
    ],
)
def test_what_is_no_dictionary_of_tensors_is_refused(is_zip, content, message, tmp_path):
    file = save(content, tmp_path / FILE, is_zip)
    with pytest.raises(InputError, match=rf"{file}: .*{message}"):
        list_torch_file(file)


class Malice:
    def __init__(self, harm):
        self.harm = harm

    def __reduce__(self):
        return os.system, (f"touch {self.harm}",)


@FORMATS
def test_a_malicious_file_is_named_with_what_it_asks_for(is_zip, tmp_path):
    harm = tmp_path / "harm"
    file = save({"a": torch.ones(2), "b": Malice(harm)}, tmp_path / FILE, is_zip)
    with pytest.raises(InputError, match=rf"{file}: .*import {os.name}\.system.*Nothing of the"):
        list_torch_file(file)
    assert not harm.exists()


def test_a_bare_pickle_is_no_file_of_weights(tmp_path):
    harm = tmp_path / "harm"
    (tmp_path / FILE).write_bytes(pickle.dumps(Malice(harm)))
    with pytest.raises(InputError, match=rf"import {os.name}\.system"):
        list_torch_file(tmp_path / FILE)
    assert not harm.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 90868376\n",
        pickle.dumps({"a": 1}, 2),
        b"\0" * 4096,
    ],
)
def test_other_files_are_refused(content, tmp_path):
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(InputError, match=r"not a readable file of PyTorch weights.*download it"):
        list_torch_file(tmp_path / FILE)


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(InputError, match=rf"{tmp_path / FILE}: .*No such file"):
        list_torch_file(tmp_path / FILE)


@FORMATS
def test_a_file_cut_short_after_it_was_listed_is_named(is_zip, tmp_path):
    file = save({"a": torch.ones(3000)}, tmp_path / FILE, is_zip)
    tensor = list_torch_file(file)["a"]
    file.write_bytes(file.read_bytes()[:8000])
    with pytest.raises(InputError, match=rf"{file}: .*cut short"):
        tensor.read()


def rewrite_zip(file, change, compression=zipfile.ZIP_STORED):
    """Write the archive anew, each entry's bytes as `change` of its name gives them."""
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in change(entries).items():
            archive.writestr(name, content)
    return file


ARCHIVE = "pytorch_model"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e | {f"{ARCHIVE}/data/0": b"1234"}, "the storage 0 has the size 4, not 8"),
        (lambda e: e | {f"{ARCHIVE}/byteorder": b"big"}, "big-endian"),
        (lambda e: e | {f"{ARCHIVE}/data.pkl": b"\0" * (1 << 22) + b"\0"}, "claims 4194305 bytes"),
        (lambda e: e | {"other/data.pkl": b""}, "too many values"),
        (lambda e: {n: c for n, c in e.items() if n != f"{ARCHIVE}/data.pkl"}, "not enough"),
        (lambda e: {n: c for n, c in e.items() if n != f"{ARCHIVE}/data/0"}, "data/0"),
    ],
)
def test_an_archive_that_is_wrong_is_refused(change, message, tmp_path):
    file = rewrite_zip(save({"a": torch.ones(2)}, tmp_path / FILE), change)
    with pytest.raises(InputError, match=rf"{file}: .*{message}"):
        list_torch_file(file)


def test_an_archive_written_anew_is_read(tmp_path):
    file = rewrite_zip(save({"a": torch.ones(2)}, tmp_path / FILE), dict)
    np.testing.assert_array_equal(list_torch_file(file)["a"].read(), [1, 1])


def test_a_compressed_archive_is_refused(tmp_path):
    file = save({"a": torch.zeros(1_000_000)}, tmp_path / FILE)
    rewrite_zip(file, dict, zipfile.ZIP_DEFLATED)
    assert file.stat().st_size < 10_000
    with pytest.raises(InputError, match="is compressed or encrypted"):
        list_torch_file(file)


def test_two_entries_of_one_name_are_refused(tmp_path):
    file = save({"a": torch.ones(2)}, tmp_path / FILE)
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(file, "a") as archive:
        archive.writestr(f"{ARCHIVE}/data/0", b"12345678")
    with pytest.raises(InputError, match="two entries of one name"):
        list_torch_file(file)


def test_an_entry_that_reaches_out_of_the_file_is_refused(tmp_path):
    file = save({"a": torch.ones(2)}, tmp_path / FILE)
    content = bytearray(file.read_bytes())
    start = content.index(b"PK\x03\x04", content.index(f"{ARCHIVE}/data/0".encode()) - 40)
    content[start + 28 : start + 30] = b"\xff\xff"  # the length of the header's last field
    file.write_bytes(content)
    with pytest.raises(InputError, match="data/0 is outside of the file"):
        list_torch_file(file)


def test_a_legacy_length_that_is_not_the_storages_is_refused(tmp_path):
    file = save({"a": torch.ones(2)}, tmp_path / FILE, is_zip=False)
    content = file.read_bytes()
    file.write_bytes(content[:-16] + struct.pack("<q", 2**40) + content[-8:])
    with pytest.raises(InputError, match=f"has the size {2**40}, not 2"):
        list_torch_file(file)


def whole(is_zip):
    buffer = io.BytesIO()
    save(make_weights(), buffer, is_zip)
    return buffer.getvalue()


WHOLE = {is_zip: whole(is_zip) for is_zip in (True, False)}
fuzz = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)


def read_all(file):
    """Read every tensor that can be; anything but our own error passes through."""
    try:
        for tensor in list_torch_file(file).values():
            tensor.read()
    except InputError:
        return False
    return True


@FORMATS
@fuzz
@given(data=st.data())
def test_a_truncated_file_gives_no_other_error(is_zip, data, tmp_path):
    content = WHOLE[is_zip]
    kept = data.draw(st.integers(0, len(content) - 1))
    (tmp_path / FILE).write_bytes(content[:kept])
    assert not read_all(tmp_path / FILE)


@FORMATS
@fuzz
@given(data=st.data())
def test_changed_bytes_give_no_other_error(is_zip, data, tmp_path):
    content = bytearray(WHOLE[is_zip])
    # Half the changes go where the structure is: in the pickle at the start.
    places = st.integers(0, 2000) | st.integers(0, len(content) - 1)
    changes = st.lists(st.tuples(places, st.integers(1, 255)), min_size=1, max_size=4)
    for place, change in data.draw(changes):
        content[place % len(content)] ^= change
    (tmp_path / FILE).write_bytes(content)
    read_all(tmp_path / FILE)
