"""Question answering by the commands: files of SQuAD's layout, every family of base models."""

import json
import shutil

import pytest
from transformers import AutoConfig

from increlora_jax import TINY_ENCODER, evaluate, train
from increlora_jax.errors import InputError
from increlora_jax.run.build import plan_run
from increlora_jax.run.command_line import parse_run
from increlora_jax.run.scored_data import Source
from tests.families import FAMILIES, make_folder


def cut(path, questions):
    """The first paragraphs of a file, up to so many questions, in its own layout."""
    data = json.loads(path.read_text(encoding="utf-8"))
    kept, left = [], questions
    for paragraph in data["data"][0]["paragraphs"]:
        qas = paragraph["qas"][:left]
        left -= len(qas)
        kept.append({**paragraph, "qas": qas})
        if not left:
            break
    return {"version": data["version"], "data": [{"title": "cut", "paragraphs": kept}]}


@pytest.fixture(scope="session")
def squad(data_dir, tmp_path_factory):
    """A folder of real questions, few enough for a short run; of v2.0 on dev."""
    folder = tmp_path_factory.mktemp("squad")
    files = {"train-v1.1.json": "train-v1.1.partial.json", "dev-v2.0.json": "cs224n-dev-v2.0.json"}
    for name, source in files.items():
        held = cut(data_dir / "squad" / source, 40 if "train" in name else 25)
        (folder / name).write_text(json.dumps(held), encoding="utf-8")
    return folder


def words_of(squad, run, **changes):
    flags = {
        "task": "squad_v2",
        "data-dir": squad,
        "model": TINY_ENCODER,
        "output-dir": run,
        "max-seq-length": 64,
        "doc-stride": 24,
        "max-steps": 6,
        "eval-steps": 3,
        "train-batch-size": 16,
        "target-rank": 2,
        "top-h": 16,
        "init-warmup": 1,
        "incre-interval": 2,
        "pad-to-max-length": True,
    } | changes
    return [str(word) for name, value in flags.items() for word in (f"--{name}", value)]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_grows_to_its_budget_and_is_scored(family, squad, tmp_path):
    model = make_folder(family, tmp_path / "model")
    train.main(words_of(squad, tmp_path / "run", model=model, **{"max-steps": 10}))
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["total_rank"] == results["rank_budget"] == 2 * len(results["ranks"])
    assert results["step_compilations"] == 2  # scored, and not scored
    assert 0 <= results["metrics"]["exact_match"] <= results["metrics"]["f1"] <= 100
    assert results["data"]["dev"]["without_answer"] > 0
    head = results["trainable_parameters"]["head"]
    width = AutoConfig.from_pretrained(model).hidden_size
    assert head == 2 * width + 2  # qa_outputs alone


def test_the_adapter_is_scored_again_alone_and_on_other_files(squad, tmp_path, capsys):
    run = tmp_path / "run"
    train.main(words_of(squad, run))
    results = json.loads((run / "results.json").read_text())
    assert evaluate.evaluate(run) == results["metrics"]
    capsys.readouterr()
    evaluate.main(["--run", str(run), "--file", str(squad / "train-v1.1.json")])
    told = json.loads(capsys.readouterr().out)
    assert told["data"] == "other"
    (split,) = told["splits"].values()
    assert split["questions"] == 40
    assert split["rows"] > 40
    assert "NoAns_f1" not in told  # every question of that file has an answer
    assert split["loss"] > 0


def test_a_stopped_run_goes_on_as_if_nothing_had_been(squad, tmp_path):
    whole, half = tmp_path / "whole", tmp_path / "half"
    words = {"save-steps": 3, "max-steps": 6}
    train.main(words_of(squad, whole, **words))
    shutil.copytree(whole, half)
    (half / "results.json").unlink()
    for folder in sorted((half / "checkpoints").iterdir())[-1:]:
        shutil.rmtree(folder)
    train.main(words_of(squad, half, **words))
    told = [json.loads((run / "results.json").read_text()) for run in (whole, half)]
    assert told[0]["metrics"] == told[1]["metrics"]
    assert told[0]["rounds"] == told[1]["rounds"]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"task": "squad"}, r"without an answer, the first '\w+'; --task squad_v2 is for such"),
        ({"packing": True}, "--packing does not support --task squad_v2"),
        ({"doc-stride": 60}, "Lower --doc-stride"),
        ({"data-dir": "nowhere"}, "nowhere: cannot be read as a folder"),
    ],
)
def test_what_cannot_be_done_is_said_when_planned(changes, problem, squad, tmp_path):
    with pytest.raises(InputError, match=problem):
        plan_run(parse_run(words_of(squad, tmp_path / "run", **changes)))


def test_one_file_is_not_train_and_dev(squad, tmp_path):
    shutil.copy(squad / "train-v1.1.json", tmp_path / "train-dev.json")
    with pytest.raises(InputError, match=r"train-dev\.json is train and dev by its name"):
        plan_run(parse_run(words_of(tmp_path, tmp_path / "run")))


def test_names_of_columns_are_refused_for_other_data(squad, tmp_path):
    train.main(words_of(squad, tmp_path / "run", method="head"))
    source = Source(file=str(squad / "train-v1.1.json"), text_column=["foo"])
    with pytest.raises(InputError, match="are not for squad_v2, whose files have fixed columns"):
        evaluate.examine(tmp_path / "run", source, base={})


def test_steps_are_counted_in_rows(squad, tmp_path):
    words = words_of(squad, tmp_path / "run", **{"num-train-epochs": 2})
    at = words.index("--max-steps")
    del words[at : at + 2]
    plan = plan_run(parse_run(words))
    rows = len(plan.encoded["train"])
    assert rows > len(plan.data.train) == 40
    assert plan.epoch_steps == -(-rows // 16)
    assert plan.total_steps == 2 * plan.epoch_steps
