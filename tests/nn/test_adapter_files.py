import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

import increlora_jax as il
from increlora_jax.core.adapter import Adapter, Slots
from increlora_jax.errors import InputError, WriteError
from increlora_jax.nn.adapter_files import (
    CONFIG,
    TENSORS,
    load_adapter,
    read_adapter_config,
    save_adapter,
)
from increlora_jax.nn.skeleton import split
from increlora_jax.quantization import store_quantized

SAID = {
    "method": "increlora",
    "base_model": "some/where",
    "quantize_base": "nf4",
    "task": "sst2",
    "labels": ["schön", "bad"],
    "identity": {"base model": "abc"},
    "step": 3,
    "total_steps": 9,
    "lora_alpha": 16.0,
    "scaling": "rank",
    "ranks": {"mix": 2},
}


def trains_head(path):
    return path.startswith("head.")


@pytest.fixture
def parts(make_net, attach_all, stir):
    model = stir(attach_all(make_net(), targets=["query", "blocks.0", "mix"]))
    model.mix.adapter.lambda_born[...] = model.mix.adapter.lambda_born[...].at[2].set(17)
    return split(model, trains_head)[1]


@pytest.fixture
def blank(make_net, attach_all):
    """The same model before training."""
    return split(attach_all(make_net(), targets=["query", "blocks.0", "mix"]), trains_head)[1]


@pytest.fixture
def saved(parts, tmp_path):
    save_adapter(tmp_path / "adapter", parts, SAID)
    return tmp_path / "adapter"


def rewrite(folder, change):
    """Change the saved tensors."""
    tensors = dict(load_file(folder / TENSORS))
    change(tensors)
    save_file(tensors, folder / TENSORS)


def test_what_is_saved_is_loaded_bit_for_bit(saved, parts, blank):
    loaded = load_adapter(saved, blank)
    got, expected = (jax.tree.flatten((p.adapters, p.slots, p.head)) for p in (loaded, parts))
    assert got[1] == expected[1]
    for a, b in zip(got[0], expected[0], strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    assert loaded.base is blank.base


def test_the_file_holds_slots_masks_and_head_and_no_base(saved, parts):
    names = set(load_file(saved / TENSORS))
    fields = (*Adapter._fields, *Slots._fields)
    assert names == {
        *(f"{m}.adapter.{f}" for m in ("attention.query", "blocks.0", "mix") for f in fields),
        "head.kernel",
        "head.bias",
    }


def test_config_is_read_as_it_was_told(saved):
    applied = {"lora_alpha": 16.0, "scaling": "rank"}
    assert read_adapter_config(saved) == SAID | {"applied": applied}
    assert sorted(path.name for path in saved.iterdir()) == sorted([CONFIG, TENSORS])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("mix.adapter.lam"), "mix.adapter.lam is missing"),
        (lambda t: t.pop("head.bias"), "head.bias is missing"),
        (lambda t: t.update(more=np.zeros(2)), "more belongs to nothing in this model"),
        (
            lambda t: t.update({"head.bias": np.zeros(4, np.float32)}),
            r"head.bias is F32 \[4\], the model wants F32 \[3\]",
        ),
        (
            lambda t: t.update({"head.bias": np.zeros(3)}),
            r"head.bias is F64 \[3\], the model wants F32 \[3\]",
        ),
    ],
)
def test_an_adapter_of_another_model_is_refused(saved, blank, change, message):
    rewrite(saved, change)
    with pytest.raises(InputError, match=f"{TENSORS}: {message}; is it an adapter of another"):
        load_adapter(saved, blank)


@pytest.mark.parametrize("size", [0, 4, 100, -1])
def test_a_truncated_file_is_refused(saved, blank, size):
    content = (saved / TENSORS).read_bytes()
    (saved / TENSORS).write_bytes(content[:size])
    with pytest.raises(InputError, match=r"adapter_model.safetensors: not a readable"):
        load_adapter(saved, blank)


def test_a_folder_without_an_adapter_is_refused(tmp_path, blank):
    with pytest.raises(InputError, match="not a readable safetensors file"):
        load_adapter(tmp_path, blank)
    with pytest.raises(InputError, match=r"adapter_config.json cannot be read"):
        read_adapter_config(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "adapter_config.json:1: not valid JSON"),
        (b"[1]", "adapter_config.json: holds no JSON object"),
        (b'{"a": "\xff"}', "adapter_config.json:1: not UTF-8"),
        (json.dumps(SAID | {"step": "3"}).encode(), "json: step is '3' where int is needed"),
        (json.dumps(SAID | {"identity": {"data": 1}}).encode(), "identity is .* where dict"),
        (json.dumps(SAID | {"auto_map": {}}).encode(), "json: unknown key 'auto_map'"),
        (
            json.dumps({k: SAID[k] for k in SAID if k != "total_steps"}).encode(),
            "json: 'total_steps' is missing",
        ),
    ],
)
def test_a_damaged_config_is_refused(saved, content, message):
    (saved / CONFIG).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_adapter_config(saved)


def test_a_new_adapter_replaces_the_old_one_and_leaves_nothing_beside_it(saved, parts, blank):
    (saved / "stray").write_text("of the old one")
    changed = parts._replace(head={name: v + 1 for name, v in parts.head.items()})
    save_adapter(saved, changed, SAID | {"step": 4})
    loaded = load_adapter(saved, blank)
    np.testing.assert_array_equal(loaded.head["head.bias"], changed.head["head.bias"])
    assert read_adapter_config(saved)["step"] == 4
    assert [path.name for path in saved.parent.iterdir()] == ["adapter"]
    assert not (saved / "stray").exists()


