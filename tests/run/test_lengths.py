"""`--max-seq-length` against the positions of every family, before a weight is read."""

import json

import pytest
from transformers import AutoConfig

from increlora_jax import train
from increlora_jax.errors import InputError
from increlora_jax.models.registry import MODELS
from increlora_jax.run.build import plan_run, prepare_run
from increlora_jax.run.command_line import parse_command, parse_run
from increlora_jax.run.lengths import fit_length, note_tokenizer
from increlora_jax.weights.tokenizer import load_tokenizer

LIMITED = {
    "bert": (512, {}),
    "roberta": (510, {"max_position_embeddings": 512, "pad_token_id": 1}),
    "xlm-roberta": (512, {"max_position_embeddings": 514, "pad_token_id": 1}),
    "deberta-v2": (512, {"position_biased_input": True}),
    "gpt2": (300, {"n_positions": 300}),
    "bart": (400, {"max_position_embeddings": 400}),
}
UNLIMITED = {name: {} for name in MODELS if name not in LIMITED}
UNLIMITED["deberta-v2"] = {"position_biased_input": False}


@pytest.fixture
def asking():
    def ask(*words):
        return parse_run(["--task", "sst2", *words])

    return ask


@pytest.mark.parametrize("family", LIMITED)
def test_a_length_above_the_positions_is_refused_and_the_largest_named(family, asking):
    most, entries = LIMITED[family]
    model = AutoConfig.for_model(family, **entries)
    config = asking("--max-seq-length", str(most + 1))
    with pytest.raises(InputError, match=rf"{most + 1}: the model has .* --max-seq-length {most},"):
        fit_length(config, model)
    config = asking("--max-seq-length", str(most))
    assert fit_length(config, model) == (config, ())
    cut, notes = fit_length(asking("--max-seq-length", "2000"), model, may_cut=True)
    assert cut.task.max_seq_length == most
    assert f"{most} is used" in notes[0]


@pytest.mark.parametrize("task", ["sst2", "cola", "text"])
@pytest.mark.parametrize("is_in_a_file", [False, True])
def test_a_length_that_is_said_is_no_default_though_it_equals_one(task, is_in_a_file, tmp_path):
    model = AutoConfig.for_model("bert", max_position_embeddings=32)
    unsaid = parse_run(["--task", task])
    default = unsaid.task.max_seq_length
    lowered, (note,) = fit_length(unsaid, model)
    assert lowered.task.max_seq_length == 32
    assert f"--max-seq-length {default} is above the model's 32 positions" in note
    file = tmp_path / "settings.yaml"
    file.write_text(f"max_seq_length: {default}\n", encoding="utf-8")
    said = ["--config", str(file)] if is_in_a_file else ["--max-seq-length", str(default)]
    with pytest.raises(InputError, match=f"--max-seq-length {default}: the model has positions"):
        fit_length(parse_run(["--task", task, *said]), model)


def test_a_printed_configuration_says_no_length_that_nobody_gave(capsys):
    with pytest.raises(SystemExit):
        parse_command(["--task", "rte", "--print-config"])
    printed = capsys.readouterr().out
    assert "\nmax_seq_length" not in printed
    assert "since nobody gave them: max_seq_length 320, top_h 5, " in printed


@pytest.mark.parametrize("family", UNLIMITED)
def test_relative_positions_have_no_last_one_but_what_was_trained_is_told(family, asking):
    model = AutoConfig.for_model(family, **UNLIMITED[family])
    config = asking("--max-seq-length", "1000000")
    same, notes = fit_length(config, model)
    assert same is config
    assert len(notes) == hasattr(model, "max_position_embeddings")


def test_a_recipes_length_is_lowered_and_the_run_goes_on_with_it(short_words, tmp_path, capsys):
    """The model has 64 positions, sst2's recipe 128 tokens; resume and packing agree with it."""
    words = [*short_words, "--max-steps", "10", "--output-dir", str(tmp_path / "run")]
    at = words.index("--max-seq-length")
    del words[at : at + 2]
    plan = plan_run(parse_run([*words, "--packing"]))
    assert plan.config.task.max_seq_length == 64
    assert max(prepare_run(plan).buckets) == 64
    train.main(words)
    assert "note: --max-seq-length 128 is above the model's 64 positions" in capsys.readouterr().err
    assert "max_seq_length: 64" in (tmp_path / "run" / "config.yaml").read_text()
    train.main(words)
    assert "this run is finished" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        train.main([*words, "--max-seq-length", "65"])
    assert end.value.code == 2
    assert "Give at most --max-seq-length 64" in capsys.readouterr().err
    adapter = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert adapter["step"] == 10


def test_a_tokenizer_that_frames_no_text_is_told(tiny_model):
    tokenizer = load_tokenizer(tiny_model)
    assert note_tokenizer(16, tokenizer) == ()
    tokenizer.model_max_length = 12
    tokenizer.backend_tokenizer.post_processor = None
    shorter, bare = note_tokenizer(16, tokenizer)
    assert "model_max_length 12" in shorter
    assert "puts it around no text" in bare
