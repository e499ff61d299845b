"""The prediction command and its functions, on trained runs."""

import csv
import json
import subprocess
import sys
import threading
from io import BytesIO, TextIOWrapper

import numpy as np
import pytest

import increlora_jax as il
from increlora_jax import predict
from increlora_jax.evaluate import examine
from increlora_jax.evaluate import main as evaluate
from increlora_jax.run.folder import CONFIG
from increlora_jax.run.scored_data import Source
from increlora_jax.tasks.text_answers import Classified, Scored

TEXTS = ["good film", "bad plot", "the very good film", "awful"]


@pytest.fixture(scope="module")
def run(run_once):
    return run_once()


def answer(capsys, *words):
    predict.main([str(word) for word in words])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_the_dev_file_gets_the_labels_that_its_evaluation_counts(run, toy_data, tmp_path, capsys):
    found = answer(capsys, "--run", run, "--input", toy_data / "dev.tsv")
    labels = [line.rpartition("\t")[2] for line in (toy_data / "dev.tsv").read_text().splitlines()]
    metrics = json.loads((run / "results.json").read_text())["metrics"]
    right = [one["label"] == ("negative", "positive")[int(own)] if own.isdigit() else False
             for one, own in zip(found, labels[1:], strict=True)]  # fmt: skip
    assert np.mean(right) == pytest.approx(metrics["accuracy"])
    for one in found:
        assert sum(one["probabilities"].values()) == pytest.approx(1)
        assert max(one["probabilities"], key=one["probabilities"].get) == one["label"]


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".tsv", ".json", ".txt", ".jsonl.gz"])
def test_every_form_of_input_and_output_gives_the_same_in_order(run, ending, tmp_path, capsys):
    import gzip

    expected = answer(capsys, "--run", run, *(w for text in TEXTS for w in ("--text", text)))
    rows = [{"sentence": text, "label": "ignored"} for text in TEXTS]
    content = {
        ".jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        ".json": json.dumps(rows),
        ".csv": "label,sentence\n" + "".join(f'1,"{text}"\n' for text in TEXTS),
        ".tsv": "sentence\tid\n" + "".join(f"{text}\t7\n" for text in TEXTS),
        ".txt": "".join(f"{text}\n" for text in TEXTS),
    }
    path = tmp_path / f"in{ending}"
    data = content[ending.removesuffix(".gz")].encode()
    path.write_bytes(gzip.compress(data) if ending.endswith(".gz") else data)
    assert answer(capsys, "--run", run, "--input", path) == expected
    for form in (".csv", ".tsv"):
        out = tmp_path / f"out{form}"
        answer(capsys, "--run", run, "--input", path, "--output", out)
        with out.open(newline="") as file:
            table = list(csv.DictReader(file, delimiter="," if form == ".csv" else "\t"))
        assert [row["label"] for row in table] == [one["label"] for one in expected]
        name = next(iter(expected[0]["probabilities"]))
        assert [float(row[f"probabilities.{name}"]) for row in table] == [
            one["probabilities"][name] for one in expected
        ]


def test_standard_input_is_read_as_json_lines(run, capsys, monkeypatch):
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(lines.encode())))
    found = answer(capsys, "--run", run, "--input", "-")
    assert found == answer(capsys, "--run", run, *(w for t in TEXTS for w in ("--text", t)))


def test_pieces_and_batches_change_no_answer(run, tmp_path, capsys, monkeypatch):
    path = tmp_path / "in.jsonl"
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(TEXTS, random.integers(1, 3))) for _ in range(50)]
    path.write_text("".join(json.dumps({"sentence": text}) + "\n" for text in texts))
    whole = answer(capsys, "--run", run, "--input", path)
    monkeypatch.setattr(predict, "PIECE", 7)
    for size in ("2", "64"):
        parted = answer(capsys, "--run", run, "--input", path, "--batch-size", size)
        assert [one["label"] for one in parted] == [one["label"] for one in whole]
        for one, other in zip(parted, whole, strict=True):
            np.testing.assert_allclose(
                [*one["probabilities"].values()], [*other["probabilities"].values()], atol=1e-6
            )


def test_only_the_most_probable_are_told_if_asked(run, capsys):
    (one,) = answer(capsys, "--run", run, "--text", "good film", "--top-k", 1)
    assert list(one["probabilities"]) == [one["label"]]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"sentence": "a"}\n{"sentence": 1, }\n', "in.jsonl:2: not valid JSON"),
        ('{"sentence": "a"}\n{"text": "a"}\n', "in.jsonl:2: the columns here are 'text'"),
        ('{"sentence": "a"}\n\n{"sentence": "a"}\n', "in.jsonl:2: a blank line"),
        ('{"sentence": "a"}\n{"sentence": null}\n', "in.jsonl:2: 'sentence' is 'None'"),
        ("", "in.jsonl:1: the file is empty"),
        ('{"words": "a"}\n', "in.jsonl:1: the columns here are 'words'"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_left(run, content, said, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(predict, "PIECE", 1)  # the first rows are answered before the bad one
    (tmp_path / "in.jsonl").write_text(content)
    (tmp_path / "out.jsonl").write_text("as it was")
    with pytest.raises(SystemExit) as ended:
        answer(capsys, "--run", run, "--input", tmp_path / "in.jsonl", "--output",
               tmp_path / "out.jsonl")  # fmt: skip
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
    assert (tmp_path / "out.jsonl").read_text() == "as it was"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give either --text, or --input"),
        (["--text", "a", "--input", "-"], "give either --text, or --input"),
        (["--text", "a", "--text2", "b"], "takes one text an example"),
        (["--text", "a", "--top-k", "0"], "--top-k 0 is not at least 1"),
        (["--text", "a", "--batch-size", "0"], "--batch-size 0 is not at least 1"),
        (["--text", "a", "--output", "x.xlsx"], "End it in .jsonl, .csv, .tsv"),
        (["--text", "a", "--output", "nowhere/x.csv"], "not a file in a folder that exists"),
        (["--input", "nowhere.csv"], "nowhere.csv: cannot be read"),
        (["--input", "x.docx"], "x.docx: unknown kind of file"),
        (["--text", "a", "--text-column", "b"], "--text-column is for --input"),
    ],
)
def test_wrong_flags_are_one_line_and_a_status(run, words, said, capsys):
    with pytest.raises(SystemExit) as ended:
        predict.main(["--run", str(run), *words])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_a_folder_without_a_model_says_what_is_needed(tmp_path, capsys):
    with pytest.raises(SystemExit):
        predict.main(["--run", str(tmp_path), "--text", "a"])
    assert "no trained model is here" in capsys.readouterr().err


