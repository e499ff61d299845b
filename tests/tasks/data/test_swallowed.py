import numpy as np
import pytest

from increlora_jax.errors import InputError
from increlora_jax.tasks.data.layout import Layout
from increlora_jax.tasks.data.tables import read_table
from increlora_jax.tasks.glue import load_glue
from increlora_jax.tasks.split import known_task, load_split
from increlora_jax.tasks.text import load_text

LAYOUT = Layout(("text", "label"))


def read(tmp_path, lines, layout=LAYOUT, end="\n"):
    path = tmp_path / "train.csv"
    path.write_text(end.join(lines) + end, encoding="utf-8", newline="")
    return read_table(path, [layout])


def reviews(count):
    random = np.random.default_rng(0)
    words = ["good", "bad", "film", "plot", "the", "a"]
    labels = ["negative", "neutral", "positive"]
    return [
        f"{' '.join(random.choice(words, 6))},{labels[random.integers(3)]}" for _ in range(count)
    ]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_two_stray_quotes_of_371_rows_are_refused(tmp_path, end):
    rows = reviews(371)
    assert len(read(tmp_path, ["text,label", *rows]).lines) == 371
    rows[100] = '"' + rows[100]
    text, label = rows[295].split(",")
    rows[295] = f'{text}",{label}'
    with pytest.raises(
        InputError, match=r"train.csv:102: .*line 102 \(and 194 more\) within it lo"
    ):
        read(tmp_path, ["text,label", *rows], end=end)


SWALLOWED = {
    "two rows in one": ["text,label", '"good,1', 'bad",0', "fine,1", "dull,0"],
    "the label first": ["label,text", '1,"good', "0,bad", '1,fine"', "0,dull"],
    "two rows, the label first": ["label,text", '1,"good', '0,bad"', "1,fine", "0,dull"],
    "scores": ["text,label", '"good,1.5', "odd,7.25", 'bad",0', "fine,1.5", "dull,0"],
    "more columns": ["id,text,label,by", '1,"good,1,x', '2,bad",0,x', "3,fine,1,x", "4,dull,0,x"],
    "semicolons": ["text;label", '"good;1', 'bad";0', "fine;1", "dull;0"],
    "a label of no other row": ["text,label", '"good,0', "odd,0", 'bad",0', "fine,1"],
    "integer scores": ["text,label", '"good,99', 'bad",0', *(f"x,{i}" for i in range(20))],
    "no other rows": ["text,label", '"good,1', 'bad",1'],
    "a blank before the label": ["text,label", '"good, 1', "bad, 0", 'x",1', "y,1", "z,0"],
    "labels in doubled quotes": ["text,label", '"good,""1""', 'bad,""0""', 'x",1', "y,0"],
    "another case": ["text,label", '"good,POS', "bad,Neg", 'x",pos', "y,neg"],
    "scores after a blank": ["text,label", '"good, 1.5', "bad, 2.5", 'x",1.5', "y,0.5"],
}


@pytest.mark.parametrize("case", SWALLOWED)
def test_a_row_within_a_text_is_refused(tmp_path, case):
    with pytest.raises(InputError, match=r"train.csv:2: .*looks like a row of its own"):
        read(tmp_path, SWALLOWED[case])


SOUND = {
    "a poem": ['"Roses are red,\nviolets are blue",1', "x,0"],
    "an address": ['"12 Main St, 1\nSpringfield, IL",1', "x,0"],
    "doubled quotes": ['"He said ""good,""\n""bad, 0"" she",1', "x,0"],
    "a blank line": ['"Dear all,\n\nbye, 1",1', "x,0"],
}


@pytest.mark.parametrize("case", SOUND)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_text_of_several_lines_is_read(tmp_path, case, end):
    table = read(tmp_path, ["text,label", *SOUND[case]], end=end)
    assert table.columns[1] == ["1", "0"]
    assert "\n" in table.columns[0][0]
    assert table.multiline == [2]
    assert table.num_lines == 1 + len("\n".join(SOUND[case]).split("\n"))


def test_the_label_first_does_not_make_a_text_suspect(tmp_path):
    table = read(tmp_path, ["label,text", '1,"Roses are red', 'violets are blue"', "0,x"])
    assert table.columns == (["Roses are red\nviolets are blue", "x"], ["1", "0"])


def test_tabs_and_json_know_no_stray_quotes(tmp_path):
    path = tmp_path / "train.tsv"
    path.write_text('text\tlabel\n"good\t1\nbad"\t0\n')
    assert read_table(path, [LAYOUT]).columns == (['"good', 'bad"'], ["1", "0"])
    path = tmp_path / "train.jsonl"
    path.write_text('{"text": "a\\nb,1", "label": 1}\n')
    assert read_table(path, [LAYOUT]).multiline == []


HIDDEN = 'text,label\nhello,pos\nfoo,pos\n"bad film,neg\nworse,neg\nterrible,neg\nx",pos\n'


def test_labels_that_stand_only_within_the_quotes_are_known_from_elsewhere(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\na,pos\nb,neg\n")
    (tmp_path / "dev.csv").write_text(HIDDEN)
    problem = r"dev.csv:4: .*line 4 \(and 2 more\) within it looks like a row .* label 'neg'"
    with pytest.raises(InputError, match=problem):
        load_text(tmp_path)
    with pytest.raises(InputError, match=problem):
        load_split(known_task("text", ["neg", "pos"], ("text",)), tmp_path)


@pytest.mark.parametrize(
    ("outer", "inner"), [("positive", "negative"), ("1", "0"), ("1", "Negative")]
)
def test_names_and_ids_of_a_glue_task_are_known(tmp_path, outer, inner):
    (tmp_path / "train.csv").write_text("sentence,label\na,1\nb,0\n")
    lines = ["sentence,label", f"a,{outer}", f'"b,{inner}', f"c,{inner}", f'd",{outer}']
    (tmp_path / "dev.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match=r"dev.csv:3: .*looks like a row of its own"):
        load_glue("sst2", tmp_path)
    with pytest.raises(InputError, match=r"dev.csv:3: .*looks like a row of its own"):
        load_split(known_task("sst2", ["negative", "positive"]), tmp_path)


def test_any_number_is_a_score_of_a_regression(tmp_path):
    (tmp_path / "dev.csv").write_text('text,label\na,1\n"b,2.5\nc,3.5\nd",1\n')
    with pytest.raises(InputError, match=r"dev.csv:3: .*looks like a row of its own"):
        load_split(known_task("text", None, ("text",)), tmp_path)
