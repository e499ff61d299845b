"""Runs that begin with an adapter: of PEFT's own training, or of another run."""

import json
import shutil

import numpy as np
import pytest

from increlora_jax import train
from increlora_jax.evaluate import main as evaluate
from increlora_jax.export import main as export
from increlora_jax.interop.peft_reading import read_peft
from increlora_jax.nn.factors import factors_of
from increlora_jax.run.command_line import parse_run
from increlora_jax.run.loading import load_trained
from increlora_jax.runtime.signals import Preempted
from tests.interop.test_peft_export import needs_peft
from tests.training.test_loop import SignalAt

MODULES = 12


@pytest.fixture(scope="module")
def peft_folder(tiny_model, toy_data, tmp_path_factory):
    """A LoRA that PEFT itself has trained, and its dev accuracy as PEFT computes it."""
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=2)
    config = peft.LoraConfig(
        task_type="SEQ_CLS", r=2, lora_alpha=5, target_modules=["query", "value", "dense"],
        rank_pattern={"key": 3, "value": 4}, alpha_pattern={"value": 7}, modules_to_save=["pooler"],
        exclude_modules=".*pooler.*",
    )  # fmt: skip
    model = peft.get_peft_model(model, config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 5e-3)

    def read(split):
        lines = (toy_data / f"{split}.tsv").read_text().splitlines()[1:]
        texts, labels = zip(*(line.split("\t") for line in lines), strict=True)
        return tokenizer(list(texts), padding=True, return_tensors="pt"), torch.tensor(
            [int(label) for label in labels]
        )

    inputs, labels = read("train")
    for _ in range(12):
        loss = torch.nn.functional.cross_entropy(model(**inputs).logits, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    inputs, labels = read("dev")
    with torch.no_grad():
        accuracy = (model(**inputs).logits.argmax(-1) == labels).float().mean().item()
    folder = tmp_path_factory.mktemp("peft") / "lora"
    model.save_pretrained(folder)
    return folder, accuracy


def lines_of(folder, split):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["split"] == split]


@needs_peft
def test_a_lora_of_pefts_own_scores_as_there(peft_folder, toy_data, capsys):
    folder, accuracy = peft_folder
    evaluate(["--run", str(folder), "--data-dir", str(toy_data)])
    assert json.loads(capsys.readouterr().out)["accuracy"] == pytest.approx(accuracy)


@needs_peft
def test_a_lora_of_pefts_own_grows_by_the_plan_on_top_of_its_ranks(
    peft_folder, short_words, toy_data, tmp_path
):
    folder, accuracy = peft_folder
    words = [*short_words, "--init-adapter", str(folder), "--target-rank", "4"]
    words += ["--scaling", "target"]
    train.main([*words, "--learning-rate", "1e-12", "--output-dir", str(tmp_path / "still")])
    results = json.loads((tmp_path / "still" / "results.json").read_text())
    first, *_, last = lines_of(tmp_path / "still", "dev")
    assert (first["step"], first["accuracy"]) == (0, pytest.approx(accuracy))
    assert last["accuracy"] == pytest.approx(accuracy)  # with a scale that no growth changes
    ranks = read_peft(folder).factors
    total = sum(own.rank for own in ranks.values()) + MODULES - len(ranks)
    assert lines_of(tmp_path / "still", "train")[0]["total_rank"] == total
    assert results["total_rank"] == results["rank_budget"] == 4 * MODULES
    train.main([*words, "--output-dir", str(tmp_path / "grown")])
    evaluate(["--run", str(tmp_path / "grown")])


@needs_peft
def test_from_peft_to_here_and_back_the_updates_are_the_same(peft_folder, short_words, tmp_path):
    folder, _ = peft_folder
    words = [*short_words, "--init-adapter", str(folder), "--target-rank", "4", "--no-growth"]
    train.main([*words, "--learning-rate", "1e-12", "--output-dir", str(tmp_path / "run")])
    export(["--run", str(tmp_path / "run"), "--format", "peft", "--output-dir",
            str(tmp_path / "back")])  # fmt: skip
    there, back = read_peft(folder).factors, read_peft(tmp_path / "back").factors
    for path, own in there.items():
        delta = back[path].left @ back[path].right
        np.testing.assert_allclose(delta, own.left @ own.right, atol=1e-5)


@pytest.mark.parametrize(
    "method", [["--no-growth"], ["--method", "lora", "--target-rank", "8"], ["--scaling", "target"]]
)
def test_a_run_goes_on_from_anothers_adapter_exactly(run_once, short_words, method, tmp_path):
    before = run_once("--target-rank", "3", "--max-steps", "16")
    words = [*short_words, "--init-adapter", str(before / "adapter"), "--target-rank", "4", *method]
    train.main([*words, "--learning-rate", "1e-12", "--output-dir", str(tmp_path / "run")])
    results = [json.loads((f / "results.json").read_text()) for f in (before, tmp_path / "run")]
    assert results[0]["metrics"] == results[1]["metrics"]
    there, here = (factors_of(load_trained(f).model.parts) for f in (before, tmp_path / "run"))
    for path, own in there.items():
        np.testing.assert_allclose(
            here[path].left @ here[path].right, own.left @ own.right, atol=2e-5
        )


