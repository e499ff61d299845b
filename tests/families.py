"""The smallest model of every family of base models."""

import shutil

from flax import nnx
from transformers import AutoConfig

from increlora_jax import TINY_ENCODER
from increlora_jax.models.registry import find_spec
from increlora_jax.weights.folder import save_weights

SMALL = {
    "vocab_size": 6000,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,  # what the tokenizer ends every text with
    "initializer_range": 0.2,
}
FAMILIES = {
    "bert": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    },
    "roberta": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "type_vocab_size": 2,  # the tokenizer tells the texts of a pair apart
    },
    "deberta-v2": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "relative_attention": True,
        "pos_att_type": "p2c|c2p",
        "share_att_key": True,
        "position_buckets": 8,
        "norm_rel_ebd": "layer_norm",
        "position_biased_input": False,
        "type_vocab_size": 0,
    },
    "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64},
    "llama": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 32,
    },
    "qwen3": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 32,
    },
    "t5": {
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 32,
        "num_layers": 1,
        "num_heads": 2,
        "decoder_start_token_id": 0,
        "feed_forward_proj": "gated-gelu",
    },
    "bart": {
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "max_position_embeddings": 64,
        "decoder_start_token_id": 3,
        "forced_eos_token_id": None,
    },
}


def make_folder(family, folder):
    """A folder as users have them: a tiny model of the family, and a tokenizer of real words."""
    shutil.copytree(TINY_ENCODER, folder, ignore=shutil.ignore_patterns("config.json", "*tensors"))
    config = AutoConfig.for_model(family, **(SMALL | FAMILIES[family]))
    config.save_pretrained(folder)
    spec = find_spec(config)
    build = spec.heads["sequence_classification"]
    save_weights(build(config, num_labels=2, rngs=nnx.Rngs(0)), folder, spec.weights)
    return folder