def test_pieces_alike_use_the_same_programs(run):
    predictor = il.load(run, batch_size=8)
    draw = np.random.default_rng(0)
    shapes = []
    for _ in range(6):
        texts = [" ".join(draw.choice(TEXTS, draw.integers(1, 4))) for _ in range(300)]
        predictor(texts)
        shapes.append(len(predictor._forward._programs))
    assert shapes[-1] <= 4
    predictor(["good film " * 20] * 100)  # longer than all before: cut to 16 tokens


def test_from_python_it_is_two_lines(run):
    predictor = il.load(run)
    one = predictor("good film")
    assert isinstance(one, Classified)
    many = predictor(TEXTS)
    assert [type(each) for each in many] == [Classified] * 4
    assert many[0].label == one.label
    np.testing.assert_allclose(
        [*many[0].probabilities.values()], [*one.probabilities.values()], atol=1e-6
    )
    assert predictor([]) == []
    with pytest.raises(il.InputError, match="takes one text"):
        predictor(("a", "b"))
    with pytest.raises(il.InputError, match="text 1: '3'"):
        predictor(["a", 3])


def test_threads_get_their_own_answers(run):
    predictor = il.load(run)
    expected = {text: predictor(text) for text in TEXTS}
    found, threads = {}, []
    for number in range(12):
        text = TEXTS[number % 4]

        def ask(number=number, text=text):
            found[number] = [predictor(text) for _ in range(5)]

        threads.append(threading.Thread(target=ask))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, answers in found.items():
        assert answers == [expected[TEXTS[number % 4]]] * 5


def test_an_adapter_alone_answers_as_its_run(run, tmp_path, capsys):
    flags = ["--text", "good film"]
    assert answer(capsys, "--run", run / "adapter", *flags) == answer(capsys, "--run", run, *flags)
    with pytest.raises(SystemExit):
        answer(capsys, "--run", run / "adapter", "--adapter", "best", *flags)
    assert "--adapter best" in capsys.readouterr().err


def test_an_evaluation_writes_its_answers_and_takes_an_adapter_alone(
    run, toy_data, tmp_path, capsys
):
    evaluate(["--run", str(run), "--output", str(tmp_path / "a.jsonl")])
    told = json.loads(capsys.readouterr().out)
    written = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert written[0].keys() == {"label", "probabilities"}
    assert len(written) == 41
    evaluate(["--run", str(run / "adapter"), "--data-dir", str(toy_data)])
    alone = json.loads(capsys.readouterr().out)
    assert alone["accuracy"] == told["accuracy"]
    assert alone["data"] == "run"
    source = Source(str(toy_data))
    assert examine(run, source, base={}).metrics["accuracy"] == told["accuracy"]
    assert (run / CONFIG).is_file()


def test_a_regression_answers_with_scores(run_once, tmp_path, capsys):
    rows = [f"{text}\t{len(text) / 7:.2f}" for text in TEXTS * 10]
    for split in ("train", "dev"):
        (tmp_path / f"{split}.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n")
    run = run_once("--task", "text", "--data-dir", str(tmp_path))
    capsys.readouterr()
    assert answer(capsys, "--run", run, "--text", "good film")[0].keys() == {"score"}
    assert isinstance(il.load(run)("good film"), Scored)
    with pytest.raises(SystemExit):
        answer(capsys, "--run", run, "--text", "good film", "--top-k", 2)
    assert "--top-k is for classes" in capsys.readouterr().err


def test_no_file_of_the_data_is_overwritten(run, toy_data, capsys):
    before = (toy_data / "dev.tsv").read_text()
    for words in ([], ["--data-dir", str(toy_data)], ["--file", str(toy_data / "dev.tsv")]):
        with pytest.raises(SystemExit) as ended:
            evaluate(["--run", str(run), *words, "--output", str(toy_data / "dev.tsv")])
        assert ended.value.code == 2
        assert "Name another" in capsys.readouterr().err
    assert (toy_data / "dev.tsv").read_text() == before


def test_wrong_arguments_from_python_are_named(run):
    predictor = il.load(run)
    for texts in (None, {"a": 1}, b"bytes", 3):
        with pytest.raises(il.InputError, match="Give a string, or a list of them"):
            predictor(texts)
    with pytest.raises(il.InputError, match="batch_size 0 is not at least 1"):
        il.load(run, batch_size=0)


def test_a_reader_that_has_seen_enough_ends_the_command(run, tmp_path):
    path = tmp_path / "in.txt"
    path.write_text("good film\n" * 200_000)
    command = f"{sys.executable} -m increlora_jax.predict --run {run} --input {path} | head -1"
    ended = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert json.loads(ended.stdout)["label"]
    assert "answered" not in ended.stderr  # which is said every few seconds
