"""Read JSON and YAML that anybody may have written: as the libraries do, but with duplicate keys, deep nesting and text
that grows without end refused."""

from __future__ import annotations

import json
from typing import Any

import yaml

LIMIT = 100_000
"""Values that a YAML file may stand for, each alias with all that it repeats."""


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text, without NaN, which Python alone writes. Raises `ValueError`, with the reason."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:  # of two, each reader may take another
                raise ValueError(f"the key {key!r:.100} is there twice")
            found[key] = value
        return found

    def refuse(number: str) -> None:
        raise ValueError(f"{number} is no number of JSON")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def parse_yaml(text: str) -> Any:
    """The value of a YAML text, of plain types. Raises `ValueError`, with the reason in one line."""
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        if node is None:
            return None
        _size(node, {})
        return _construct(node)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def _construct(node: yaml.Node) -> Any:
    constructor = yaml.constructor.SafeConstructor()
    try:
        return constructor.construct_document(node)
    except (TypeError, AttributeError, OverflowError) as error:  # keys that are lists, dates that do not exist
        raise ValueError(str(error)) from error


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values it stands for. Raises `ValueError` for too many, for itself inside itself, and for a key that is
    there twice."""
    if id(node) in known:
        if known[id(node)] == 0:
            raise ValueError("it contains itself")
        return known[id(node)]
    known[id(node)], total = 0, 1
    if isinstance(node, yaml.MappingNode):
        keys = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if (key.tag, key.value) in keys:
                    raise ValueError(f"the key {key.value!r:.100} is there twice, in line {key.start_mark.line + 1}")
                keys.add((key.tag, key.value))
            total += _size(key, known) + _size(value, known)
    elif isinstance(node, yaml.SequenceNode):
        total += sum(_size(each, known) for each in node.value)
    if total > LIMIT:
        raise ValueError(f"it stands for more than {LIMIT:,} values")
    known[id(node)] = total
    return total
