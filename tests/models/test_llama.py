"""Llama, Mistral and Qwen against PyTorch's transformers, and their own invariants."""

import re

import numpy as np
import pytest
from flax import nnx

from increlora_jax.errors import InputError
from increlora_jax.models.hf import save_weights
from increlora_jax.models.llama import LLAMA, find_frequencies
from increlora_jax.models.registry import abstract_model, load_model
from tests.causal import Prompts, save_reference, write_config
from tests.causal_parity import check_heads, check_language_model, check_rounding

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    # So few that at a base of 100 some pairs are slow, some quick and some in between.
    "original_max_position_embeddings": 16,
}
ARCHITECTURES = {
    "llama": {
        "attention_bias": True,
        "mlp_bias": True,
        "head_dim": 12,
        "num_key_value_heads": 1,
        "rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 50.0},
    },
    "llama of the third kind": {
        "tie_word_embeddings": True,
        "num_key_value_heads": 4,
        "rope_theta": 100.0,
        "rope_scaling": LLAMA3,
    },
    "mistral": {"sliding_window": 5},
    "qwen2": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "qwen3": {"head_dim": 16, "attention_bias": True, "tie_word_embeddings": True},
}


@pytest.mark.parametrize(("name", "changes"), ARCHITECTURES.items(), ids=ARCHITECTURES)
def test_logits_loss_and_gradients_equal_pytorch(name, changes, tmp_path):
    check_language_model(tmp_path, name.partition(" ")[0], **changes)


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_heads_equal_pytorch(kind, tmp_path):
    """PyTorch's Llama for questions has its body under another name than Mistral's."""
    check_heads(tmp_path, kind, num_hidden_layers=1)


def test_bfloat16_stays_within_its_bound(tmp_path):
    check_rounding(tmp_path, "qwen3")


def test_saved_question_answering_weights_reload_by_their_prefix(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    reference = save_reference(tmp_path, "llama", "question_answering", num_hidden_layers=1)
    model, _ = load_model(tmp_path, head="question_answering")
    save_weights(model, tmp_path, LLAMA.weights)
    again = transformers.AutoModelForQuestionAnswering.from_pretrained(
        tmp_path, key_mapping={r"^model\.": "transformer."}, attn_implementation="eager"
    )
    with torch.no_grad():
        ids = Prompts.draw(0).to_torch("input_ids")
        torch.testing.assert_close(
            again(**ids).start_logits, reference(**ids).start_logits, rtol=0, atol=0
        )


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"rope_theta": 500.0},
        {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 4.0}},
        {"rope_theta": 100.0, "rope_scaling": LLAMA3},
        {"rope_parameters": {**LLAMA3, "rope_theta": 100.0}},
    ],
)
def test_frequencies_are_pytorchs_whether_configured_as_of_old_or_today(given, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = write_config(tmp_path, "llama", head_dim=16, **given)
    rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
    # Ours are rounded once, from float64.
    np.testing.assert_allclose(find_frequencies(config, 16), rotary.inv_freq, rtol=3e-7)


def test_slow_pairs_turn_by_the_factor_slower_and_quick_ones_as_before(tmp_path):
    plain = write_config(tmp_path, "llama", rope_theta=100.0)
    before = find_frequencies(plain, 32)
    after = find_frequencies(
        write_config(tmp_path, "llama", rope_theta=100.0, rope_scaling=LLAMA3), 32
    )
    turns = 16 * before / (2 * np.pi)
    np.testing.assert_allclose(after[turns <= 1], before[turns <= 1] / 8)
    is_between = (after > before / 8) & (after < before)
    assert is_between.any()
    assert (turns[is_between] > 1).all()


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            r'rope_type "dynamic" is not done here, only "default", "linear" and "llama3"',
        ),
        ("llama", {"partial_rotary_factor": 0.5}, r"partial_rotary_factor 0\.5"),
        ("mistral", {"num_key_value_heads": 3}, r"4 is not a multiple of num_key_value_heads 3"),
        ("qwen3", {"hidden_act": "snake"}, "'snake'"),
    ],
)
def test_what_is_not_done_is_refused(kind, change, message, tmp_path):
    with pytest.raises(InputError, match=message):
        abstract_model(write_config(tmp_path, kind, **change), head="causal_lm")


def test_default_targets_are_the_seven_dense_layers_of_every_layer(tmp_path):
    model = abstract_model(write_config(tmp_path, "llama"), num_labels=2)
    linears = {
        ".".join(map(str, path))
        for path, module in nnx.iter_modules(model)
        if isinstance(module, nnx.Linear)
    }
    targets = {path for path in linears if re.fullmatch(LLAMA.target_modules, path)}
    assert len(targets) == 14
    assert linears - targets == {"score"}
