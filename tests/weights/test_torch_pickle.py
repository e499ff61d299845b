"""The pickles of weight files: what is admitted, and that nothing else is run or claimed."""

import os
import pickle
from collections import OrderedDict
from io import BytesIO

import pytest

from increlora_jax.weights.torch_pickle import ForbiddenImportError, Storage, View, interpret

REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


def reference(*, kind=b"FloatStorage", key=b"0", length=6, further=b""):
    """Say that a storage is kept elsewhere, as `torch.save` does."""
    words = b"X\x07\0\0\0storage" + b"ctorch\n" + kind + b"\nX" + len(key).to_bytes(4, "little")
    return b"(" + words + key + b"X\x03\0\0\0cpuJ" + length.to_bytes(4, "little") + further + b"tQ"


def tensor(storage, offset=0, shape=(2, 3), strides=(3, 1)):
    """Say how a tensor lies in a storage; numbers of any kind are pickled as they are."""
    rest = b"".join(pickle.dumps(item, 2)[2:-1] for item in (offset, shape, strides))
    return REBUILD + b"(" + storage + rest + b"\x89)tR"


def interpret_bytes(content):
    return interpret(BytesIO(b"\x80\x02" + content + b"."))


def test_a_tensor_is_a_view_of_a_storage():
    view, storages = interpret_bytes(tensor(reference(), 1, (2, 2), (3, 1)))
    assert view == View(Storage("0", "F32", 6), 1, (2, 2), (3, 1))
    assert view.span == 5
    assert storages == {"0": Storage("0", "F32", 6)}
    assert storages["0"].bytes == 24


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_comes_as_the_standard_library_reads_it(protocol):
    data = {"n": [1, 300, 70_000, 2**70, -1], "x": (True, False, None, 1.5, ()), "": {"é": "y" * 9}}
    source = BytesIO(pickle.dumps(data, protocol) + b"rest")
    assert interpret(source).value == data
    assert source.read() == b"rest"


def test_attributes_of_a_dictionary_are_left_out():
    weights = OrderedDict()
    weights._metadata = OrderedDict(version=1)
    assert interpret(BytesIO(pickle.dumps(weights, 2))).value == {}


class Malice:
    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    ("function", "name"), [(os.system, f"{os.name}.system"), (eval, r"(__)?builtin(s|__)\.eval")]
)
def test_what_is_not_a_tensor_is_named_and_never_called(function, name, protocol, tmp_path):
    harm = tmp_path / "harm"
    order = f"open({str(harm)!r}, 'w')" if function is eval else f"touch {harm}"
    content = pickle.dumps({"a": Malice(function, order)}, protocol)
    content = content if protocol else content[content.index(b"c") :]  # opens with text opcodes
    with pytest.raises(ForbiddenImportError, match=rf"^{name}$"):
        interpret(BytesIO(content))
    assert not harm.exists()


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"(S'ls'\nios\nsystem\n", "os.system"),
        (b"ctorch._utils\n_rebuild_tensor_v3\n", "torch._utils._rebuild_tensor_v3"),
        (b"ctorch.storage\nUntypedStorage\n", "torch.storage.UntypedStorage"),
        (b"cincrelora_jax.train\nmain\n", "increlora_jax.train.main"),
        (b"ccollections\nOrderedDict.__init__\n", "collections.OrderedDict.__init__"),
    ],
)
def test_other_imports_are_named(content, name):
    with pytest.raises(ForbiddenImportError, match=f"^{name}$"):
        interpret_bytes(content)


TUPLES = b")" + b"\x85" * 300_000
"""Nested so deeply that hashing or comparing them would overflow the stack of C."""


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"Nr\xff\xff\xff\x7f0", id="no opcode of tensors"),
        pytest.param(b"\x96" + b"\xff" * 7 + b"\x7f", id="claims exabytes"),
        pytest.param(b"B\xff\xff\xff\x7fabc", id="claims gigabytes"),
        pytest.param(b"}" + TUPLES + b"Ns", id="deep key"),
        pytest.param(b"(NNN" + TUPLES + b"NtQ", id="deep reference"),
        pytest.param(TUPLES + b")R", id="deep call"),
        pytest.param(b"N)R", id="calls nothing"),
        pytest.param(b"ctorch\nFloatStorage\n)R", id="calls a storage"),
        pytest.param(b"ccollections\nOrderedDict\n]R", id="calls with a list"),
        pytest.param(b"ccollections\nOrderedDict\n)\x81", id="makes an object"),
        pytest.param(b"ccollections\nOrderedDict\nK\x01\x85R", id="calls with an argument"),
        pytest.param(b"NK\x01a", id="appends to nothing"),
        pytest.param(b")K\x01K\x02s", id="sets an entry of nothing"),
        pytest.param(b"}(K\x01u", id="a key without a value"),
        pytest.param(b"}K\x01K\x02s", id="a key that is no string"),
        pytest.param(b"h\x05", id="recalls nothing"),
        pytest.param(b"t", id="no mark"),
        pytest.param(b"\x87", id="takes from an empty stack"),
        pytest.param(b"NN", id="leaves two values"),
        pytest.param(b"", id="leaves none"),
        pytest.param(b"\xff", id="no opcode"),
        pytest.param(b"K\x01Q", id="a number as reference"),
        pytest.param(reference(length=2**31), id="negative length"),
        pytest.param(reference(further=b"(K\x00K\x01K\x02t"), id="part of a storage"),
        pytest.param(reference() + reference(length=5) + b"\x86", id="two lengths"),
        pytest.param(reference() + reference(kind=b"HalfStorage") + b"\x86", id="two kinds"),
        pytest.param(tensor(b"K\x01"), id="no storage"),
        pytest.param(tensor(reference(length=5)), id="too large"),
        pytest.param(tensor(reference(), 1), id="over the end"),
        pytest.param(tensor(reference(), -1), id="before the start"),
        pytest.param(tensor(reference(), True), id="offset of another type"),
        pytest.param(tensor(reference(), 0, (2, -3)), id="negative axis"),
        pytest.param(tensor(reference(), 3, (2, 3), (-3, 1)), id="negative stride"),
        pytest.param(tensor(reference(), 0, (2**40,), (0,)), id="expanded"),
        pytest.param(tensor(reference(), 0, (2, 3), (1,)), id="a stride too few"),
        pytest.param(tensor(reference(), 0, (1,) * 40, (1,) * 40), id="too many axes"),
        pytest.param(tensor(reference(), 0, (2.0, 3), (3, 1)), id="not whole"),
    ],
)
def test_nonsense_is_refused(content):
    with pytest.raises((ValueError, LookupError, TypeError)):
        interpret_bytes(content)


def test_a_memo_of_any_index_costs_one_entry():
    assert interpret_bytes(b"Nr\xff\xff\xff\x7f").value is None
