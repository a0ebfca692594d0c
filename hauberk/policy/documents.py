# SPDX-License-Identifier: Apache-2.0
"""YAML text -> plain values, with the place of each one.

A policy decides what may run, so the reader takes no liberties. It builds values from the parser's events itself
instead of using the library's composer: that recurses in C as deep as the text says, and shares nodes between
aliases, so that ten lines can stand for billions of values. Here each alias counts as much as what it stands for, and
depth, size and number of values are bounded.

Of YAML's scalars only the unambiguous ones are taken for something other than text: ``null``, ``true``/``false``,
decimal integers. What one YAML version reads as a number or truth value and another as text (``yes``, ``010``,
``1:30``) stays text, and the models, which are strict about types, refuse it where text is not meant.

All problems of all documents are collected; only broken syntax ends the reading of a file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from hauberk.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

MAXIMUM_BYTES = 4 * 1024 * 1024
"""Largest policy file in bytes."""
MAXIMUM_VALUES = 200_000
"""Most values in one file, each use of an alias counted in full."""
MAXIMUM_DEPTH = 64
"""Deepest nesting of mappings and lists; policies need about ten."""

FieldPath = tuple[str | int, ...]

_TAG = "tag:yaml.org,2002:"
_SCALAR_TAGS = frozenset(_TAG + name for name in ("str", "int", "bool", "null", "float"))
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,18})")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("null", "Null", "NULL", "~", "")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


class Place(NamedTuple):
    """Line and column, both from 1."""

    line: int
    column: int


@dataclass(slots=True)
class Document:
    """One YAML document: its plain value, and where each of its fields stands."""

    file: str
    value: object
    start: Place
    values: dict[FieldPath, Place] = field(default_factory=dict)
    keys: dict[FieldPath, Place] = field(default_factory=dict)

    def place(self, path: FieldPath, *, of_key: bool = False) -> Place:
        """Give the place of a field's value (or key), or of the nearest thing around it that is written down."""
        table = self.keys if of_key else self.values
        if path in table:
            return table[path]
        while path:
            found = self.values.get(path) or self.keys.get(path)
            if found:
                return found
            path = path[:-1]
        return self.start