FULL_DISK = """
import json, resource, signal, sys
from pathlib import Path
import jax.numpy as jnp
from increlora_jax.errors import WriteError
from increlora_jax.nn.skeleton import Parts
from increlora_jax.nn.adapter_files import save_adapter

folder, config = Path(sys.argv[1]), json.loads(sys.argv[2])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    save_adapter(folder, Parts({}, {}, {"head.bias": jnp.zeros(1_000_000)}, {}), config)
except WriteError as error:
    print(error)
    sys.exit(4)
"""


def test_the_old_adapter_stays_whole_if_the_disk_is_full(saved, parts, blank):
    """A file may not grow beyond 100 kB there, which for who writes it is a disk without room."""
    command = [sys.executable, "-c", FULL_DISK, str(saved), json.dumps(SAID | {"step": 4})]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 4, done.stderr[-2000:]
    assert f"{saved} cannot be written" in done.stdout
    np.testing.assert_array_equal(
        load_adapter(saved, blank).head["head.bias"], parts.head["head.bias"]
    )
    applied = {"lora_alpha": 16.0, "scaling": "rank"}
    assert read_adapter_config(saved) == SAID | {"applied": applied}
    assert [path.name for path in saved.parent.iterdir()] == ["adapter"]


def test_a_place_where_nothing_can_be_written_is_told(parts, tmp_path):
    (tmp_path / "run").write_text("a file where a folder has to be")
    with pytest.raises(WriteError, match=r"run/adapter cannot be written"):
        save_adapter(tmp_path / "run" / "adapter", parts, SAID)


def test_the_old_adapter_stays_whole_if_the_config_is_no_json(saved, parts, blank):
    with pytest.raises(TypeError):
        save_adapter(saved, parts, {"step": object()})
    assert [path.name for path in saved.parent.iterdir()] == ["adapter"]
    assert read_adapter_config(saved)["step"] == 3
    load_adapter(saved, blank)


def test_leftovers_of_a_killed_save_do_not_matter(saved, parts, blank):
    for name in (".adapter.new", ".adapter.old"):
        (saved.parent / name / "deep").mkdir(parents=True)
    save_adapter(saved, parts, SAID | {"step": 5})
    assert read_adapter_config(saved)["step"] == 5
    assert [path.name for path in saved.parent.iterdir()] == ["adapter"]


def test_a_save_killed_between_its_two_renames_leaves_the_old_one(saved, parts, blank):
    saved.rename(saved.with_name(".adapter.old"))
    applied = {"lora_alpha": 16.0, "scaling": "rank"}
    assert read_adapter_config(saved) == SAID | {"applied": applied}
    np.testing.assert_array_equal(
        load_adapter(saved, blank).head["head.bias"], parts.head["head.bias"]
    )


def test_a_file_that_claims_more_than_the_model_has_is_refused_unread(saved, blank):
    """Of a thin file, which takes no room on disk but as much memory as it claims."""
    shapes = {name: value.shape for name, value in load_file(saved / TENSORS).items()}
    size = 1 << 40
    header = {name: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for name in shapes} | {
        "head.bias": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}
    }
    raw = json.dumps(header).encode()
    with (saved / TENSORS).open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + size)
    with pytest.raises(InputError, match=r"is it an adapter of another model"):
        load_adapter(saved, blank)


def test_parents_are_made(parts, tmp_path):
    save_adapter(tmp_path / "not" / "yet" / "adapter", parts, {"identity": {}})
    written = json.loads((tmp_path / "not/yet/adapter" / CONFIG).read_text())
    assert written == {"identity": {}, "applied": {"lora_alpha": 16.0, "scaling": "rank"}}


def test_bfloat16_adapters_survive(make_net, attach_all, tmp_path):
    narrow = split(attach_all(make_net(), targets=["mix"], dtype=jnp.bfloat16), trains_head)[1]
    save_adapter(tmp_path / "adapter", narrow, {})
    loaded = load_adapter(tmp_path / "adapter", narrow)
    assert loaded.adapters["mix"].A.dtype == jnp.bfloat16
    np.testing.assert_array_equal(loaded.adapters["mix"].A, narrow.adapters["mix"].A)


@pytest.mark.parametrize("kind", ["nf4", "int8", "bfloat16"])
def test_a_base_of_other_values_is_refused_and_a_rounded_one_is_not(tmp_path, kind):
    def parts_of(seed, kind=None):
        model = nnx.Sequential(nnx.Linear(64, 64, rngs=nnx.Rngs(seed)))
        if kind in ("nf4", "int8"):
            store_quantized(model, "all-linear", kind)
        elif kind:
            model.layers[0].kernel[...] = model.layers[0].kernel.astype(kind)
        return il.split(il.attach(model), lambda path: False)[1]

    il.save_adapter(tmp_path / "a", parts_of(0))
    il.load_adapter(tmp_path / "a", parts_of(0, kind))
    with pytest.raises(InputError, match=r"over another base: layers\.0\.kernel has other values"):
        il.load_adapter(tmp_path / "a", parts_of(1, kind))
