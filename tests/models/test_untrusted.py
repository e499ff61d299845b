"""Model folders made to do harm: nothing of them is run, written, or believed for its size."""

import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile

import pytest

from increlora_jax.errors import InputError
from increlora_jax.models.registry import load_model
from increlora_jax.weights.tensor_files import list_tensors
from increlora_jax.weights.tokenizer import load_tokenizer

ROOM = 1 << 29
"""Bytes that a process may claim for a hostile file beyond what it had before."""

CODE = "from pathlib import Path\nPath(__file__).with_name('harm').touch()\nclass Mine: ...\n"


class Malice:
    """Calls the shell when it is unpickled."""

    def __init__(self, order):
        self.order = order

    def __reduce__(self):
        return os.system, (self.order,)


@pytest.fixture
def folder(tiny_model, tmp_path):
    """A sound model folder, to be spoilt."""
    copy = tmp_path / "model"
    shutil.copytree(tiny_model, copy)
    return copy


def edit_config(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def write_header(file, header, size):
    """Write a safetensors file whose numbers take no room: a thin file."""
    raw = json.dumps(header).encode()
    with file.open("wb") as handle:
        handle.write(struct.pack("<Q", len(raw)) + raw)
        handle.truncate(8 + len(raw) + size)


def put_torch_file(folder, write):
    (folder / "model.safetensors").unlink()
    with zipfile.ZipFile(folder / "pytorch_model.bin", "w") as archive:
        write(archive)


def claim_a_header_of_exabytes(folder):
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")


def claim_a_header_as_long_as_a_thin_file(folder):
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", 2**40 - 8))
        file.truncate(2**40)


def claim_a_tensor_of_a_terabyte(folder):
    name = "bert.embeddings.word_embeddings.weight"
    entry = {"dtype": "F32", "shape": [2**34, 16], "data_offsets": [0, 2**40]}
    write_header(folder / "model.safetensors", {name: entry}, 2**40)


def claim_a_shape_of_nothing_and_much(folder):
    entry = {"dtype": "F32", "shape": [0, 2**62], "data_offsets": [0, 0]}
    write_header(folder / "model.safetensors", {"a": entry}, 0)


def put_a_thin_index(folder):
    (folder / "model.safetensors").unlink()
    with (folder / "model.safetensors.index.json").open("wb") as file:
        file.truncate(2**40)


def lead_a_shard_out_by_name(folder):
    (folder / "model.safetensors").rename(folder.parent / "secret.safetensors")
    index = {"weight_map": {"a": "../secret.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def lead_a_shard_out_by_a_link(folder):
    (folder / "model.safetensors").rename(folder.parent / "secret.safetensors")
    (folder / "shard").symlink_to(folder.parent / "secret.safetensors")
    index = {"weight_map": {"a": "shard"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def put_an_endless_config(folder):
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("/dev/zero")


def put_a_pipe(folder):
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")


def claim_a_billion_layers(folder):
    edit_config(folder, num_hidden_layers=10**9)


def claim_a_billion_labels(folder):
    edit_config(folder, num_labels=10**9)


def claim_a_vocabulary_without_end(folder):
    edit_config(folder, vocab_size=10**400)


def claim_a_large_vocabulary(folder):
    edit_config(folder, vocab_size=2**31)


def put_a_pickle(folder):
    order = f"touch {folder / 'harm'}"
    put_torch_file(folder, lambda z: z.writestr("x/data.pkl", pickle.dumps(Malice(order), 2)))


def put_a_bare_pickle(folder):
    (folder / "model.safetensors").unlink()
    order = f"touch {folder / 'harm'}"
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Malice(order)))


def put_names_that_leave_into_an_archive(folder):
    def write(archive):
        archive.writestr("../data.pkl", pickle.dumps({}, 2))
        archive.writestr("../../harm", b"x")
        archive.writestr(str(folder / "harm"), b"x")

    put_torch_file(folder, write)


def put_a_bomb_into_an_archive(folder):
    def write(archive):
        archive.writestr("x/data.pkl", b"\0" * (1 << 26), zipfile.ZIP_DEFLATED)

    put_torch_file(folder, write)


SPOILT = [
    claim_a_header_of_exabytes,
    claim_a_header_as_long_as_a_thin_file,
    claim_a_tensor_of_a_terabyte,
    claim_a_shape_of_nothing_and_much,
    put_a_thin_index,
    lead_a_shard_out_by_name,
    lead_a_shard_out_by_a_link,
    put_an_endless_config,
    put_a_pipe,
    claim_a_billion_layers,
    claim_a_billion_labels,
    claim_a_vocabulary_without_end,
    claim_a_large_vocabulary,
    put_a_pickle,
    put_a_bare_pickle,
    put_names_that_leave_into_an_archive,
    put_a_bomb_into_an_archive,
]

LOAD = """
import resource, sys
from pathlib import Path
from increlora_jax.errors import InputError
from increlora_jax.models.registry import load_model

load_model(Path(sys.argv[1]), num_labels=2)  # a sound one, so that all is claimed that ever is
# Of memory that is written to: a file may be mapped whatever its size.
pages = int(Path("/proc/self/statm").read_text().split()[5])
resource.setrlimit(resource.RLIMIT_DATA, (pages * resource.getpagesize() + int(sys.argv[2]),) * 2)
for folder in sys.argv[3:]:
    try:
        load_model(Path(folder), num_labels=2)
    except InputError as error:
        print(Path(folder).parent.name, error.args[0].replace(chr(10), " "))
"""


def test_every_spoilt_folder_is_refused_within_bounded_memory(tiny_model, tmp_path):
    folders = {}
    for spoil in SPOILT:
        folders[spoil.__name__] = tmp_path / spoil.__name__ / "model"
        shutil.copytree(tiny_model, folders[spoil.__name__])
        spoil(folders[spoil.__name__])
    before = set(tmp_path.rglob("*"))
    command = [sys.executable, "-c", LOAD, str(tiny_model), str(ROOM), *map(str, folders.values())]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    refused = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert refused.keys() == folders.keys()
    for name, message in refused.items():
        assert str(folders[name]) in message
    assert set(tmp_path.rglob("*")) == before  # nothing run, nothing written


@pytest.mark.parametrize("spoil", [put_a_pickle, put_a_bare_pickle])
def test_a_malicious_pickle_would_do_its_harm_elsewhere(folder, spoil):
    """That the test above sees harm where it is done."""
    spoil(folder)
    content = (folder / "pytorch_model.bin").read_bytes()
    if content.startswith(b"PK"):
        content = zipfile.ZipFile(folder / "pytorch_model.bin").read("x/data.pkl")
    pickle.loads(content)
    assert (folder / "harm").exists()
    (folder / "harm").unlink()
    with pytest.raises(InputError, match=rf"asks to import {os.name}\.system"):
        list_tensors(folder)
    assert not (folder / "harm").exists()


def test_code_that_comes_with_a_folder_is_never_run(folder):
    (folder / "code.py").write_text(CODE)
    edit_config(folder, auto_map={"AutoConfig": "code.Mine", "AutoModel": "code.Mine"})
    said = json.loads((folder / "tokenizer_config.json").read_text())
    said["auto_map"] = {"AutoTokenizer": ["code.Mine", "code.Mine"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    load_model(folder, num_labels=2)  # the type it names is one of ours, and that is what is used
    load_tokenizer(folder)
    assert not (folder / "harm").exists()


def test_a_folder_that_needs_its_own_code_is_refused(folder):
    (folder / "code.py").write_text(CODE)
    edit_config(folder, model_type="mine", auto_map={"AutoConfig": "code.Mine"})
    with pytest.raises(InputError, match=r"config.json: transformers cannot read it"):
        load_model(folder, num_labels=2)
    assert not (folder / "harm").exists()
