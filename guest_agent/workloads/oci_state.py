# SPDX-License-Identifier: Apache-2.0
"""The OCI state a hook passes on, parsed strictly enough to be trusted as data and tolerantly enough to be real.

Runtimes differ from the specification (runtime-spec, "State"): runc says ``creating`` where crun says ``created``;
the Go shim of Kata sends an empty ``ociVersion`` and ``status``; versions read ``1.0`` or ``1.0.2-dev``; crun adds
``root``; ``annotations`` is absent or null; a stopped container has no ``pid``, or 0. All of that is taken. What no
runtime sends and what two readers could read differently (duplicate keys, wrong types, NaN, bytes that are not UTF-8)
is refused.

Nothing here says that the state is true: the registry checks pid, cgroup and namespaces itself.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Mapping

MAXIMUM_STATE_BYTES = 1 << 20
MAXIMUM_ID_CHARACTERS = 1024
MAXIMUM_PATH_BYTES = 4095
MAXIMUM_PID = 1 << 22  # PID_MAX_LIMIT of a 64-bit kernel
STATUSES = ("", "creating", "created", "running", "stopped")


class OciStateError(ValueError):
    """The state cannot be used. ``field`` is where: a member, ``line 1, column 7``, or empty for the whole."""

    def __init__(self, where: str, problem: str) -> None:
        """Say what was found and expected, and where."""
        self.field = where
        self.problem = problem
        super().__init__(f"OCI state: {where}: {problem}" if where else f"OCI state: {problem}")


def _fail(where: str, problem: str) -> NoReturn:
    raise OciStateError(where, problem) from None


@dataclass(frozen=True, slots=True)
class OciState:
    """What a runtime reports of a container.

    ``status`` is one of ``STATUSES``; ``pid`` is as seen from the hook's PID namespace, None when absent or 0;
    ``bundle`` is absolute and otherwise as sent.
    """

    id: str
    status: str
    pid: int | None
    bundle: str
    annotations: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    oci_version: str = ""


def parse(data: bytes) -> OciState:
    """Return the state of one JSON document; raises OciStateError for anything else."""
    document = _document(data)
    if not isinstance(document, dict):
        _fail("", f"found {_kind(document)}, expected an object")
    status = _string(document, "status", default="")
    if status not in STATUSES:
        expected = ", ".join(STATUSES[1:])
        _fail("status", f"found {_show(status)}, expected {expected} or an empty string")
    return OciState(
        id=_identifier(document),
        status=status,
        pid=_pid(document),
        bundle=_bundle(document),
        annotations=_annotations(document),
        oci_version=_string(document, "ociVersion", default=""),
    )


def _document(data: bytes) -> object:
    if len(data) > MAXIMUM_STATE_BYTES:
        _fail("", f"found {len(data)} bytes, expected at most {MAXIMUM_STATE_BYTES}")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        _fail(f"byte {error.start}", "found bytes that are not UTF-8")
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_constant)
    except json.JSONDecodeError as error:
        _fail(f"line {error.lineno}, column {error.colno}", f"not JSON: {error.msg}")
    except RecursionError:
        _fail("", "found arrays or objects nested too deep")
    except OciStateError:
        raise
    except ValueError:  # an integer of thousands of digits, which Python declines to convert
        _fail("", "found a number too long to be any of the state's")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                _fail(_show(name), "found twice in one object, expected once")
            seen.add(name)
    return members


def _constant(name: str) -> NoReturn:
    _fail("", f"found {name}, which is not JSON")


def _string(document: dict[str, object], name: str, default: str | None = None) -> str:
    if name not in document:
        if default is not None:
            return default
        _fail(name, "missing, expected a string")
    return _text(document[name], name)


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        _fail(where, f"found {_kind(value)}, expected a string")
    try:
        value.encode()
    except UnicodeEncodeError:
        _fail(where, "found half a surrogate pair, expected whole characters")
    return value


def _identifier(document: dict[str, object]) -> str:
    value = _string(document, "id")
    if not value or len(value) > MAXIMUM_ID_CHARACTERS:
        _fail("id", f"found {len(value)} characters, expected 1 to {MAXIMUM_ID_CHARACTERS}")
    if "/" in value or value in (".", "..") or not value.isprintable():
        _fail("id", f"found {_show(value)}, expected a name without '/' and control characters")
    return value


def _bundle(document: dict[str, object]) -> str:
    value = _string(document, "bundle")
    if not value.startswith("/") or "\0" in value:
        _fail("bundle", f"found {_show(value)}, expected an absolute path")
    if len(value.encode()) > MAXIMUM_PATH_BYTES:
        _fail("bundle", f"found {len(value.encode())} bytes, expected at most {MAXIMUM_PATH_BYTES}")
    return value


def _pid(document: dict[str, object]) -> int | None:
    value = document.get("pid", 0)
    if isinstance(value, bool) or not isinstance(value, int):
        _fail("pid", f"found {_kind(value)}, expected an integer")
    if not 0 <= value <= MAXIMUM_PID:
        _fail("pid", f"found {value}, expected 0 to {MAXIMUM_PID}")
    return value or None


def _annotations(document: dict[str, object]) -> Mapping[str, str]:
    value = document.get("annotations")
    if value is None:
        return MappingProxyType({})
    if not isinstance(value, dict):
        _fail("annotations", f"found {_kind(value)}, expected an object")
    return MappingProxyType(
        {_text(name, "annotations"): _text(content, f"annotations[{_show(name)}]") for name, content in value.items()}
    )


def _kind(value: object) -> str:
    """Name a JSON value's type without its content: a state may carry what does not belong in a log."""
    names = {
        dict: "an object",
        list: "an array",
        str: "a string",
        bool: "a boolean",
        int: "an integer",
        float: "a number",
    }
    return names.get(type(value), "null")


def _show(value: str) -> str:
    shown = ascii(value)
    return shown if len(shown) <= 100 else shown[:100] + "…"  # noqa: PLR2004 - enough to recognise it by
