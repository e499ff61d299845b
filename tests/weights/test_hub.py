"""Which files of a hub repository are fetched, and of which revision."""

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.hub_server import Hub

BIN, SAFE = "pytorch_model.bin", "model.safetensors"
REPOSITORY = {
    "config.json": b"{}",
    "spm.model": b"vocabulary",
    BIN: b"pickled",
    "tf_model.h5": b"another framework's",
    "flax_model.msgpack": b"another framework's",
    "onnx/model.onnx": b"another framework's",
}
CONVERTED = REPOSITORY | {SAFE: b"converted"}
BOT = "SFconvertbot"
# One process for many models, since starting one takes seconds. The library's pauses between
# attempts are not under test.
SCRIPT = """
import sys, time; time.sleep = lambda seconds: None
from increlora_jax.errors import InputError
from increlora_jax.weights.hub import resolve_model
for name in sys.stdin:
    try: print(resolve_model(*(word or None for word in name.strip().split(" "))), flush=True)
    except InputError as error: print(error, flush=True)
"""


@contextmanager
def start_process(environment):
    """Give a function that resolves a model in a process of its own, which reads its settings."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        env=os.environ | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def resolve(*words):
        process.stdin.write(f"{' '.join(words)}\n")
        process.stdin.flush()
        return process.stdout.readline().strip()

    yield resolve
    process.communicate()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def shared_hub():
    with Hub() as hub:
        yield hub


@pytest.fixture
def hub(shared_hub):
    shared_hub.requests.clear()
    return shared_hub


@pytest.fixture(scope="module")
def resolve(shared_hub, home):
    with start_process(shared_hub.environment(home)) as resolve:
        yield resolve


@pytest.fixture(scope="module")
def resolve_offline(shared_hub, home):
    with start_process(shared_hub.environment(home) | {"HF_HUB_OFFLINE": "1"}) as resolve:
        yield resolve


def read_folder(folder):
    return {file.name: file.read_bytes() for file in Path(folder).iterdir()}


SMALL = {name: REPOSITORY[name] for name in ("config.json", "spm.model")}


def test_safetensors_are_all_that_is_taken_of_a_repository_that_has_them(hub, resolve):
    hub.add("models", "me/safe", CONVERTED)
    assert read_folder(resolve("me/safe")) == SMALL | {SAFE: b"converted"}
    assert not any("discussions" in line for line in hub.requests)


def test_without_a_conversion_the_pickle_is_taken(hub, resolve, resolve_offline):
    hub.add("models", "me/plain", REPOSITORY)
    folder = resolve("me/plain")
    assert read_folder(folder) == SMALL | {BIN: b"pickled"}
    assert resolve_offline("me/plain") == folder
    hub.requests.clear()
    assert resolve("me/plain") == folder
    assert not hub.fetched()


def test_the_hubs_conversion_is_taken_in_its_stead(hub, resolve, resolve_offline):
    hub.add("models", "me/converted", REPOSITORY)
    hub.propose("me/converted", 3, BOT, CONVERTED)
    folder = resolve("me/converted")
    assert read_folder(folder) == SMALL | {SAFE: b"converted"}
    assert BIN not in hub.fetched()
    assert resolve_offline("me/converted") == folder


@pytest.mark.parametrize(
    ("name", "author", "files"),
    [
        ("somebodys", "somebody", CONVERTED),
        ("of-other-weights", BOT, CONVERTED | {BIN: b"older"}),
        ("without-safetensors", BOT, REPOSITORY),
    ],
)
def test_another_pull_request_is_not_taken(name, author, files, hub, resolve):
    hub.add("models", f"me/{name}", REPOSITORY)
    hub.propose(f"me/{name}", 3, author, files)
    assert read_folder(resolve(f"me/{name}")) == SMALL | {BIN: b"pickled"}
    assert SAFE not in hub.fetched()


def test_the_first_conversion_that_fits_is_taken(hub, resolve):
    hub.add("models", "me/often", REPOSITORY)
    hub.propose("me/often", 3, BOT, CONVERTED | {BIN: b"older"})
    hub.propose("me/often", 4, BOT, CONVERTED)
    assert read_folder(resolve("me/often"))[SAFE] == b"converted"


def test_an_id_that_the_hub_does_not_know_is_named(hub, resolve):
    said = resolve("me/unknown")
    assert said.startswith("model me/unknown: neither a local folder nor a model")


def test_the_cache_serves_when_the_hub_has_gone(tmp_path):
    names = ("me/plain", "me/converted")
    with Hub() as hub:
        for name in names:
            hub.add("models", name, REPOSITORY)
        hub.propose("me/converted", 3, BOT, CONVERTED)
        with start_process(hub.environment(tmp_path)) as resolve:
            folders = [resolve(name) for name in names]
            hub.close()
            assert [resolve(name) for name in names] == folders
            assert "could not give it" in resolve("me/never-seen")


def test_a_revision_is_taken_and_one_that_the_hub_lacks_is_refused(hub, resolve, resolve_offline):
    hub.add("models", "me/revised", SMALL | {SAFE: b"newest"})
    hub.add("models", "me/revised", SMALL | {SAFE: b"older"}, "v1.0")
    assert read_folder(resolve("me/revised", "v1.0"))[SAFE] == b"older"
    assert read_folder(resolve("me/revised"))[SAFE] == b"newest"
    assert read_folder(resolve_offline("me/revised", "v1.0"))[SAFE] == b"older"
    said = resolve("me/revised", "v2.0")
    assert "has no revision v2.0" in said
    assert "Give model_revision a branch, tag or commit" in said


@pytest.mark.parametrize(("files", "weights"), [(CONVERTED, SAFE), (REPOSITORY, BIN)])
def test_a_subfolder_is_all_that_is_fetched(files, weights, hub, resolve):
    name = f"me/inner-{weights.partition('.')[0]}"
    inner = {f"0_Transformer/{path}": content for path, content in files.items()}
    hub.add("models", name, inner | {"modules.json": b"[]", "1_Pooling/config.json": b"{}"})
    folder = resolve(name, "", "0_Transformer")
    assert Path(folder).name == "0_Transformer"
    assert read_folder(folder) == SMALL | {weights: files[weights]}
    assert "1_Pooling/config.json" not in hub.fetched()


def test_a_repository_whose_model_is_in_a_subfolder_says_so(hub, resolve):
    hub.add("models", "me/outer", {f"0_Transformer/{path}": b"{}" for path in CONVERTED})
    said = resolve("me/outer")
    assert "no config.json here, but in 0_Transformer/. Give model_subfolder 0_Trans" in said
    assert "Name a folder within it" in resolve("me/outer", "", "../elsewhere")
