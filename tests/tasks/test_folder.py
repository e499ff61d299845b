import pytest

from increlora_jax.errors import InputError
from increlora_jax.tasks.base import Task
from increlora_jax.tasks.folder import find_split, load_folder, name_hub_split
from increlora_jax.tasks.tables import Layout

TASK = Task("demo", ("a", "b"), ("no", "yes"), ("accuracy",))
LAYOUTS = [Layout(("a", "b", "label"), skips_broken_rows=True)]


def test_split_is_found_under_every_accepted_name(tmp_path):
    for name in ("dev.tsv", "dev.csv", "dev.jsonl", "validation.tsv", "validation.jsonl"):
        (tmp_path / name).touch()
        assert find_split(tmp_path, "dev") == tmp_path / name
        (tmp_path / name).unlink()


def test_hub_names_of_splits():
    assert [name_hub_split(split) for split in ("train", "dev", "dev_mismatched")] == [
        "train",
        "validation",
        "validation_mismatched",
    ]


def test_missing_split_names_the_folder_and_the_file_to_add(tmp_path):
    with pytest.raises(InputError, match=r"no dev file is here; add one of dev.tsv, .*validation"):
        find_split(tmp_path, "dev")


def test_two_files_of_one_split_are_refused(tmp_path):
    (tmp_path / "dev.tsv").touch()
    (tmp_path / "validation.csv").touch()
    with pytest.raises(InputError, match=r"dev.tsv and validation.csv are both here"):
        find_split(tmp_path, "dev")


def test_missing_folder_and_a_file_in_its_place_are_refused(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(InputError, match=f"{folder}: cannot be read as a folder"):
            find_split(folder, "train")


def test_folder_named_like_a_file_is_refused(tmp_path):
    (tmp_path / "train.tsv").mkdir()
    (tmp_path / "dev.tsv").mkdir()
    with pytest.raises(InputError, match=r"train.tsv: cannot be read \(Is a directory\)"):
        load_folder(TASK, tmp_path, LAYOUTS)


def test_names_and_ids_are_both_labels(tmp_path):
    (tmp_path / "train.tsv").write_text("a\tb\tlabel\nx\ty\tyes\nz\tw\t0\n")
    (tmp_path / "dev.tsv").write_text("label\tb\ta\n1\ty\tx\n")
    data = load_folder(TASK, tmp_path, LAYOUTS)
    assert data.train.labels.tolist() == [1, 0]
    assert (data.dev["dev"].first, data.dev["dev"].second) == (["x"], ["y"])
    assert data.notes == ()


def test_oddities_are_read_and_counted(tmp_path):
    (tmp_path / "train.tsv").write_text("a\tb\tlabel\n\ty\t1\nx\t \t0\nx\ty\t1\n")
    (tmp_path / "dev.tsv").write_text("a\tb\tlabel\nx\ny\t1\nx\ty\t1\n")
    data = load_folder(TASK, tmp_path, LAYOUTS)
    assert len(data.train) == 3
    assert len(data.dev["dev"]) == 1
    assert data.notes == (
        "2 rows with empty text in train.tsv",
        "2 rows with too few or too many fields skipped in dev.tsv, the first on line 2",
    )
