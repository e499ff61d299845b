"""Heat maps: modules in rows by layer and columns by kind."""

import json
import re

import pytest

from increlora_jax.page.heat import describe_frame, draw_heat, lay_out, shorten_names
from increlora_jax.page.parts import Frame, HeatMap

BERT = [
    f"bert.encoder.layer.{layer}.{kind}"
    for layer in range(6)
    for kind in ("attention.self.query", "attention.self.value", "attention.output.dense",
                 "intermediate.dense", "output.dense")
]  # fmt: skip


def cells(html):
    return re.findall(r'<td class="cell[^"]*"[^>]*>([^<]*)</td>', html)


def test_layers_are_rows_and_kinds_are_columns():
    grid = lay_out(BERT)
    assert [row.label for row in grid.rows] == [f"layer {n}" for n in range(6)]
    assert grid.columns == (
        "query", "value", "attention.output.dense", "intermediate.dense", "output.dense",
    )  # fmt: skip
    assert grid.rows[3].modules[1] == "bert.encoder.layer.3.attention.self.value"


def test_stacks_have_names_and_modules_without_a_number_rows():
    names = [f"{stack}.block.{n}.layer.0.SelfAttention.q" for stack in ("encoder", "decoder")
             for n in range(2)]  # fmt: skip
    grid = lay_out([*names, "lm_head", "shared.proj"])
    assert [row.label for row in grid.rows] == [
        "encoder 0", "encoder 1", "decoder 0", "decoder 1", "lm_head", "shared.proj",
    ]  # fmt: skip
    assert grid.columns == ("q",)
    assert grid.rows[-1].modules == ("shared.proj",)


def test_modules_that_a_layer_lacks_leave_an_empty_cell():
    grid = lay_out(["h.0.q", "h.0.v", "h.1.v"])
    assert grid.rows[1].modules == (None, "h.1.v")
    html = draw_heat(HeatMap("", [Frame("", {"h.0.q": 1, "h.0.v": 2, "h.1.v": 3})]), 1)
    assert cells(html) == ["1", "2", "3"]
    assert html.count("<td></td>") == 1


def test_names_alone_make_a_column_of_rows():
    grid = lay_out(["first", "second"])
    assert grid.columns == ()
    assert [row.label for row in grid.rows] == ["first", "second"]


def test_the_last_ranks_are_drawn_and_all_are_in_the_data():
    frames = [Frame(f"step {n}", {name: n + i for i, name in enumerate(BERT)}) for n in range(3)]
    html = draw_heat(HeatMap("Ranks", frames), 4)
    assert cells(html) == [str(2 + i) for i in range(len(BERT))]
    data = json.loads(re.search(r"<script[^>]*>(.*)</script>", html)[1])
    assert [frame["label"] for frame in data["frames"]] == ["step 0", "step 1", "step 2"]
    assert data["frames"][1]["ranks"] == [1 + i for i in range(len(BERT))]
    assert data["highest"] == 2 + len(BERT) - 1


def test_no_word_ends_the_data():
    bad = "</script><script>alert(1)</script>"
    html = draw_heat(HeatMap(bad, [Frame(bad, {bad: 1}), Frame(bad, {bad: 2})]), 1)
    assert html.count("<script") == html.count("</script>") == 1
    assert "alert(1)&lt;" in html


def test_one_frame_has_no_slider():
    assert "<input" not in draw_heat(HeatMap("", [Frame("before", {"a": 1})]), 1)


def test_names_that_end_alike_keep_more_words():
    assert shorten_names(["a.x", "b.x", "c.y"]) == ("a.x", "b.x", "y")
    assert shorten_names(["output.dense", "attention.output.dense"]) == (
        "output.dense", "attention.output.dense",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("step", "total", "budget", "words"),
    [
        (None, 36.0, 72, "before growth · total rank 36 of 72"),
        (120, 52.0, 72, "step 120 · total rank 52 of 72"),
        (120, 1825.5, None, "step 120 · total rank 1,825.5"),
    ],
)
def test_a_frame_says_its_step_and_total(step, total, budget, words):
    assert describe_frame(step, total, budget) == words
