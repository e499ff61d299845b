"""The table's rules, renames and patterns."""

import pytest

from increlora_jax.errors import InputError
from increlora_jax.models.bert import BERT_WEIGHTS
from increlora_jax.weights.table import Place, Rule, WeightTable, is_matched

TABLE = WeightTable(
    rules=(
        Rule(r"(block\.\d+)\.kernel", r"\1.weight", is_transposed=True),
        Rule(r"block\.1\..+", "second"),
        Rule(r"shift", "offset"),
    ),
    renames=((r"old\.(.+)", r"\1"), (r"(.+)\.w", r"\1.weight")),
)


def test_one_rule_gives_the_place():
    assert TABLE.find_place("block.0.kernel") == Place("block.0.weight", is_transposed=True)
    assert TABLE.find_place("shift") == Place("offset", is_transposed=False)


@pytest.mark.parametrize(
    ("path", "count"), [("block.1.kernel", 2), ("block.0.kernel.scale", 0), ("my.shift", 0)]
)
def test_none_or_two_rules_are_refused(path, count):
    with pytest.raises(InputError, match=rf"{path}: {count} rules"):
        TABLE.find_place(path)


def test_renames_follow_each_other():
    assert TABLE.rename_key("old.block.0.w") == "block.0.weight"
    assert TABLE.rename_key("block.0.weight") == "block.0.weight"


def test_stand_ins_are_listed_in_order():
    table = WeightTable(rules=(), stand_ins=((r"a\.(.+)", r"\1"), (r"(?:a\.)?b", "c"), (r"c", "b")))
    assert table.list_stand_ins("a.b") == ["b", "c"]
    assert table.list_stand_ins("c") == ["b"]
    assert table.list_stand_ins("d") == []


def test_patterns_match_whole_names():
    assert is_matched("cls.x", (r"a", r"cls\..+"))
    assert not is_matched("my.cls.x", (r"cls\..+",))
    assert not is_matched("x", ())


@pytest.mark.parametrize(
    ("old", "today"),
    [
        ("embeddings.LayerNorm.gamma", "bert.embeddings.LayerNorm.weight"),
        (
            "bert.encoder.layer.3.output.LayerNorm.beta",
            "bert.encoder.layer.3.output.LayerNorm.bias",
        ),
        ("pooler.dense.weight", "bert.pooler.dense.weight"),
        ("classifier.weight", "classifier.weight"),
    ],
)
def test_bert_knows_old_and_bare_keys(old, today):
    assert BERT_WEIGHTS.rename_key(old) == today
