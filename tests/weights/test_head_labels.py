"""A head that the checkpoint already has, matched with a task's labels by name."""

import json
import shutil
from functools import partial

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig

from increlora_jax import TINY_ENCODER
from increlora_jax.errors import InputError
from increlora_jax.models.registry import abstract_model, find_spec, load_model
from increlora_jax.run.build import plan_run, prepare_run
from increlora_jax.run.command_line import parse_run
from increlora_jax.weights.folder import load_weights, read_config, save_weights
from increlora_jax.weights.head_labels import choose_rows
from increlora_jax.weights.tokenizer import load_tokenizer
from tests.families import FAMILIES, SMALL
from tests.tiny import without

MNLI = ("entailment", "neutral", "contradiction")
OUTPUTS = {
    "bert": "classifier",
    "roberta": "classifier.out_proj",
    "deberta-v2": "classifier",
    "gpt2": "score",
    "llama": "score",
    "qwen3": "score",
    "t5": "classification_head.out_proj",
    "bart": "classification_head.out_proj",
}


def config_of(*names, **more):
    """A configuration whose labels have these names."""
    named = {"id2label": dict(enumerate(names))} if names else {}
    return AutoConfig.for_model("bert", **named, **more)


@pytest.mark.parametrize(
    ("config", "labels", "rows", "order", "said"),
    [
        (config_of(*MNLI), MNLI, 3, (0, 1, 2), "kept, which has the task's labels"),
        (config_of("CONTRADICTION", "neutral", "Entails"), MNLI, 3, (2, 1, 0), "entailment from"),
        (config_of("pos", "NEG"), ("negative", "positive"), 2, (1, 0), "permuted"),
        (
            config_of("not-Duplicate", "duplicate"),
            ("not_duplicate", "duplicate"),
            2,
            (0, 1),
            "kept",
        ),
        (config_of(num_labels=3), MNLI, 3, (0, 1, 2), "kept, whose labels have no names"),
        (config_of("0", "1"), ("negative", "positive"), 2, (0, 1), "no names"),
        (config_of("1", "0"), ("0", "1"), 2, (1, 0), "permuted"),
        (config_of("negative", "positive"), ("0", "1"), 2, (0, 1), "0 is negative, 1 is positive"),
        (config_of("-1", "1"), ("1", "-1"), 2, (1, 0), "permuted"),
        (config_of("joy", "anger"), ("negative", "positive"), 2, None, "joy, anger, the task"),
        (config_of("a", "A"), ("a", "b"), 2, None, "initialized anew"),
        (config_of(*MNLI), ("entailment", "not_entailment"), 2, (0, 1), "no names"),
        (config_of(*MNLI), ("entailment", "not_entailment"), 3, None, "labels entailment, neutral"),
        (config_of("score"), ("negative", "positive"), 1, None, "is for a regression"),
        (config_of("score"), None, 1, (0,), "kept, a regression"),
        (config_of("yes", problem_type="multi_label_classification"), None, 1, None, "anew"),
        (config_of(*MNLI), None, 3, None, "the task for a regression"),
        (config_of(*MNLI, problem_type="regression"), MNLI, 3, None, "is for a regression"),
    ],
)
def test_rows_are_chosen_by_name_and_the_choice_is_told(config, labels, rows, order, said):
    chosen = choose_rows(config, labels, rows)
    assert chosen.order == order
    assert said in chosen.note


@pytest.fixture
def save_family(tmp_path):
    """Save the smallest model of a family with a head of three named labels."""

    def save(family, names):
        config = AutoConfig.for_model(family, **(SMALL | {"vocab_size": 99} | FAMILIES[family]))
        config.id2label = dict(enumerate(names))
        folder = tmp_path / family
        config.save_pretrained(folder)
        spec = find_spec(config)
        build = spec.heads["sequence_classification"]
        save_weights(build(config, num_labels=3, rngs=nnx.Rngs(0)), folder, spec.weights)
        return folder

    return save