def test_a_run_that_began_so_resumes_and_is_read_without_the_start(
    run_once, short_words, tmp_path, capsys
):
    start = shutil.copytree(run_once() / "adapter", tmp_path / "start")
    words = [*short_words, "--init-adapter", str(start), "--target-rank", "3"]
    words += ["--output-dir", str(tmp_path / "run")]
    train.main(words)
    train.main(words)
    assert "this run is finished" in capsys.readouterr().out
    other = json.loads((start / "adapter_config.json").read_text()) | {"step": 3}
    (start / "adapter_config.json").write_text(json.dumps(other))
    with pytest.raises(SystemExit):
        train.main(words)
    assert "init adapter" in capsys.readouterr().err
    shutil.rmtree(start)
    evaluate(["--run", str(tmp_path / "run")])


def test_a_stop_in_the_middle_of_such_a_run_changes_nothing(run_once, short_words, tmp_path):
    start = run_once() / "adapter"
    words = [*short_words, "--init-adapter", str(start), "--target-rank", "3", "--save-steps", "1"]
    train.main([*words, "--output-dir", str(tmp_path / "whole")])
    again = [*words, "--output-dir", str(tmp_path / "stopped")]
    for at in (0, 5):
        stop = SignalAt(at)
        with stop.listening(), pytest.raises(Preempted):
            train.train(parse_run(again), stop)
    train.main(again)
    for name in ("metrics.jsonl", "adapter/adapter_model.safetensors"):
        files = [tmp_path / which / name for which in ("whole", "stopped")]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_another_label_set_begins_with_a_new_head(run_once, short_words, tmp_path, capsys):
    for split in ("train", "dev"):
        rows = ["text\tlabel", *(f"good film {w}\t{w}" for w in ("a", "the", "very") * 20)]
        (tmp_path / f"{split}.tsv").write_text("\n".join(rows) + "\n")
    adapter = run_once()  # its last adapter
    words = [*short_words, "--task", "text", "--data-dir", str(tmp_path), "--target-rank", "3"]
    words += ["--init-adapter", str(adapter), "--output-dir", str(tmp_path / "run")]
    with pytest.raises(SystemExit):
        train.main(words)
    assert "another labels" in capsys.readouterr().err
    export(["--run", str(run_once()), "--format", "peft", "--output-dir", str(tmp_path / "peft")])
    capsys.readouterr()
    with pytest.raises(SystemExit):  # PEFT's folder knows its labels by a file of ours
        train.main([*words, "--init-adapter", str(tmp_path / "peft")])
    assert "another labels" in capsys.readouterr().err
    train.main([*words, "--ignore-head"])
    assert json.loads((tmp_path / "run" / "results.json").read_text())["total_rank"] == 36


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"peft_type": "VERA"}, "peft_type is VERA"),
        ({"use_dora": True}, "use_dora is True, and 0 of"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"init_lora_weights": "pissa"}, "changes the base model too"),
        ({"r": "2"}, "r is"),
        ({"r": 5}, "gives bert.encoder"),
        ({"alpha_pattern": {"(": 3}}, "is no regex"),
        ({"rank_pattern": [1]}, "rank_pattern is"),
    ],
)
@needs_peft
def test_what_is_no_plain_lora_is_refused_by_name(peft_folder, change, said, tmp_path, capsys):
    folder = shutil.copytree(peft_folder[0], tmp_path / "lora")
    config = json.loads((folder / "adapter_config.json").read_text()) | change
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(SystemExit) as ended:
        evaluate(["--run", str(folder)])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--init-adapter", "nowhere"], "no such folder"),
        (["--ignore-head"], "--ignore-head is for --init-adapter"),
        (["--init-adapter", "ADAPTER", "--method", "head"], "is for methods with adapters"),
        (["--init-adapter", "ADAPTER", "--target-rank", "1"], "below the initial total"),
        (["--init-adapter", "ADAPTER", "--method", "lora", "--target-rank", "1"], "has 1 slots"),
        (["--init-adapter", "ADAPTER", "--target-modules", "query"], "this run does not"),
        (["--init-adapter", "ADAPTER", "--sweep", "lora_alpha=4,8"], "--sweep lora_alpha"),
    ],
)
def test_a_wrong_start_is_refused(run_once, short_run, words, said, capsys):
    adapter = str(run_once("--target-rank", "3", "--max-steps", "16") / "adapter")
    with pytest.raises(SystemExit) as ended:
        train.main([*short_run, *(adapter if word == "ADAPTER" else word for word in words)])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
