"""Fixtures for every room: shapes checked at run time, and the real data and model."""

import os
import shutil
from collections.abc import Callable
from itertools import count as count_up
from pathlib import Path

import jax
import numpy as np
import pytest
from jaxtyping import install_import_hook

import tests.typechecker  # noqa: F401  (the hook names it)
from increlora_jax.errors import naming_flags

with install_import_hook(["increlora_jax.core", "increlora_jax.nn"], "tests.typechecker.check"):
    import increlora_jax.core.adapter
    import increlora_jax.core.allocator
    import increlora_jax.core.importance
    import increlora_jax.core.optimizer
    import increlora_jax.core.plan
    import increlora_jax.core.probe
    import increlora_jax.core.regularizer
    import increlora_jax.core.schedule
    import increlora_jax.nn.adapter_files
    import increlora_jax.nn.any_model
    import increlora_jax.nn.attach
    import increlora_jax.nn.initial
    import increlora_jax.nn.kernels
    import increlora_jax.nn.layers
    import increlora_jax.nn.linen
    import increlora_jax.nn.low_rank
    import increlora_jax.nn.parameters
    import increlora_jax.nn.report
    import increlora_jax.nn.skeleton
    import increlora_jax.nn.targets
    import increlora_jax.nn.tree  # noqa: F401  (imported here to be hooked)

# The same program of XLA's, but machine code of less effort: of the suite's time, most goes into
# compiling what runs once. Processes that tests start compile as users' do.
jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="session", autouse=True)
def _own_caches(tmp_path_factory):
    """Keep what the commands cache out of the user's folders; one for a worker's whole session.

    Programs are kept from the first test on, and by the processes that tests start as well. JAX
    keeps those that took a second; a small model's take less, and many tests compile the same.
    """
    from increlora_jax.runtime.compilation_cache import use_compilation_cache

    seconds = 0.1
    jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("caches")))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", str(seconds))
        use_compilation_cache(None)
        yield


_MODULES = count_up(1)


@pytest.fixture(scope="module", autouse=True)
def _as_a_command():
    """Let messages name flags: most tests are of what commands print; see test_errors."""
    with naming_flags():
        yield


@pytest.fixture(scope="module", autouse=True)
def _room_for_programs():
    """Empty JAX's caches after every 30 files of tests.

    Its fast path holds 8,192 programs in a process, and then keeps no new ones. Tests count them.
    """
    if next(_MODULES) % 30 == 0:
        jax.clear_caches()


def _folder_of(variable: str, what: str) -> Path:
    if variable not in os.environ:
        pytest.skip(f"set {variable} to {what}")
    return Path(os.environ[variable])


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The real data: glue/SST-2, glue/MRPC and others."""
    return _folder_of("INCRELORA_TEST_DATA", "the folder that holds glue/SST-2/train.tsv")


@pytest.fixture(scope="session")
def minilm_dir() -> Path:
    """The real encoder."""
    return _folder_of("INCRELORA_TEST_MODEL", "the folder of all-MiniLM-L6-v2 (model.safetensors)")


@pytest.fixture(scope="session")
def reference_dir(data_dir: Path) -> Path:
    """The reference traces, which lie beside the data."""
    return data_dir.parent / "reference"


WORDS = ["good", "bad", "fine", "awful", "film", "plot", "very", "not", "the", "a"]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A folder as users have them: a BERT of two narrow layers, and its tokenizer."""
    from flax import nnx
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import BertProcessing
    from transformers import BertConfig, PreTrainedTokenizerFast

    from increlora_jax.models.bert import BERT_WEIGHTS, BertForSequenceClassification
    from increlora_jax.weights.folder import save_weights

    folder = tmp_path_factory.mktemp("tiny-model")
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: index for index, word in enumerate(specials + WORDS)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    ).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    config.save_pretrained(folder)
    model = BertForSequenceClassification(config, num_labels=2, rngs=nnx.Rngs(0))
    save_weights(model, folder, BERT_WEIGHTS)
    return folder


@pytest.fixture(scope="session")
def sentencepiece_file(tmp_path_factory) -> Path:
    """A vocabulary in the layout of DeBERTa-v3: special pieces first, no [MASK]."""
    import sentencepiece

    random = np.random.default_rng(0)
    sentences = [" ".join(random.choice(WORDS, size=random.integers(2, 9))) for _ in range(500)]
    prefix = tmp_path_factory.mktemp("sentencepiece") / "spm"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_prefix=str(prefix),
        model_type="unigram",
        vocab_size=60,
        hard_vocab_limit=False,
        **{f"{name}_id": index for index, name in enumerate(("pad", "bos", "eos", "unk"))},
        **{"pad_piece": "[PAD]", "bos_piece": "[CLS]", "eos_piece": "[SEP]", "unk_piece": "[UNK]"},
        minloglevel=2,
    )
    return prefix.with_suffix(".model")


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory) -> Path:
    """Two hundred sentences; the label says which of two pairs of words comes first."""
    random = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("toy-data")
    for split, count in {"train": 160, "dev": 41}.items():
        rows = ["sentence\tlabel"]
        for _ in range(count):
            words = list(random.choice(WORDS[4:], size=random.integers(1, 9)))
            is_good = bool(random.integers(2))
            words.insert(0, str(random.choice(WORDS[:2] if is_good else WORDS[2:4])))
            rows.append(f"{' '.join(words)}\t{int(is_good)}")
        (folder / f"{split}.tsv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="session")
def short_words(tiny_model, toy_data) -> list[str]:
    """The words of a command line that trains for a few steps and grows to its budget."""
    flags = {
        "task": "sst2",
        "model": tiny_model,
        "data-dir": toy_data,
        "max-steps": 14,
        "eval-steps": 6,
        "train-batch-size": 16,
        "max-seq-length": 16,
        "target-rank": 2,
        "top-h": 4,
        "init-warmup": 1,
        "incre-interval": 2,
        "warmup-steps": 2,
        "learning-rate": 1e-2,
        "seed": 7,
    }
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


@pytest.fixture
def short_run(short_words, tmp_path) -> list[str]:
    """The same, with a folder to run in."""
    return [*short_words, "--output-dir", str(tmp_path / "run")]


@pytest.fixture(scope="session")
def run_once(short_words, tmp_path_factory) -> Callable[..., Path]:
    """Carry out that command, with more words, once a session; its folder is to be read only."""
    from increlora_jax import train

    folders: dict[tuple[str, ...], Path] = {}

    def run(*more: str) -> Path:
        if more not in folders:
            folder = tmp_path_factory.mktemp("once") / "run"
            train.main([*short_words, *more, "--output-dir", str(folder)])
            folders[more] = folder
        return folders[more]

    return run


@pytest.fixture
def finished(run_once, tmp_path) -> Path:
    """What `short_run` leaves in its folder."""
    return shutil.copytree(run_once(), tmp_path / "run")