def layer_of(model, path):
    for name in path.split("."):
        model = getattr(model, name)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_every_familys_output_layer_is_permuted_or_starts_anew(family, save_family):
    folder = save_family(family, MNLI[::-1])
    config, stored = read_config(folder), load_file(folder / "model.safetensors")

    def load(labels):
        model = abstract_model(config, num_labels=3)
        choose = partial(choose_rows, config, labels)
        return model, load_weights(model, folder, find_spec(config).weights, choose)

    model, report = load(MNLI)
    layer = layer_of(model, OUTPUTS[family])
    key = OUTPUTS[family]
    np.testing.assert_array_equal(layer.kernel[...].T, stored[f"{key}.weight"][::-1])
    if layer.bias is not None:
        np.testing.assert_array_equal(layer.bias[...], stored[f"{key}.bias"][::-1])
    assert report.new_parameters == ()
    assert "permuted" in report.describe()[0]
    _, report = load(("a", "b", "c"))
    # What lies before the output layer stays.
    assert {path.rpartition(".")[0] for path in report.new_parameters} == {key}
    assert "initialized anew" in report.describe()[0]


def test_an_nli_model_scores_on_mnli_what_pytorch_scores(make_reference, short_run, tmp_path):
    """The task's rows are labelled as PyTorch predicts them: after the mend all are right."""
    torch = pytest.importorskip("torch")
    names = ("contradiction", "entailment", "neutral")
    reference, folder = make_reference(vocab_size=6000, id2label=dict(enumerate(names)))
    for file in TINY_ENCODER.glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    tokenizer = load_tokenizer(folder)
    words = ["good", "bad", "film", "plot", "very", "the", "movie", "not"]
    draw = np.random.default_rng(0)
    pairs = [tuple(" ".join(draw.choice(words, 4)) for _ in range(2)) for _ in range(24)]
    encoded = tokenizer(*zip(*pairs, strict=True), return_tensors="pt", padding=True)
    with torch.no_grad():
        reference.classifier.bias -= reference(**encoded).logits.mean(0)
        reference.save_pretrained(folder)
        said = [names[row] for row in reference(**encoded).logits.argmax(-1)]
    assert len(set(said)) > 1
    rows = "\n".join("\t".join((*p, s)) for p, s in zip(pairs, said, strict=True))
    for split in ("train", "dev_matched", "dev_mismatched"):
        (tmp_path / f"{split}.tsv").write_text(f"premise\thypothesis\tlabel\n{rows}\n")
    flags = ("--task", "mnli", "--data-dir", str(tmp_path), "--model", str(folder))
    run = prepare_run(plan_run(parse_run([*short_run, *flags, "--max-seq-length", "32"])))
    metrics = run.evaluator.metrics(run.first_state(), run.parts.base)
    assert metrics == {"accuracy": 1.0, "accuracy_mm": 1.0}
    assert any("permuted" in note for note in run.notes)
    assert json.loads((folder / "config.json").read_text())["id2label"]["0"] == names[0]


def test_seeds_share_a_permuted_head_and_draw_a_new_one_each(short_run, tiny_model, tmp_path):
    folder = tmp_path / "named"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())

    def heads(*names):
        (folder / "config.json").write_text(
            json.dumps(config | {"id2label": dict(enumerate(names))})
        )
        words = [*without(short_run, "--seed"), "--model", str(folder), "--seeds", "7,9"]
        run = prepare_run(plan_run(parse_run(words)))
        return [np.asarray(parts.head["classifier.kernel"]) for parts in run.starts]

    kept, same = heads("negative", "positive")
    np.testing.assert_array_equal(kept, same)
    for permuted in heads("positive", "negative"):
        np.testing.assert_array_equal(permuted, kept[:, ::-1])
    first, second = heads("joy", "anger")
    assert not np.array_equal(first, second)


def test_another_heads_keys_are_a_note_and_a_bodys_an_error(save_family):
    file = save_family("bert", MNLI) / "model.safetensors"
    weights = load_file(file)
    heads = ("lm_head.bias", "score.weight", "regression_head.dense.weight", "crf.transitions")
    save_file(weights | {key: np.zeros(3, np.float32) for key in heads}, file)
    _, report = load_model(file.parent, num_labels=3)
    assert set(report.ignored_keys) == set(heads)
    save_file(weights | {"bert.encoder.layer.7.x": np.zeros(3, np.float32)}, file)
    with pytest.raises(InputError, match=r"bert\.encoder\.layer\.7\.x\) left over"):
        load_model(file.parent, num_labels=3)
