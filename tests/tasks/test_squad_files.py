"""Files of questions, as people have them and as they break."""

import json

import pytest

from increlora_jax.config import TaskConfig
from increlora_jax.errors import InputError
from increlora_jax.tasks.kind import identify
from increlora_jax.tasks.registry import load_task
from increlora_jax.tasks.squad_files import (
    Answer,
    Question,
    find_questions,
    read_questions,
    take_columns,
)

CONTEXT = "Denver won Super Bowl 50."
ROW = {
    "id": "q1",
    "question": "Who won?",
    "context": CONTEXT,
    "answers": {"text": ["Denver"], "answer_start": [0]},
}
READ = Question("q1", "Who won?", CONTEXT, (Answer("Denver", 0),))


def squad_of(*entries, version="1.1"):
    qas = list(entries)
    paragraphs = [{"context": CONTEXT, "qas": qas}]
    return {"version": version, "data": [{"title": "50", "paragraphs": paragraphs}]}


ENTRY = {"id": "q1", "question": "Who won?", "answers": [{"text": "Denver", "answer_start": 0}]}


def write(path, held):
    path.write_text(held if isinstance(held, str) else json.dumps(held), encoding="utf-8")
    return path


def test_all_layouts_give_the_same_questions(tmp_path):
    listed = ROW | {"answers": ENTRY["answers"]}
    files = {
        "squad.json": squad_of(ENTRY),
        "array.json": [ROW],
        "data.json": {"data": [ROW]},
        "lines.json": json.dumps(ROW) + "\n",
        "rows.jsonl": json.dumps(ROW) + "\n",
        "listed.jsonl": json.dumps(listed) + "\n",
    }
    each = [read_questions(write(tmp_path / name, held)) for name, held in files.items()]
    each.append(take_columns({name: [value] for name, value in ROW.items()}, "hub"))
    assert all(split.rows == [READ] for split in each)
    assert len({identify(split) for split in each}) == 1
    assert [split.num_lines for split in each] == [None, 1, 1, 1, 1, 1, None]


def test_real_files_are_read_whole(data_dir):
    train = read_questions(data_dir / "squad" / "train-v1.1.partial.json")
    dev = read_questions(data_dir / "squad" / "cs224n-dev-v2.0.json")
    assert (len(train), len(dev)) == (4370, 6078)
    assert all(question.answers for question in train.rows)
    assert sum(not question.answers for question in dev.rows) == 3168
    assert max(len(question.answers) for question in dev.rows) > 2


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        (ENTRY | {"answers": [{"text": "Broncos", "answer_start": 0}]},
         "paragraphs[0].qas[0]: the answer 'Broncos' is not at character 0"),
        (ENTRY | {"answers": [{"text": "", "answer_start": -1}]}, "write an empty list of answers"),
        (ENTRY | {"answers": [{"text": "Denver", "answer_start": -25}]}, "is not at character -25"),
        (ENTRY | {"answers": [{"text": "", "answer_start": 3}]}, "the answer has no text"),
        (ENTRY | {"answers": [{"text": "Denver"}]}, "answer_start is missing or odd"),
        (ENTRY | {"answers": [{"text": "Denver", "answer_start": True}]}, "answer_start is"),
        (ENTRY | {"answers": "Denver"}, "answers is missing or odd"),
        (ENTRY | {"is_impossible": True}, "is_impossible is true beside answers"),
        (ENTRY | {"is_impossible": "yes"}, "is_impossible is 'yes'. Write true or false"),
        ({"id": "q1", "answers": []}, "question is missing or odd"),
        (ENTRY | {"question": ["Who?"]}, "'question' is"),
        ("Who won?", "an object is needed"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_an_entry_is_named_with_its_place(entry, problem, tmp_path):
    with pytest.raises(InputError) as error:
        read_questions(write(tmp_path / "train.json", squad_of(entry)))
    assert str(error.value).startswith(f"{tmp_path / 'train.json'}:1: paragraphs[0].qas[0]")
    assert problem in str(error.value)


@pytest.mark.parametrize(
    ("name", "held", "problem"),
    [
        ("a.json", squad_of(ENTRY, ENTRY), "the id 'q1' is at"),
        ("a.json", {"version": "1.1"}, "a.json:1: answers is missing or odd"),
        ("a.json", {"data": [{"title": "x"}]}, "a.json:1: answers is missing or odd"),
        ("a.json", {"data": [{"paragraphs": 1}]}, "a.json:1: paragraphs is missing or odd"),
        ("a.json", squad_of(), "no questions"),
        ("a.json", "", "no questions"),
        ("a.tsv", "", "questions are read from .json and .jsonl files"),
        ("a.json", '{"data": [', "a.json:1"),
        ("a.jsonl", json.dumps(ROW | {"is_impossible": True}), "a.jsonl:1: is_impossible is true"),
        ("a.json", '{"data": [], "data": []}', "more than one key is called 'data'"),
        ("a.jsonl", json.dumps(ROW) + "\n" + json.dumps(ROW | {"id": "q2", "answers": {
            "text": ["Denver"], "answer_start": []}}), "a.jsonl:2: answers has 1 of text and 0"),
        ("a.jsonl", json.dumps({"id": "q1"}), "a.jsonl:1: answers is missing or odd"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_said(name, held, problem, tmp_path):
    with pytest.raises(InputError) as error:
        read_questions(write(tmp_path / name, held))
    assert problem in str(error.value)


def test_files_are_found_by_the_split_in_their_names(tmp_path):
    for name in ("train-v1.1.json", "train-v2.0.json", "my_dev.jsonl", "devices.json", "a.txt"):
        write(tmp_path / name, "{}")
    assert find_questions(tmp_path, "train", "v1.1").name == "train-v1.1.json"
    assert find_questions(tmp_path, "train", "v2.0").name == "train-v2.0.json"
    assert find_questions(tmp_path, "dev", "v1.1").name == "my_dev.jsonl"
    assert find_questions(tmp_path, "validation", "v1.1").name == "my_dev.jsonl"
    with pytest.raises(InputError, match=r"no \( file is here"):
        find_questions(tmp_path, "(", "v1.1")
    write(tmp_path / "validation.json", "{}")
    with pytest.raises(InputError, match=r"my_dev\.jsonl and validation\.json are both here"):
        find_questions(tmp_path, "dev", "v1.1")
    with pytest.raises(InputError, match="no test file is here"):
        find_questions(tmp_path, "test", "v1.1")


def test_a_question_that_is_impossible_needs_no_answers(tmp_path):
    row = {name: value for name, value in ROW.items() if name != "answers"}
    split = read_questions(write(tmp_path / "a.jsonl", row | {"is_impossible": True}))
    assert split.rows[0].answers == ()


def test_files_of_the_folder_that_are_not_read_are_named(tmp_path):
    for name in ("train", "dev", "more"):
        write(tmp_path / f"{name}.json", squad_of(ENTRY))
    notes = load_task(TaskConfig(task="squad", data_dir=str(tmp_path))).notes
    assert f"not read in {tmp_path}: 'more.json'" in notes
