"""The default command against a hub: from an empty cache, and again when the hub has gone."""

import io
import json
import os
import subprocess
import sys

import pytest

from increlora_jax.config import TaskConfig
from tests.conftest import WORDS
from tests.hub_server import Hub

CARD = """---
configs:
- config_name: sst2
  data_files:
  - split: train
    path: sst2/train-*
  - split: validation
    path: sst2/validation-*
dataset_info:
- config_name: sst2
  features:
  - name: sentence
    dtype: string
  - name: label
    dtype:
      class_label:
        names:
          '0': negative
          '1': positive
  - name: idx
    dtype: int32
---
"""
CONFIG = {
    "model_type": "deberta-v2",
    "vocab_size": 100,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
    "type_vocab_size": 0,
    "relative_attention": True,
    "position_buckets": 8,
    "max_relative_positions": -1,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "pooler_hidden_size": 16,
    "pooler_dropout": 0,
    "pooler_hidden_act": "gelu",
}
# A hub that is gone is asked again and again, for minutes, with pauses that are not under test.
WITHOUT_PAUSES = """
import time; time.sleep = lambda seconds: None
from increlora_jax.train import main; main()
"""
FLAGS = {
    "task": "sst2",
    "max-steps": 10,
    "train-batch-size": 8,
    "max-seq-length": 16,
    "top-h": 6,
    "init-warmup": 1,
    "incre-interval": 2,
    "warmup-steps": 2,
}


def make_parquet(count):
    """Write sentences with their labels, as the hub keeps them."""
    import pyarrow
    from pyarrow import parquet

    rows = {
        "sentence": [f"the film {WORDS[i % 2]} {WORDS[i % 7]}" for i in range(count)],
        "label": pyarrow.array([1 - i % 2 for i in range(count)], pyarrow.int64()),
        "idx": pyarrow.array(range(count), pyarrow.int32()),
    }
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table(rows), buffer)
    return buffer.getvalue()


def make_weights():
    """Pickle a pretrained body of DeBERTa's layout: no head of a classifier, half precision."""
    torch = pytest.importorskip("torch")
    from transformers import DebertaV2Config, DebertaV2ForMaskedLM

    torch.manual_seed(0)
    model = DebertaV2ForMaskedLM(DebertaV2Config(**CONFIG))
    buffer = io.BytesIO()
    torch.save({key: value.half() for key, value in model.state_dict().items()}, buffer)
    return buffer.getvalue()


@pytest.fixture
def hub(sentencepiece_file):
    with Hub() as hub:
        model = {
            "config.json": json.dumps(CONFIG).encode(),
            "pytorch_model.bin": make_weights(),
            "spm.model": sentencepiece_file.read_bytes(),
            "tf_model.h5": b"never fetched",
        }
        hub.add("models", TaskConfig().model, model)
        data = {
            "README.md": CARD.encode(),
            "sst2/train-00000-of-00001.parquet": make_parquet(64),
            "sst2/validation-00000-of-00001.parquet": make_parquet(20),
            "rte/train-00000-of-00001.parquet": b"never fetched",
        }
        hub.add("datasets", "nyu-mll/glue", data)
        yield hub


@pytest.fixture
def train(hub, tmp_path):
    """Run the command in a process of its own and give what it left."""

    def run(name, start=("-m", "increlora_jax.train"), **environment):
        kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        flags = FLAGS | {"output-dir": tmp_path / name}
        words = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
        finished = subprocess.run(
            [sys.executable, *start, *words],
            cwd=tmp_path,
            env=kept | hub.environment(tmp_path / "home") | environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert finished.returncode == 0, finished.stderr
        results = json.loads((tmp_path / name / "results.json").read_text())
        losses = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return results, [json.loads(line)["loss"] for line in losses if '"train"' in line]

    return run


def test_the_default_command_trains_from_the_hub_and_again_from_its_cache(hub, train):
    results, losses = train("first")
    assert results["model"] == "microsoft/deberta-v3-base"
    assert results["total_rank"] == results["rank_budget"] == 24
    fetched = hub.fetched()
    assert {"config.json", "pytorch_model.bin", "spm.model"} <= fetched
    assert not fetched & {"tf_model.h5", "rte/train-00000-of-00001.parquet"}
    hub.close()
    for again in (train("offline", HF_HUB_OFFLINE="1"), train("gone", ("-c", WITHOUT_PAUSES))):
        assert again[0]["ranks"] == results["ranks"]
        assert again[1] == losses
