"""Docstrings, comments and messages keep to plain words (DESIGN §6)."""

import pytest

from tests import prose

FILES = prose.files()
PAGES = sorted([*prose.ROOT.glob("*.md"), *(prose.ROOT / "experiments").rglob("*.md")])


@pytest.mark.parametrize("path", FILES + PAGES, ids=lambda path: str(path.relative_to(prose.ROOT)))
def test_file_keeps_to_plain_words(path):
    assert prose.findings(path) == []


def test_no_room_says_what_too_often():
    shares = {room: 1000 * c.what / c.words for room, c in prose.counts().items()}
    too_many = {room for room, share in shares.items() if share > prose.MAX_WHAT}
    assert too_many == set()


def test_the_inner_rooms_say_any_as_a_last_resort():
    counts = prose.counts()
    shares = {room: 1000 * counts[room].any / counts[room].lines for room in prose.TYPED}
    assert {room for room, share in shares.items() if share > prose.MAX_ANY} == set()


def in_function(docstring):
    body = docstring.replace("\n", "\n    ")
    return f'def f(x):\n    """{body}\n    """\n'


@pytest.mark.parametrize(
    ("source", "line", "problem"),
    [
        (in_function("What is left."), 2, "opens with 'What'"),
        (in_function("The rows of a batch."), 2, "opens with 'The'"),
        ('class A:\n    """Of a run, the settings."""', 2, "opens with 'Of'"),
        ('"""From text to numbers."""', 1, "opens with 'From'"),
        (in_function("Return x.\n\nKeep it, lest it goes."), 4, "'lest': write"),
        (in_function("Return x.\n\n" + "word " * 20 + "\n" + "word " * 11 + "."), 4, "31 words"),
        (in_function("Return x.\n\nArgs:\n  x: A number."), 4, "indent its text by 4"),
        (in_function("Return x.\nArgs:\n    x: A number."), 3, "one blank line before"),
        (in_function("Return x.\n\nArguments:\n    x: A number."), 4, "write 'Args:'"),
        (in_function("Return x.\n\nRaises:\n    E: If so.\n\nArgs:\n    x: A."), 7, "the order is"),
        ("x = 1  # or else it stops", 1, "'or else': write"),
        ("x = 1  # the run goes on", 1, "'goes on': write"),
        ('x = 1\n"""A number that tells the rank."""', 2, "'tells': write"),
        ('raise ValueError(f"{x} is not what was told: give it")', 1, "'was told': write"),
        ('def f(a, b, c, d):\n    """Return a."""', 2, "add 'Args:'"),
    ],
)
def test_a_fault_is_found_and_named(source, line, problem):
    (found,) = prose.problems(source)
    assert found[0] == line
    assert problem in found[1]


@pytest.mark.parametrize(
    "source",
    [
        in_function("Return x."),
        in_function("W + s·(A∘λ)·B, the effective weights."),
        in_function("Return x and nothing else."),
        in_function("Return `x if y else z`.\n\n>>> print('goes on')\ngoes on"),
        in_function("Return x.\n\nArgs:\n    x: A number,\n        of any size."),
        in_function("Return x.\n\n" + "word " * 20 + ".\n" + "word " * 11 + "."),
        'class A:\n    """Settings."""\n    @property\n    def b(self):\n        """Rank."""',
        "x = a if b else c",
        'x = {"lies": "else"}',
    ],
)
def test_plain_words_are_no_fault(source):
    assert prose.problems(source) == []


def test_a_page_names_no_issue_and_keeps_its_code():
    assert prose.markdown_problems("As issue 5 asked.\n```\nx if y else z\n```\n") == [
        (1, "'issue 5': name the thing, not the issue")
    ]


def test_counts_add_up_over_files():
    source = '"""What a file does."""\nfrom typing import Any\nx: Any = 1\n'
    expected = prose.Counts(any=1, lines=3, what=1, words=4, openings=1)
    assert prose.count(source) == expected
    assert prose.count(source).plus(expected) == prose.Counts(2, 6, 2, 8, 2)
