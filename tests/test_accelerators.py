"""The study of accelerators: counts from a program's text, and a program compiled for a TPU."""

import os
import sys
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from math import prod
from pathlib import Path

import pytest

HERE = Path(__file__).parents[1] / "experiments" / "accelerators"
FOLDER = os.environ.get("INCRELORA_TEST_LIBTPU")

TEXT = Path(__file__).with_name("small_program.hlo").read_text(encoding="utf-8")


@pytest.fixture
def study(monkeypatch):
    """Give a module of the study by its name; other studies have modules of the same names."""
    names = [path.stem for path in HERE.glob("*.py")]
    others = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    monkeypatch.syspath_prepend(str(HERE))
    yield import_module
    for name in names:
        sys.modules.pop(name, None)
    sys.modules.update(others)


def test_traffic_is_that_outside_vmem(study):
    counts = study("hlo").Module(TEXT).count()
    kernel, gathered, part, copied = 8 * 128 * 2, 64 * 128 * 2, 8 * 128 * 4, 8 * 128 * 4
    # A gather in two parts reads its operand twice and is written once; five passes of the loop
    # read a slice each, into VMEM; a copy of [3, 100] has the padding of its tiles, [8, 128]
    # before and [104, 128] in the other order.
    assert counts.read == 2 * kernel + 5 * part + copied
    assert counts.written == gathered + 104 * 128 * 4
    assert counts.copied == copied + 104 * 128 * 4


def test_collectives_count_with_their_loops_and_once_for_a_chain(study):
    counts = study("hlo").Module(TEXT).count()
    assert counts.collectives == {"all-gather": 1, "all-reduce": 5}
    assert counts.collective_bytes == {"all-gather": 64 * 128 * 2, "all-reduce": 5 * 8 * 128 * 4}


def test_gathers_of_activations_are_those_of_many_elements(study):
    line = "  %taken = f32[{size},4] gather(%t, %i), offset_dims={{1}}"
    text = "ENTRY %main (t: f32[9,4]) -> f32[9,4] {\n" + "\n".join(
        line.format(size=size) for size in (2, 64)
    )
    assert study("hlo").Module(text, least=100).count().gathers == 1


@pytest.mark.parametrize(
    ("operands", "product", "flops"),
    [
        (("8,16", "16,4"), "bf16[8,4] convolution(%a, %b), dim_labels=bf_io->bf", 2 * 8 * 16 * 4),
        (
            ("3,8,16", "3,4,16"),
            "f32[3,8,4] convolution(%a, %b), window={size=3 stride=2 lhs_dilate=3}, "
            "dim_labels=0bf_0oi->0bf",
            2 * 3 * 8 * 16 * 4,
        ),
        (
            ("3,8,16", "3,16,4"),
            "f32[3,8,4] dot(%a, %b), lhs_batch_dims={0}, lhs_contracting_dims={2}",
            2 * 3 * 8 * 16 * 4,
        ),
    ],
    ids=["convolution", "dilated", "dot"],
)
def test_flops_follow_from_sizes(study, operands, product, flops):
    left, right = operands
    text = f"""ENTRY %main (a: f32[{left}], b: f32[{right}]) -> f32[1] {{
  %a = f32[{left}] parameter(0)
  %b = f32[{right}] parameter(1)
  ROOT %c = {product}
}}
"""
    assert study("hlo").Module(text).count().flops == flops


def test_kernels_are_read_from_the_assemblers_remarks(study):
    remarks = "\n".join(
        f"ptxas info    : Compiling entry function '{name}' for 'sm_90a'\n"
        f"    0 bytes stack frame, {spills} bytes spill stores, 4 bytes spill loads\n"
        f"ptxas info    : Used {registers} registers, used 1 barriers{more}\n"
        for name, spills, registers, more in [("a", 8, 40, ""), ("b", 0, 60, ", 512 bytes smem")]
    )
    first, second = study("kernels").read_kernels(remarks)
    assert first == {"name": "a", "registers": 40, "spills": 12, "shared": 0}
    assert second == {"name": "b", "registers": 60, "spills": 4, "shared": 512}
    assert study("kernels").describe_kernels(remarks)["registers"] == 60


def test_every_program_has_a_chip_and_a_mesh_of_its_size(study):
    for topology, program in study("plan").plan().values():
        study("chips").find_chip(topology)
        sizes = topology.partition(":")[2].split("x")
        assert program.chips in (1, prod(map(int, sizes)))
        assert program.config.model_type == study("programs").MODELS[program.model][0]


def test_ratios_are_new_over_old(study):
    line = {
        "name": "a", "topology": "v5e:1x1", "mesh": "", "flops": 2.0, "collectives": {},
        "memory": {"arguments": 1, "temporaries": 3, "code": 1},
        "traffic": {"read": 4, "written": 4}, "compile processor seconds": 10,
    }  # fmt: skip
    new = line | {"flops": 1.0, "memory": {"arguments": 1, "temporaries": 1, "code": 2}}
    (row,) = study("compare").ratios([line], [new, line | {"name": "b"}])
    assert row == ("a", "v5e:1x1", "0.50", "1.00", "0.50", "–", "2.00", "1.00")


@pytest.mark.skipif(
    not (FOLDER or find_spec("libtpu")),
    reason="no compiler for TPUs: pip install --no-deps --target DIR -r tests/chips.txt, then "
    "set INCRELORA_TEST_LIBTPU=DIR",
)
def test_a_step_is_compiled_for_a_chip_that_is_not_here(study, monkeypatch):
    if FOLDER:
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([FOLDER, *_path()]))
    small = study("programs").Program("bert", "scored", batch=4, length=128, layers=1)
    line = study("compile").compile_apart("v5e:1x1", replace(small, scan=True), 600)
    assert "error" not in line
    assert 0 < line["memory"]["temporaries"] < 16 * 2**30
    assert line["traffic"]["read"] > line["memory"]["arguments"] / 2
    assert line["products"] > 10
    assert line["collectives"] == {}


def _path():
    return [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
