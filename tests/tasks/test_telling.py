import pytest

from increlora_jax.errors import InputError
from increlora_jax.tasks.text import load_text


def load(tmp_path, labels, dev_labels=None, problem_type="auto"):
    for split, values in (("train", labels), ("dev", dev_labels or labels[:1])):
        content = "\n".join(["text\tlabel", *(f"x\t{value}" for value in values)])
        (tmp_path / f"{split}.tsv").write_text(content, encoding="utf-8")
    return load_text(tmp_path, problem_type)


SCORES = [f"{i / 7:.2f}" for i in range(1, 24)]


@pytest.mark.parametrize("odd", ["nan", "NA", "3,5", "-", "None", "1.5.2", "good", "\u0663"])
def test_one_odd_label_among_scores_is_an_error_with_its_line(tmp_path, odd):
    labels = [*SCORES[:10], odd, *SCORES[10:]]
    with pytest.raises(
        InputError, match=rf"train.tsv:12: label '{odd}' is no number, and 23 of 24"
    ):
        load(tmp_path, labels)


@pytest.mark.parametrize("odd", ["x", "two", "NA"])
def test_one_odd_label_among_whole_numbers_is_one_too(tmp_path, odd):
    with pytest.raises(
        InputError, match=rf"train.tsv:32: label '{odd}' is no number, and 30 of 31"
    ):
        load(tmp_path, [*"012" * 10, odd])


def test_a_few_odd_labels_are_named_and_the_rest_counted(tmp_path):
    labels = [*SCORES * 9, "NA", "?", "bad", "-", "-"]
    with pytest.raises(
        InputError, match=r"train.tsv:209: label 'NA'.*also '\?' at 210, 'bad' at 211, and 2 more"
    ):
        load(tmp_path, labels)


@pytest.mark.parametrize(
    "labels",
    [
        ["1", "2", "3", "NA", "NA"],
        ["1.5", "2,5", "3,5", "2.5"],
        ["1.5", "2.5", "3.5", "x"],
        ["1,5", "2,5"] * 10,
        ["1.5", "\u22121.5"] * 10,
        ["2", "\u22121"] * 10,
        [*SCORES[:4], "nan", "", "null"],
    ],
)
def test_fractions_missing_values_and_other_spellings_are_errors_at_half_the_share(
    tmp_path, labels
):
    with pytest.raises(
        InputError, match=r"train.tsv:\d+: (label .* is no number|the label is emp)"
    ):
        load(tmp_path, labels)


@pytest.mark.parametrize(
    "labels", [["10%", "97 %"] * 3, ["$3", "$4.50"] * 3, ["1,5 €"] * 3, ["5%"] * 3 + ["none"]]
)
def test_numbers_with_a_unit_are_errors_and_classes_only_if_it_is_said(tmp_path, labels):
    with pytest.raises(InputError, match=r"train.tsv:2: label .* is a number with a unit. Write b"):
        load(tmp_path, labels)
    labels = [*labels, "other"]
    assert load(tmp_path, labels, problem_type="single_label_classification").task.num_labels > 1


def test_classes_among_which_a_few_have_a_unit_are_classes(tmp_path):
    assert load(tmp_path, ["5%", "low", "high"]).task.labels == ("5%", "high", "low")


def test_decimal_commas_are_called_so(tmp_path):
    with pytest.raises(InputError, match=r"label '1,5'.*. Write its decimal comma as a point"):
        load(tmp_path, ["1,5", "2,5"])
    with pytest.raises(InputError, match=r"dev.tsv:2: label '1,5'.*. Write its decimal comma"):
        load(tmp_path, ["1.5", "2.5"], ["1,5"])


@pytest.mark.parametrize(
    "labels", [["0", "1", "two"], ["none", "favor", "against"], ["1", "2", "3", "4a", "4b"]]
)
def test_names_that_are_partly_numbers_are_classes(tmp_path, labels):
    assert load(tmp_path, labels).task.num_labels == len(labels)


def test_problem_type_makes_every_label_the_name_of_a_class(tmp_path):
    kind = "single_label_classification"
    assert load(tmp_path, [*SCORES, "NA"], problem_type=kind).task.num_labels == 24


def test_a_regression_may_have_a_dev_of_whole_numbers(tmp_path):
    assert load(tmp_path, SCORES, ["1", "2"]).dev["dev"].labels.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("common", "rare"),
    [
        ("positive", "Positive"),
        ("positive", "POSITIVE"),
        ("not good", "not\u00a0good"),
        ("good", "go\u200bod"),
        ("ab", "\uff41\uff42"),
        ("1", "01"),
        ("1", "1.0"),
    ],
)
def test_labels_that_are_alike_are_refused_unless_they_are_said_to_be_classes(
    tmp_path, common, rare
):
    labels = [common, "0", common, rare]
    with pytest.raises(
        InputError, match=r"train.tsv:5: label .* \(rows: 1\) differs from .*line 2"
    ):
        load(tmp_path, labels)
    data = load(tmp_path, labels, problem_type="single_label_classification")
    assert data.task.num_labels == 3
    assert any("kept apart as two classes" in note for note in data.notes)


def test_blanks_around_a_label_are_taken_away_and_counted(tmp_path):
    data = load(tmp_path, ["pos", "pos ", "\u00a0neg", "neg\u200b"], [" pos"])
    assert data.task.labels == ("neg", "pos")
    assert data.train.labels.tolist() == [1, 1, 0, 0]
    assert data.notes[2].startswith("3 rows with blanks around the label in train.tsv")
    with pytest.raises(InputError, match=r"train.tsv:3: the label is empty"):
        load(tmp_path, ["pos", "\u00a0", "neg"])


def test_a_label_of_dev_in_another_form_is_named_with_the_known_one(tmp_path):
    with pytest.raises(InputError, match=r"dev.tsv:2: label 'POS'.*differs from 'pos' by its form"):
        load(tmp_path, ["pos", "neg"], ["POS"])


def test_doubtful_labels_are_noted(tmp_path):
    notes = load(tmp_path, ["1.0", "2.0", "1.0"]).notes
    assert "every score in train.tsv is a whole number" in notes[1]
    notes = load(tmp_path, ["1", "2", "3", "x"]).notes
    assert notes[1] == "most labels in train.tsv are numbers; these are not: 'x'"
    notes = load(tmp_path, ["pos", "nan", "nan"]).notes
    assert "label 'nan' of 2 rows in train.tsv is a class like any other" in notes[1]
    notes = load(tmp_path, [f"name {i}" for i in range(30)]).notes
    assert "30 different labels in 30 rows: see that 'label' is the column meant" in notes[1]
