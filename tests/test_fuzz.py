"""Whatever a file holds, the user hears of it in words: no reader lets another error out."""

import json
import math
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from increlora_jax.config import RunConfig
from increlora_jax.errors import InputError
from increlora_jax.nn.adapter_files import CONFIG, CONFIG_KINDS, read_adapter_config
from increlora_jax.run.command_line import GROUPS, parse_run, read_run, write_run
from increlora_jax.run.folder import read_results
from increlora_jax.tasks.classification import load_texts
from increlora_jax.training.checkpoint import FORMAT, MANIFEST, Checkpoints, Keep, find_problem
from increlora_jax.training.progress import Progress
from increlora_jax.weights.folder import read_config
from increlora_jax.weights.tensor_files import list_tensors, list_weights
from tests.fuzz import QUICK, THOROUGH, VALUES, check_errors, damaged, headers, jsons, yamls

AMOUNTS = pytest.mark.parametrize(
    "examples", [QUICK, pytest.param(THOROUGH, marks=pytest.mark.slow)]
)

ADAPTER = {
    "method": "increlora", "base_model": "x", "quantize_base": "int8", "task": "sst2",
    "labels": ["a", "b"],
    "identity": {"data": "x"}, "step": 3, "total_steps": 9, "lora_alpha": 16.0,
    "scaling": "rank", "ranks": {"mix": 2},
}  # fmt: skip
RESULTS = {
    "identity": {"data": "abc"}, "metrics": {"accuracy": 0.5}, "rank_budget": None,
    "total_rank": 0, "full_modules": [], "seconds": 1.5,
}  # fmt: skip
PROGRESS = Progress(step=3, metrics={"a": 0.5}, rounds={2: {"x": 1}}).to_json()
SAVED = {"format": FORMAT, "identity": {"data": "x"}, "progress": [PROGRESS]}


@AMOUNTS
def test_settings_files(tmp_path, examples):
    path = tmp_path / "it.yaml"
    write_run(RunConfig(), path)
    files = yamls(RunConfig().flat()) | damaged(path.read_bytes())

    def read():
        assert read_run(path)
        assert parse_run(["--config", str(path)])

    # The more settings there are, the rarer a drawn file has no fault at all.
    assert check_errors(files, path, read, examples) > examples / 400


@AMOUNTS
def test_command_lines(examples):
    names = st.sampled_from([f.name for group in GROUPS for f in fields(group)])
    texts = st.text(max_size=9) | VALUES.map(str) | st.sampled_from(["1e9", "nan", "-inf", "1e999"])
    words = st.lists(st.tuples(names, texts), max_size=4)
    told = []

    @settings(max_examples=examples, deadline=None, derandomize=True, database=None)
    @given(words)
    def parse(pairs):
        try:
            config = parse_run([f"--{name}={text}" for name, text in pairs])
        except InputError as error:
            told.append(str(error))
        else:
            numbers = [v for v in config.flat().values() if isinstance(v, int | float)]
            assert all(map(math.isfinite, numbers))

    parse()
    assert told
    assert [message for message in told if "--" not in message] == []


ROWS = "sentence\tlabel\ngood film\t1\nbad\t0\n\n"
TABLES = {
    ".tsv": [ROWS, "text\tlabel\na\t0.5\nb\t1\n", "a\t1\t*\tgood\nb\t0\t*\tbad\n"],
    ".csv": ['sentence,label\n"good, film",1\nbad,0\n', 'text1,text2,label\n"a""b",c,x\nd,e,y\n'],
    ".json": ['[{"sentence": "good", "label": 1},\n {"sentence": "b", "label": 0}]\n',
              '{"v": 1, "data": [{"text": "a", "label": true}, {"text": "b", "label": 0}]}'],
    ".jsonl": ['{"sentence": "good", "label": 1}\n{"sentence": "b", "label": 0}\n',
               '{"text": "a", "label": "x"}\n{"text": "b", "label": "y"}\n'],
}  # fmt: skip
CELLS = st.text(max_size=6) | st.sampled_from(
    ["0", "1", "1e999", "-1", '"', "\r", "nan", "1" * 5000]
)


