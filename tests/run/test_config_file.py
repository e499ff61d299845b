from typing import Literal

import pytest
import yaml

from increlora_jax.errors import InputError
from increlora_jax.run.config_file import MAX_BYTES, read_settings

KINDS = {
    "name": str,
    "folder": str | None,
    "whole": int,
    "steps": int | None,
    "number": float,
    "share": float | None,
    "is_on": bool,
    "kind": Literal["a", "b"],
    "words": list[str] | None,
    "count": int | Literal["auto"],
}


@pytest.fixture
def read(tmp_path):
    def read_text(text):
        path = tmp_path / "it.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_settings(path, KINDS)

    return read_text


def test_values_come_with_the_lines_they_stand_on(read, tmp_path):
    settings = read("name: x\n# more\n\nwords:\n  - a\n  - b\nwhole: 3\n")
    assert {name: tuple(setting) for name, setting in settings.items()} == {
        "name": ("x", f"{tmp_path}/it.yaml:1"),
        "words": (["a", "b"], f"{tmp_path}/it.yaml:4"),
        "whole": (3, f"{tmp_path}/it.yaml:7"),
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("whole: 7", 7), ("whole: -7", -7), ("whole: '7'", 7), ("whole: 007", 7),
        ("number: 1e-3", 1e-3), ("number: 1.0e-3", 1e-3), ("number: .5", 0.5), ("number: 3", 3.0),
        ("number: '2.5'", 2.5), ("share: -1E+2", -100.0),
        ("is_on: true", True), ("is_on: no", False), ("is_on: Off", False), ("is_on: 'yes'", True),
        ("is_on: 1", True), ("count: auto", "auto"), ("count: 7", 7),
        ("name: 16", "16"), ("name: 1e-3", "1e-3"), ("name: 007", "007"), ("name: no", "no"),
        ("name: 'null'", "null"), ("name: ''", ""), ("name: 2020-01-01", "2020-01-01"),
        ("name: tür", "tür"), ("folder: '~'", "~"), ("kind: b", "b"),
        ("words: one", ["one"]), ("words: [a, 1, no]", ["a", "1", "no"]), ('"whole": 1', 1),
    ],
)  # fmt: skip
def test_a_value_is_read_by_the_kind_of_its_key(read, text, value):
    [setting] = read(text).values()
    assert setting.value == value
    assert type(setting.value) is type(value)


@pytest.mark.parametrize("text", ["steps: null", "steps:", "steps: ~", "words:", "whole: null"])
def test_null_is_read_as_none(read, text):
    [setting] = read(text).values()
    assert setting.value is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nam: x", ":1: unknown key 'nam'; did you mean name?"),
        ("na-me: x", "unknown key 'na-me'; did you mean name?"),
        ("xyzzy: x", "unknown key 'xyzzy'; the keys are the flags' names"),
        ("1: 2", "unknown key '1'"),
        ("[name]: 2", "unknown key 'a key that is not text'"),
        ("? name: x\n: 2", "unknown key"),
        (f"{'k' * 1000}: 2", "unknown key 'k*'… and 960 characters more"),
        ("name: x\n\nname: y", ":3: name appears twice"),
        ("whole: x", ":1: whole: 'x' must be a whole number"),
        ("count: some", ":1: count: 'some' must be a whole number of at most 18 digits or auto"),
        ("whole: 1.5", "'1.5' must be a whole number"),
        ("whole: 1e3", "'1e3' must be a whole number"),
        ("whole: true", "'true' must be a whole number"),
        ("whole: 0x10", "'0x10' must be a whole number"),
        ("whole: 1_000", "'1_000' must be a whole number"),
        ("whole: 1:30", "'1:30' must be a whole number"),
        ("whole: ''", "'' must be a whole number"),
        ("whole: 1" + "0" * 400, "whole: '10*'… and 361 characters more must be a whole number"),
        ("number: fast", "'fast' must be a finite number"),
        ("number: .inf", "must be a finite number"),
        ("number: nan", "must be a finite number"),
        ("number: 1" + "0" * 400, "must be a finite number"),
        ("number: 1e999", "must be a finite number"),
        ("is_on: 2", "'2' must be true or false"),
        ("is_on: perhaps", "'perhaps' must be true or false"),
        ("kind: c", "kind: invalid choice: 'c' .choose from a, b"),
        ("whole: [1, 2]", "whole: must be a plain value"),
        ("whole: {a: 1}", "whole: must be a plain value"),
        ("words: []", "words: must be a plain value or a list of them, not an empty list"),
        ("words: [[a]]", "words: must be a plain value"),
        ("words: [~]", "words: must be a plain value"),
        ("words: !!seq {a: b}", "not YAML|words: must be a plain value"),
        ("words: !!seq x", "words: must be a plain value"),
        ("words: {a: b}", "words: must be a plain value"),
        ('name: "a\\0b"', "name: holds characters that no text or file name may hold"),
        ('name: "\\ud800"', "name: holds characters that no text"),
        ("name: &x 1\nfolder: *x", ":2: not YAML: an alias. Write the value out"),
        ("<<: {name: x}", "unknown key '<<'"),
        ("name: !!binary aGk=", "name: must be a plain value"),
        ("name: !mine x", "name: must be a plain value"),
        ("name: !!python/object/apply:os.system [touch x]", "name: must be a plain value"),
        ("words: !!python/object/apply:os.system [touch x]", "words: must be a plain value"),
        ("whole: [1", ":1: not YAML: expected"),
        ("name: a\nname: b: c", ":2: not YAML: mapping values are not allowed here"),
        ("%YAML 9.9\n---\nname: x", "not YAML"),
        ("name: x\n---\nname: y", ":2: not YAML"),
        ("name: \x07", "is not YAML"),
        ("[" * 10_000, "is not YAML"),
        ("- name", "it.yaml must hold `key: value` lines"),
        ("", "it.yaml must hold `key: value` lines"),
        ("just words", "must hold `key: value` lines"),
        (b"name: caf\xe9", "it.yaml cannot be read: .*UTF-8"),
        (b"#" * (MAX_BYTES + 1), "has more than the 131072 bytes"),
    ],
)  # fmt: skip
def test_anything_else_is_refused_by_file_line_and_key(read, text, message):
    with pytest.raises(InputError, match=message):
        read(text)


def test_a_bomb_of_aliases_is_refused_before_it_grows(read):
    lines = ["words: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"k{n}: &{b} [{', '.join([f'*{a}'] * 9)}]" for n, (a, b) in enumerate(["ab", "bc"])]
    with pytest.raises(InputError, match=":2: not YAML: an alias"):
        read("\n".join(lines))


def test_what_yaml_writes_is_read_back(read):
    content = {"name": "no", "folder": "1e3", "whole": -3, "number": 1e-8, "is_on": False}
    content |= {"kind": "a", "words": ["~", "", "x: y", " a ", "#"], "steps": 10**9, "share": 1e22}
    settings = read(yaml.safe_dump(content, allow_unicode=True, sort_keys=False))
    assert {name: setting.value for name, setting in settings.items()} == content


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere.yaml cannot be read: No such file"):
        read_settings(tmp_path / "nowhere.yaml", KINDS)
