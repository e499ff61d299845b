import pytest

from increlora_jax.errors import InputError
from increlora_jax.tasks.data.layout import Columns, Layout, choose_layout

DEFAULTS = [("text1", "text2"), ("text",)]


def test_columns_that_are_named_replace_the_defaults():
    assert Columns(("body",), "class").make_layouts(DEFAULTS) == [Layout(("body", "class"))]
    assert [one.columns for one in Columns(label="class").make_layouts(DEFAULTS)] == [
        ("text1", "text2", "class"),
        ("text", "class"),
    ]
    assert [one.columns for one in Columns(("a", "b")).make_layouts(DEFAULTS)] == [
        ("a", "b", "label"),
        ("a", "b", "labels"),
    ]


def test_the_label_column_may_be_called_labels():
    layouts = Columns().make_layouts(DEFAULTS)
    assert choose_layout("x:1", ["labels", "text"], layouts)[0].columns == ("text", "labels")
    assert choose_layout("x:1", ["labels", "text", "label"], layouts)[0].columns[-1] == "label"


@pytest.mark.parametrize(
    ("texts", "label", "problem"),
    [
        (("a", "b", "c"), None, "--text-column a b c: one text or two are read"),
        (("a", "a"), None, "'a', 'a' name a column twice"),
        (("",), None, "need names that are not empty"),
        ((), "", "need names that are not empty"),
        (("a",), "a", "'a', 'a' name a column twice"),
    ],
)
def test_names_that_do_not_fit_together_are_refused(texts, label, problem):
    with pytest.raises(InputError, match=problem):
        Columns(texts, label)


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        (["text", "target"], r"the needed ones are 'text', 'label'. .*--label-column$"),
        (["body", "label"], r"the needed ones are 'text1', 'text2', 'label' or 'text', 'label'. "),
        (["Text", "label "], r"'label ', the needed ones are 'text', 'label'. "),
        (["text,label"], r"commas separate the columns; end the file's name in \.csv\)$"),
        (["text\tlabel"], r"tabs separate"),
        (["text\ra\rb"], r"carriage return alone"),
    ],
)
def test_missing_columns_name_the_closest_layout_and_the_flags(header, problem):
    with pytest.raises(InputError, match=problem):
        choose_layout("x:1", header, Columns().make_layouts(DEFAULTS))
