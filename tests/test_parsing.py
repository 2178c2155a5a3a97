"""JSON and YAML that anybody may have written."""

import pytest

from atomtune.parsing import parse_json, parse_yaml


@pytest.mark.parametrize(
    "text, reason",
    [
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' is there twice"),
        ('{"a": NaN}', "NaN is no number of JSON"),
        ("[" * 100_000, "it is nested too deeply"),
        ("{", "Expecting property name"),
    ],
)
def test_json_that_is_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse_json(text)


LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefg", "bcdefgh")
)


@pytest.mark.parametrize(
    "text, reason",
    [
        ("steps: 1\nsteps: 2\n", "the key 'steps' is there twice, in line 2"),
        ("a: &a {b: *a}\n", "it contains itself"),
        ("[" * 5000, "it is nested too deeply"),
        (LAUGHS, "it stands for more than 100,000 values"),
        ("!!python/object/apply:os.system [echo]\n", "could not determine a constructor"),
        ("a: 2026-13-45\n", "month must be in 1..12"),
        ("? [a]\n: 1\n", "unhashable key"),
    ],
)
def test_yaml_that_is_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse_yaml(text)


def test_what_is_right_is_read():
    assert parse_json('{"a": [1, {"b": null}]}') == {"a": [1, {"b": None}]}
    text = "a: &x {b: 1}\nc: *x\nd: {<<: *x, e: 2}\n"
    assert parse_yaml(text) == {"a": {"b": 1}, "c": {"b": 1}, "d": {"b": 1, "e": 2}}
    assert parse_yaml("") is None
