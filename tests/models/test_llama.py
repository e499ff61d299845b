"""Llama, Mistral and Qwen against PyTorch's transformers, and their own invariants."""

import re

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from increlora_jax.errors import InputError
from increlora_jax.models.llama import LLAMA, find_frequencies
from increlora_jax.models.registry import abstract_model, find_spec, load_model
from increlora_jax.weights.folder import name_variables, save_weights
from tests.causal import Prompts, save_reference, write_config
from tests.causal_parity import assert_close, check_heads, check_language_model, check_rounding

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
    check_heads(tmp_path, kind, num_hidden_layers=1)


def test_bfloat16_stays_within_its_bound(tmp_path):
    check_rounding(tmp_path, "qwen3")


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
def test_question_answering_weights_go_to_pytorch_and_back(kind, tmp_path):
    """Key by key, though all but Mistral keep the body under a name of its own there."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    reference = save_reference(tmp_path, kind, "question_answering", num_hidden_layers=1)
    model, report = load_model(tmp_path, head="question_answering")
    assert report.new_parameters == report.ignored_keys == ()
    save_weights(model, tmp_path, find_spec(reference.config).weights)
    assert load_file(tmp_path / "model.safetensors").keys() == reference.state_dict().keys()
    again = transformers.AutoModelForQuestionAnswering.from_pretrained(
        tmp_path, attn_implementation="eager"
    )
    ids = Prompts.draw(0)
    with torch.no_grad():
        expected = reference(**ids.to_torch("input_ids"))
        read_again = again(**ids.to_torch("input_ids"))
    model.eval()
    ours = model(ids.input_ids, ids.attention_mask, np.zeros_like(ids.input_ids))
    for logits, name in zip(ours, ("start_logits", "end_logits"), strict=True):
        torch.testing.assert_close(read_again[name], expected[name], rtol=0, atol=0)
        assert_close(logits, expected[name], 1e-5)


@pytest.mark.parametrize(
    ("saved", "loaded"),
    [("causal_lm", "question_answering"), ("question_answering", "sequence_classification")],
)
def test_a_head_finds_the_body_of_another_head(saved, loaded, tmp_path):
    reference = save_reference(tmp_path, "llama", saved, num_hidden_layers=1)
    options = {"num_labels": 2} if loaded == "sequence_classification" else {}
    model, report = load_model(tmp_path, head=loaded, **options)
    head = {"question_answering": ("qa_outputs.bias", "qa_outputs.kernel")}
    assert sorted(report.new_parameters) == sorted(head.get(loaded, ("score.kernel",)))
    kernel = reference.base_model.layers[0].mlp.up_proj.weight.detach().T
    np.testing.assert_array_equal(model.body.layers[0].mlp.up_proj.kernel[...], kernel)


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
    pytest.importorskip("torch")
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


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_every_parameter_of_every_head_has_one_sharding(kind, tmp_path):
    """The body of question answering, too, under whichever name."""
    config = write_config(tmp_path, kind, attention_bias=True, mlp_bias=True)
    spec = find_spec(config)
    for head in spec.heads:
        options = {"num_labels": 2} if head == "sequence_classification" else {}
        model = abstract_model(config, head=head, **options)
        for path in name_variables(model, nnx.Param):
            found = [rule for rule in spec.shardings if re.fullmatch(rule, path)]
            assert len(found) == 1, path
