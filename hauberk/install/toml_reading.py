# SPDX-License-Identifier: Apache-2.0
"""Reading runtimes' TOML files through the tree, and rendering what is added to them.

The standard library reads TOML and does not write it. What is written here is small: tables, strings, numbers and lists
as containerd's configuration has them; a test proves that whatever was read comes out as the same values.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import tomllib
from typing import TYPE_CHECKING, Any

from hauberk.install.errors import InstallError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from hauberk.install.tree import Tree

Table = dict[str, Any]


def read(tree: Tree, path: str) -> Table | None:
    """Read a TOML file; None if there is none. Raises InstallError with its line for one that is malformed."""
    content = tree.read(path)
    return None if content is None else parse(content, tree.shown(path))


def parse(content: bytes, shown: str) -> Table:
    """Parse TOML. Raises InstallError."""
    try:
        return tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        message = f"{shown} is no TOML file ({error}); correct it first"
        raise InstallError(message) from error


def within(table: Mapping[str, Any], *names: str) -> Table:
    """Give the table at nested keys; an empty one where it is missing or something else."""
    found: Any = table
    for name in names:
        found = found.get(name) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def render(table: Mapping[str, Any]) -> str:
    """Render a document."""
    return "\n".join(_lines(table, ())).strip("\n") + "\n"


def _lines(table: Mapping[str, Any], above: tuple[str, ...]) -> Iterator[str]:
    plain = {name: value for name, value in table.items() if not isinstance(value, dict)}
    if above and (plain or not table):
        yield ""
        yield "[" + ".".join(map(_string, above)) + "]"
    for name, value in plain.items():
        yield f"{_key(name)} = {_value(value)}"
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _lines(value, (*above, name))


def _key(name: str) -> str:
    return name if name and all(c.isascii() and (c.isalnum() or c in "-_") for c in name) else _string(name)


def _value(value: object) -> str:  # noqa: PLR0911 - one for each type that TOML has
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, float):
        if math.isnan(value) or math.isinf(value):
            return {True: "nan"}.get(math.isnan(value), "inf" if value > 0 else "-inf")
        return repr(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, dt.datetime | dt.date | dt.time):
        return value.isoformat()
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(name)} = {_value(entry)}" for name, entry in value.items()) + "}"
    message = f"{type(value).__name__} is no type of TOML"
    raise TypeError(message)


def _string(text: str) -> str:
    # JSON's escapes of the basic plane are TOML's; DEL must be escaped too
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
