import pytest

from increlora_jax.errors import InputError
from increlora_jax.tasks.data.folder import find_split, list_unused, name_hub_split


def test_split_is_found_under_every_accepted_name(tmp_path):
    for name in ("dev.tsv", "dev.csv", "dev.jsonl", "validation.tsv", "validation.jsonl"):
        (tmp_path / name).touch()
        assert find_split(tmp_path, "dev") == tmp_path / name
        (tmp_path / name).unlink()


def test_a_split_by_hugging_faces_name_is_found_under_ours(tmp_path):
    (tmp_path / "dev_matched.csv").touch()
    assert find_split(tmp_path, "validation_matched") == tmp_path / "dev_matched.csv"


@pytest.mark.parametrize("stem", ["dev", "validation", "validation-00000-of-00001"])
@pytest.mark.parametrize(
    "suffix",
    [".json", ".parquet", ".tsv.gz", ".csv.gz", ".jsonl.gz", ".json.gz", ".CSV", ".Tsv.GZ"],
)
def test_kinds_of_files_are_known_in_any_case(tmp_path, stem, suffix):
    for name in (stem + suffix, stem.upper() + suffix):
        (tmp_path / name).touch()
        assert find_split(tmp_path, "dev") == tmp_path / name
        (tmp_path / name).unlink()


def test_files_that_are_not_read_are_named(tmp_path):
    for name in (
        "train.tsv",
        "dev.tsv",
        "test.csv",
        "Extra.JSON",
        "notes.txt",
        "._train.tsv",
        "x.parquet.gz",
    ):
        (tmp_path / name).touch()
    used = [tmp_path / "train.tsv", tmp_path / "dev.tsv"]
    (note,) = list_unused(tmp_path, used)
    assert note.startswith(f"not read in {tmp_path}: 'Extra.JSON', 'test.csv'; to score")
    assert note.endswith("evaluate --run RUN --split test")
    (tmp_path / "test.csv").unlink()
    assert list_unused(tmp_path, used) == [f"not read in {tmp_path}: 'Extra.JSON'"]
    (tmp_path / "Extra.JSON").unlink()
    assert list_unused(tmp_path, used) == []


def test_missing_split_names_the_files_that_are_there(tmp_path):
    for name in ("val.csv", "dev.xlsx", ".hidden.csv"):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"no dev file is here.*here are 'dev.xlsx', 'val.csv'$"):
        find_split(tmp_path, "dev")


def test_hub_names_of_splits():
    assert [name_hub_split(split) for split in ("train", "dev", "dev_mismatched")] == [
        "train",
        "validation",
        "validation_mismatched",
    ]


def test_missing_split_names_the_folder_and_the_file_to_add(tmp_path):
    with pytest.raises(
        InputError, match=r"no dev file is here. Add dev or validation with one of .tsv, "
    ):
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
