"""Meshes, layouts, and runs that must not depend on them."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from increlora_jax.core.adapter import Adapter
from increlora_jax.errors import InputError
from increlora_jax.quantization import QuantizedKernel
from increlora_jax.training.sharding import AXES, Layout, make_mesh
from increlora_jax.training.state import TrainState
from tests.meshes import BAD, ENVIRONMENT, LAYERS, RULES, SAVED

RTOL = 1e-9
"""Sums over devices are made in another order: in float64 that shows in the last digits only."""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data=4,fsdp=2", "--mesh data=4,fsdp=2 is a mesh of 8 devices, and there are 1."),
        ("data=2,data=2", "'data=2' is not understood. Give each of data, fsdp, tensor at most"),
        ("model=1", "'model=1' is not understood"),
        ("data=0", "'data=0' is not understood"),
        ("data=-1", "'data=-1' is not understood"),
        ("data", "'data' is not understood"),
        ("", "'' is not understood"),
        ("data=1;fsdp=1", "is not understood"),
    ],
)
def test_a_mesh_that_cannot_be_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        make_mesh(text)


@pytest.mark.parametrize("text", [None, "tensor=1", "data=1, fsdp=1"])
def test_axes_that_are_not_named_have_size_one(text):
    assert dict(make_mesh(text).shape) == {"data": 1, "fsdp": 1, "tensor": 1}


def abstract(data=1, fsdp=1, tensor=1, rules=RULES):
    return Layout(AbstractMesh((data, fsdp, tensor), AXES), rules)


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, np.float32)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("layers.7.kernel", "parameter layers.7.kernel: 0 rules .* instead of one"),
        ("twice", "parameter twice: 2 rules"),
    ],
)
def test_a_parameter_has_exactly_one_rule(name, message):
    rules = RULES | {"twice": (), "twic.": ()}
    with pytest.raises(InputError, match=message):
        abstract(rules=rules).shardings({name: shape(4, 4)})


@pytest.mark.parametrize(
    ("name", "sizes", "axis"),
    [("layers.0.kernel", (6, 8), "fsdp"), ("layers.1.kernel", (6, 8), "tensor")],
)
def test_an_axis_that_does_not_divide_a_parameter_is_named(name, sizes, axis):
    message = rf"--mesh {axis}=4 does not divide {name} \[6, 8\]. Give a size .* divides 6"
    with pytest.raises(InputError, match=message):
        abstract(**{axis: 4}).shardings({name: shape(*sizes)})


def test_rows_must_be_divided_evenly():
    layout = abstract(data=4, fsdp=2, tensor=3)
    layout.check_rows("--train-batch-size", 16)
    with pytest.raises(InputError, match="--train-batch-size 12 cannot be divided over 8 devices"):
        layout.check_rows("--train-batch-size", 12)


def test_what_is_adapted_in_a_stack_or_whole_is_divided_as_its_kernel():
    adapters = {
        "layers.0": Adapter(shape(6, 2), shape(2), shape(2, 8)),
        "layers.1": Adapter(shape(5, 6, 2), shape(5, 2), shape(5, 2, 8)),
        "head": Adapter(shape(6, 2), shape(2), shape(2, 8)),
    }
    specs = jax.tree.map(lambda s: s.spec, abstract(fsdp=2, tensor=2).shardings(adapters))
    none = PartitionSpec()
    assert specs == {
        "layers.0": Adapter(PartitionSpec("fsdp", None), none, PartitionSpec(None, "tensor")),
        "layers.1": Adapter(
            PartitionSpec(None, "tensor", None), none, PartitionSpec(None, None, "fsdp")
        ),
        "head": Adapter(PartitionSpec(None, None), none, PartitionSpec(None, None)),
    }


def test_a_stack_of_what_lies_alike_is_divided_as_the_first_of_it():
    layout = abstract(fsdp=2, tensor=2)
    names = ("layers.0", "layers.2")
    tree = {
        "adapters": {names: Adapter(shape(5, 6, 2), shape(5, 2), shape(5, 2, 8))},
        "base": {("layers.1.kernel",): shape(1, 6, 8)},
    }
    specs = jax.tree.map(lambda s: s.spec, layout.shardings(tree))
    assert PartitionSpec(None, "fsdp", None) == specs["adapters"][names].A
    assert PartitionSpec(None, None, "tensor") == specs["adapters"][names].B
    assert specs["base"]["layers.1.kernel",] == PartitionSpec(None, "tensor", "fsdp")


def test_runs_that_train_together_are_divided_as_each_alone_and_settings_not_at_all():
    layout = abstract(fsdp=2, tensor=2)
    state = TrainState(
        *(shape(5), shape(5), shape(5)),
        params={"layers.0": Adapter(shape(5, 6, 2), shape(5, 2), shape(5, 2, 8))},
        **{"slots": {}, "method": (), "opt_state": (), "settings": {"beta1": shape(5)}},
    )
    specs = jax.tree.map(lambda s: s.spec, layout.shardings(state, stack=1))
    assert specs.params["layers.0"] == Adapter(
        PartitionSpec(None, "fsdp", None), PartitionSpec(None), PartitionSpec(None, None, "tensor")
    )
    assert specs.settings["beta1"] == specs.step == PartitionSpec(None)


def test_a_quantised_kernel_is_divided_as_a_plain_one_and_its_scales_by_outputs():
    kernel = QuantizedKernel(shape(64, 8), shape(3, 8), "nf4")
    layout = abstract(fsdp=4, tensor=2)
    found = layout.shardings({"layers.0.kernel": kernel})["layers.0.kernel"]
    assert found.values.spec == PartitionSpec("fsdp", "tensor")
    assert found.scale.spec == PartitionSpec(None, "tensor")


def test_one_process_has_all_rows():
    layout = Layout(make_mesh(None), RULES)
    np.testing.assert_array_equal(layout.own_rows(6), np.arange(6))


def measure(folder, *cases):
    command = [sys.executable, "-m", "tests.meshes", str(folder), *cases]
    done = subprocess.run(
        command,
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "measured.json").read_text())


CORE = (
    "-",
    "data=8/saved",
    "data=2,fsdp=2,tensor=2",
    "-/plain",
    "data=2/accumulated",
    "data=4/bad",
    "-/bad",
    "fsdp=2/resumed",
)
WIDE = (
    "-",
    "data=2",
    "data=4",
    "data=8",
    "fsdp=2",
    "tensor=2",
    "tensor=4,data=2",
    "data=2,fsdp=2",
    "data=2,tensor=2",
    "fsdp=2,tensor=4",
    "-/plain",
    "-/accumulated",
    "data=4,tensor=2/plain",
    "data=2,fsdp=2,tensor=2/bad",
    "-/bad",
    "data=2,fsdp=2,tensor=2/saved",
    "-/resumed",
    "data=2/resumed",
    "data=4/resumed",
    "data=2,tensor=2/resumed",
    "tensor=4/resumed",
)
LIKE = {"bad": "-/bad", "plain": "-/plain", "accumulated": "-/plain"}
"""The case on one device that a variant must come out like."""

CASES = [
    *((case, "core") for case in CORE[1:]),
    *(pytest.param(case, "wide", marks=pytest.mark.slow) for case in WIDE[1:]),
]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """What each case of a set measured, in a process that is started where it is needed first."""
    sets = {}

    def get(name):
        if name not in sets:
            cases = CORE if name == "core" else WIDE
            sets[name] = measure(tmp_path_factory.mktemp(name), *cases)
        return sets[name]

    return get


@pytest.mark.parametrize(("case", "name"), CASES)
def test_growth_and_losses_do_not_depend_on_the_mesh(measured, case, name):
    found = measured(name)
    got, expected = found[case], found[LIKE.get(case.partition("/")[2], "-")]
    first = SAVED if case.endswith("/resumed") else 0
    assert got["first"] == first
    assert got["rank"] == expected["rank"][first:]
    assert got["tokens"] == expected["tokens"][first:]
    assert got["skipped"] == expected["skipped"]
    for number in ("loss", "importance"):
        np.testing.assert_allclose(got[number], expected[number][first:], rtol=RTOL)
    np.testing.assert_allclose(got["head"], expected["head"], rtol=RTOL)


def test_the_run_grows_in_the_middle_of_it(measured):
    """Else the comparison would be of nothing."""
    ranks = measured("core")["-"]["rank"]
    assert ranks[0] == [1] * LAYERS
    assert sum(ranks[-1]) == 2 * LAYERS
    assert sum(ranks[SAVED - 1]) < sum(ranks[-1])


def test_a_row_that_is_not_finite_is_skipped_on_every_device(measured):
    for case in ("-/bad", "data=4/bad"):
        assert measured("core")[case]["skipped"] == len(BAD)


def test_every_device_holds_its_part_only(measured):
    found = measured("core")["data=2,fsdp=2,tensor=2"]["devices"]
    whole = measured("core")["-"]["devices"]
    inputs, outputs = whole["base"]
    slots = whole["active"][0]
    assert found == {
        "base": [inputs // 2, outputs // 2],
        "A": [inputs // 2, slots],
        "B": [slots, outputs // 2],
        "moment": [inputs // 2, slots],
        "active": [slots],
    }
