"""Answers to questions, and exports of models that answer them."""

import json

import pytest

import increlora_jax as il
from increlora_jax.evaluate import main as evaluate
from increlora_jax.export import main as export
from increlora_jax.predict import main as predict
from tests.families import FAMILIES, make_folder
from tests.interop.scrambled import make_run
from tests.interop.test_peft_export import needs_peft

CONTEXT = "the film was made in 1994 by a man who had never seen a camera before that year"


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """Twenty questions on one context, as rows."""
    folder = tmp_path_factory.mktemp("questions")
    starts = [CONTEXT.index(word) for word in ("1994", "a man", "camera", "that year")] * 5
    rows = [
        {"id": f"q{n}", "question": f"when or who {n} ?", "context": CONTEXT,
         "answers": [{"text": CONTEXT[start : start + 4], "answer_start": start}]}
        for n, start in enumerate(starts)
    ]  # fmt: skip
    for split in ("train", "dev"):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(text)
    return folder


@pytest.fixture(scope="module")
def make(questions, tmp_path_factory):
    def make(family, task="squad"):
        folder = tmp_path_factory.mktemp(family)
        model = make_folder(family, folder / "model")
        words = ["--task", task, "--data-dir", str(questions), "--model", str(model)]
        words += ["--max-steps", "30", "--max-seq-length", "24", "--doc-stride", "4"]
        return make_run(folder / "run", words)

    return make


@pytest.mark.parametrize("task", ["squad", "squad_v2"])
def test_the_answers_are_those_that_the_evaluation_scores(make, questions, task, tmp_path, capsys):
    run = make("bert", task)
    evaluate(["--run", str(run), "--output", str(tmp_path / "scored.jsonl")])
    bare = [json.loads(line) for line in (questions / "dev.jsonl").read_text().splitlines()]
    rows = [{key: row[key] for key in ("id", "question", "context")} for row in bare]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    predict(["--run", str(run), "--input", str(tmp_path / "in.jsonl"),
             "--output", str(tmp_path / "out.jsonl")])  # fmt: skip
    found, scored = (
        [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        for name in ("out.jsonl", "scored.jsonl")
    )
    assert [one["id"] for one in found] == [row["id"] for row in rows]
    assert [one["answer"] for one in found] == [one["answer"] for one in scored]
    assert all(one["answer"] in CONTEXT for one in found)
    assert any(one["answer"] for one in found) or task == "squad_v2"
    capsys.readouterr()


def test_a_question_comes_with_its_context(make):
    predictor = il.load(make("bert"))
    one = predictor(("when ?", CONTEXT))
    assert one.answer in CONTEXT
    assert one.answer
    assert predictor([("when ?", CONTEXT)] * 2)[1].answer == one.answer
    with pytest.raises(il.InputError, match="a tuple of question and context"):
        predictor("when ?")
    with pytest.raises(il.InputError, match="--top-k is for classes"):
        predictor(("when ?", CONTEXT), top_k=2)


@needs_peft
def test_an_export_that_pytorch_cannot_load_is_refused(make, tmp_path, capsys):
    """transformers' Llama for questions does not find the weights of a Llama for anything else."""
    with pytest.raises(SystemExit):
        export(["--run", str(make("llama")), "--format", "peft", "--output-dir",
                str(tmp_path / "out")])  # fmt: skip
    assert "computes otherwise than the run: read again by PEFT" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@needs_peft
@pytest.mark.parametrize(
    ("family", "form"),
    [(f, form) for f in FAMILIES for form in ("peft", "merged")
     if f != "qwen3" and (f, form) != ("llama", "peft")],
)  # fmt: skip
def test_pytorch_finds_the_same_for_every_family(make, family, form, tmp_path, capsys):
    export(["--run", str(make(family)), "--format", form, "--output-dir", str(tmp_path / "out")])
    told = json.loads(capsys.readouterr().out)
    assert len(told["differences"]) == 2
    assert max(told["differences"].values()) < 1e-3