def field_name(path: FieldPath) -> str:
    """Write a path as people do: ``spec.process.matchPaths[0].path``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


@dataclass(slots=True)
class _Node:
    """A value with its place, before it is put into a document. ``size`` counts the values in it."""

    place: Place
    value: object  # scalar, list[_Node] or list[tuple[_Key, _Node]] for a mapping
    size: int = 1


class _Key(NamedTuple):
    name: str
    place: Place


class _Mapping(list[tuple[_Key, _Node]]):
    pass


class _List(list[_Node]):
    pass


class _StopReading(Exception):  # noqa: N818 - no error by itself: the problem is already noted
    """The rest of the file cannot be read."""


def read(data: bytes, file: str, problems: list[Problem]) -> list[Document]:
    """Read all documents of one file.

    What is wrong is appended to ``problems``; documents that could be read are returned.

    ``file`` is only a name for messages. Empty documents are skipped; a file without any document is a problem.
    """
    before = len(problems)
    reader = _Reader(file, problems)
    documents: list[Document] = []
    if len(data) > MAXIMUM_BYTES:
        reader.problem(
            Place(0, 0), f"{len(data)} bytes", f"at most {MAXIMUM_BYTES}", "Split the policies into several files"
        )
        return documents
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        reader.problem(
            Place(line, column), f"the byte 0x{data[error.start]:02x}", "UTF-8 text", "Save the file as UTF-8"
        )
        return documents
    documents = reader.documents(text)
    if not documents and len(problems) == before:
        reader.problem(
            Place(0, 0), "no document", "at least one policy", "Write a policy into the file, or leave the file out"
        )
    return documents


class _Reader:
    """Turns the events of one file into documents."""

    def __init__(self, file: str, problems: list[Problem]) -> None:
        self.file = file
        self.problems = problems
        self.anchors: dict[str, _Node | None] = {}
        self.values = 0

    def problem(self, place: Place, found: str, expected: str, advice: str) -> None:
        self.problems.append(Problem(self.file, place.line, place.column, "", found, expected, advice))

    def documents(self, text: str) -> list[Document]:
        import yaml  # noqa: PLC0415 - heavy; only needed when a document is read

        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        events = iter(yaml.parse(text, Loader=loader))
        failed: Problem | None = None
        documents: list[Document] = []
        try:
            for event in events:
                if isinstance(event, yaml.DocumentStartEvent):
                    self.anchors = {}
                    before = len(self.problems)
                    node = self.node(next(events), events, depth=0)
                    if node is not None and node.value is not None and len(self.problems) == before:
                        documents.append(self.document(node))
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            place = Place(mark.line + 1, mark.column + 1) if mark else Place(0, 0)
            what = error.problem or "text that cannot be read"
            failed = Problem(
                self.file,
                *place,
                "",
                f"broken YAML ({what})",
                "well-formed YAML",
                "Correct the text at or before this place",
            )
        except yaml.YAMLError as error:
            what = " ".join(str(error).split())
            failed = Problem(
                self.file, 0, 0, "", f"broken YAML ({what})", "printable UTF-8 text", "Remove the character"
            )
        except _StopReading:
            pass
        if failed:
            self.problems.append(failed)
        return documents

    def node(self, event: Any, events: Iterator[Any], *, depth: int) -> _Node | None:  # noqa: ANN401 - untyped library
        """Build the node that starts with ``event``; None where its content was refused."""
        import yaml  # noqa: PLC0415

        place = Place(event.start_mark.line + 1, event.start_mark.column + 1)
        if depth > MAXIMUM_DEPTH:
            self.problem(place, f"values nested more than {MAXIMUM_DEPTH} deep", "a policy", "Flatten the document")
            raise _StopReading
        if isinstance(event, yaml.AliasEvent):
            return self.alias(event.anchor or "", place)
        self.count(1, place)
        anchor = event.anchor
        if anchor is not None:
            self.anchors[anchor] = None  # being built: an alias to it from inside is a loop
        node: _Node | None
        if isinstance(event, yaml.ScalarEvent):
            node = self.scalar(event, place)
        elif isinstance(event, yaml.SequenceStartEvent):
            self.check_tag(event.tag, ("seq",), place)
            node = self.list_(events, place, depth)
        else:
            self.check_tag(event.tag, ("map",), place)
            node = self.mapping(events, place, depth)
        if anchor is not None:
            self.anchors[anchor] = node
        return node

    def count(self, values: int, place: Place) -> None:
        self.values += values
        if self.values > MAXIMUM_VALUES:
            self.problem(
                place,
                f"more than {MAXIMUM_VALUES} values (aliases counted in full)",
                "fewer",
                "Split the file, or write less with aliases",
            )
            raise _StopReading

    def alias(self, name: str, place: Place) -> _Node | None:
        node = self.anchors.get(name)
        if node is None:
            known = name in self.anchors
            found = (
                f"the alias *{name} inside of what it stands for" if known else f"the alias *{name} without an anchor"
            )
            self.problem(place, found, "an alias of a value written before it", "Write the value out")
            return None
        self.count(node.size, place)
        return _Node(place, node.value, node.size)

    def check_tag(self, tag: str | None, allowed: tuple[str, ...], place: Place) -> None:
        if tag not in (None, "!", *(_TAG + name for name in allowed)):
            self.problem(place, f"the tag {tag!r}", "a plain value", "Remove the tag")

    def scalar(self, event: Any, place: Place) -> _Node | None:  # noqa: ANN401 - untyped library
        text = event.value
        tag = event.tag
        if tag is not None and tag != "!" and tag not in _SCALAR_TAGS:
            self.check_tag(tag, (), place)
            return None
        if tag in ("!", _TAG + "str") or (tag is None and not event.implicit[0]):
            return _Node(place, text)
        plain = _plain(text)
        expected = {_TAG + "int": int, _TAG + "bool": bool, _TAG + "float": float, _TAG + "null": type(None)}.get(
            tag or ""
        )
        if expected and type(plain) is not expected:
            self.problem(
                place,
                f"{text!r} tagged {tag.removeprefix(_TAG) if tag else ''}",
                "a value of that type",
                "Remove the tag",
            )
            return None
        return _Node(place, plain)

    def list_(self, events: Iterator[Any], place: Place, depth: int) -> _Node | None:
        import yaml  # noqa: PLC0415

        items = _List()
        complete = True
        size = 1
        for event in events:
            if isinstance(event, yaml.SequenceEndEvent):
                break
            item = self.node(event, events, depth=depth + 1)
            if item is None:
                complete = False
                continue
            items.append(item)
            size += item.size
        return _Node(place, items, size) if complete else None

    def mapping(self, events: Iterator[Any], place: Place, depth: int) -> _Node | None:
        import yaml  # noqa: PLC0415

        entries = _Mapping()
        seen: dict[str, Place] = {}
        complete = True
        size = 1
        for event in events:
            if isinstance(event, yaml.MappingEndEvent):
                break
            key = self.node(event, events, depth=depth + 1)
            item = self.node(next(events), events, depth=depth + 1)
            if key is None or item is None:
                complete = False
                continue
            if not isinstance(key.value, str):
                kind = type_name(key.value)
                self.problem(key.place, f"{kind} as a key", "text", "Put the key in quotes if it is meant as text")
                complete = False
                continue
            if key.value in seen:
                first = seen[key.value]
                found = f"the key {key.value!r} a second time (first at line {first.line})"
                self.problem(key.place, found, "each key once", "Remove one, or join their contents")
                complete = False
                continue
            seen[key.value] = key.place
            entries.append((_Key(key.value, key.place), item))
            size += 1 + item.size
        return _Node(place, entries, size) if complete else None

    def document(self, root: _Node) -> Document:
        document = Document(self.file, None, root.place)

        def build(node: _Node, path: FieldPath) -> object:
            document.values[path] = node.place
            if isinstance(node.value, _List):
                return [build(item, (*path, index)) for index, item in enumerate(node.value)]
            if isinstance(node.value, _Mapping):
                result: dict[str, object] = {}
                for key, item in node.value:
                    document.keys[(*path, key.name)] = key.place
                    result[key.name] = build(item, (*path, key.name))
                return result
            return node.value

        document.value = build(root, ())
        return document


def _plain(text: str) -> object:
    """Give the value of an unquoted scalar."""
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text) and not text.lstrip("-+").startswith("0") and any(mark in text for mark in ".eE"):
        return float(text)
    return text


def type_name(value: object) -> str:
    """Name a value's type as the author of a policy knows it."""
    names: dict[type, str] = {
        type(None): "null", bool: "a truth value", int: "a number", float: "a decimal number",
        str: "text", list: "a list", dict: "a mapping", _List: "a list", _Mapping: "a mapping",
    }  # fmt: skip
    return names.get(type(value), "a value of another type")