def tables(suffix):
    """Sound tables, damaged ones, and rows of anything under a good header."""
    sound = st.sampled_from(TABLES[suffix]).flatmap(lambda text: damaged(text.encode()))
    separator = {".tsv": "\t", ".csv": ",", ".json": ", ", ".jsonl": ", "}[suffix]
    rows = st.lists(st.lists(CELLS, max_size=3).map(separator.join), max_size=5)
    headed = rows.map(lambda r: "\n".join([f"sentence{separator}label", *r]).encode())
    objects = st.lists(st.dictionaries(st.sampled_from(["text", "label"]), VALUES), max_size=4)
    lines = objects.map(lambda found: "\n".join(map(json.dumps, found)).encode())
    array = objects.map(lambda found: json.dumps(found).encode())
    return st.one_of(sound, headed, array if suffix == ".json" else lines, st.binary())


@AMOUNTS
@pytest.mark.parametrize("suffix", TABLES)
@pytest.mark.parametrize("task", ["text", "sst2", "cola", "stsb"])
def test_data_files(tmp_path, suffix, task, examples):
    path = tmp_path / f"train{suffix}"
    layouts = {"cola": "a\t1\t*\tgood\n", "stsb": "sentence1\tsentence2\tlabel\na\tb\t1.5\n"}
    (tmp_path / "dev.tsv").write_text(layouts.get(task, ROWS))
    share = max(QUICK // 3, examples // 12)
    check_errors(tables(suffix), path, lambda: load_texts(task, str(tmp_path), "auto"), share)


@AMOUNTS
def test_adapter_configurations(tmp_path, examples):
    assert ADAPTER.keys() == CONFIG_KINDS.keys() | {"labels"}  # of tasks that have some
    files = jsons(ADAPTER) | damaged(json.dumps(ADAPTER, indent=2).encode())
    sound = check_errors(files, tmp_path / CONFIG, lambda: read_adapter_config(tmp_path), examples)
    assert sound > examples / 200


@AMOUNTS
def test_results(tmp_path, examples):
    files = jsons(RESULTS) | damaged(json.dumps(RESULTS).encode())
    path = tmp_path / "results.json"
    assert check_errors(files, path, lambda: read_results(tmp_path), examples) > examples / 100


@AMOUNTS
def test_tensors(tmp_path, examples):
    sound = save({"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(3, np.float16)})

    def read():
        for tensor in list_tensors(tmp_path).values():
            assert tensor.read().shape == tensor.shape

    files = headers() | damaged(sound)
    assert check_errors(files, tmp_path / "model.safetensors", read, examples)


@AMOUNTS
def test_indices_of_shards(tmp_path, examples):
    index = {"metadata": {"total_size": 3}, "weight_map": {"a": "one", "b": "two"}}
    path = tmp_path / "model.safetensors.index.json"

    def read():
        assert all(
            file.parent == tmp_path for file in list_weights(tmp_path) if "/" not in file.name
        )

    assert check_errors(jsons(index) | damaged(json.dumps(index).encode()), path, read, examples)


def test_configurations_of_models(tiny_model, tmp_path):
    content = (tiny_model / "config.json").read_bytes()
    files = jsons(json.loads(content)) | damaged(content)
    check_errors(files, tmp_path / "config.json", lambda: read_config(tmp_path), QUICK // 3)


@AMOUNTS
def test_what_a_checkpoint_says_of_its_run(tmp_path, examples):
    path = tmp_path / "3" / "saved" / "metadata"
    path.parent.mkdir(parents=True)
    checkpoints = Checkpoints(tmp_path, Keep(1), {})
    files = st.one_of(
        jsons(SAVED),
        jsons(PROGRESS).map(b'{"format": 2, "identity": {}, "progress": [%b]}'.__mod__),
        damaged(json.dumps(SAVED).encode()),
    )

    def read():
        assert all(isinstance(each.step, int) for each in checkpoints.read(3).progress)

    # Among so many keys few files are sound, and none is drawn twice.
    assert check_errors(files, path, read, examples) > examples / 1000


@AMOUNTS
def test_manifests_are_found_wrong_and_never_fail(tmp_path, examples):
    (tmp_path / "file").write_text("x")
    manifest = {"files": {"file": "abc"}, "seal": "abc"}

    def read():
        assert isinstance(find_problem(tmp_path), str)

    files = jsons(manifest) | damaged(json.dumps(manifest).encode())
    assert check_errors(files, tmp_path / MANIFEST, read, examples) == examples
