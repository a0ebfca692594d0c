# SPDX-License-Identifier: Apache-2.0
"""The normal form of policies that were read before, kept in the user's cache directory.

An entry is found by the SHA-256 of everything its content follows from: the names and contents of the files (which are
therefore always read), the sources of Hauberk's own reader, and the versions of Python and of the libraries it uses.
So an entry can be missing, but not stale. Only what is valid is kept: an error is worth the time to find it again.

An entry counts if it is a regular file of the user's own that nobody else may write, and if it is whole and in its own
place: it starts with the digest of its name and of the rest. Everything else about it, and every failure to write one,
means that the policies are read as if there were no cache. No lock is needed, since an entry is put in place whole and
never changed.

The agent's records hold rules as JSON too (``guest_agent.workloads.interchange``), read strictly, field by field, since
they decide what is enforced. The reader here only undoes what the writer here did, and is fast: an answer of
``explain`` must not wait for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import sys
from typing import TYPE_CHECKING, Any, Final

from hauberk import __version__
from hauberk.collecting import suspended_collection
from hauberk.errors import Problem
from hauberk.policy.collection import Collection, NormalPolicy
from hauberk.policy.rules import (
    Action,
    DeviceMatch,
    LabelRequirement,
    ObjectKind,
    Operation,
    Origin,
    PeerGroup,
    PeerMatch,
    PeerSelector,
    Rule,
    Section,
    SyscallMatch,
)
from hauberk.policy.selectors import Scope, Selector

if TYPE_CHECKING:
    from collections.abc import Iterable

MAXIMUM_ENTRIES: Final = 32
"""Most entries that are kept; the oldest go first."""
MAXIMUM_BYTES: Final = 64 * 1024 * 1024
"""Largest entry; what would be larger is not kept."""

_LIBRARIES: Final = ("yaml/__init__.py", "pydantic/version.py")
_SUFFIX: Final = ".policies"
_DIGEST_LENGTH: Final = 64
_READ_ONLY: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

_SECTIONS: Final = {section.value: section for section in Section}
_KINDS: Final = {kind.value: kind for kind in ObjectKind}
_ACTIONS: Final = {action.value: action for action in Action}
_MATCHES: Final = {match.__name__: match for match in (DeviceMatch, PeerMatch, SyscallMatch)}
_RULE_FIELDS: Final = tuple(Rule.__dataclass_fields__)
_FIXED: Final = ("section", "kind", "value", "action", "origin")
_OPTIONAL: Final = _RULE_FIELDS[len(_FIXED) :]
_DEFAULTS: Final = tuple(Rule.__dataclass_fields__[name].default for name in _OPTIONAL)
_FIRST_LIST: Final = _OPTIONAL.index("sources")
_OPERATIONS: Final = _OPTIONAL.index("operations")
_MATCH: Final = _OPTIONAL.index("match")
_GROUPS: Final = tuple(PeerMatch.__dataclass_fields__).index("groups")
_SELECTOR_FIELDS: Final = tuple(Selector.__dataclass_fields__)
_SELECTOR_DEFAULTS: Final = tuple(Selector.__dataclass_fields__[name].default for name in _SELECTOR_FIELDS)
_SCOPE: Final = _SELECTOR_FIELDS.index("scope")
_REQUIREMENTS: Final = _SELECTOR_FIELDS.index("requirements")
_BEFORE_SELECTOR: Final = NormalPolicy._fields.index("selector")
_PROBLEM_FIELDS: Final = tuple(Problem.__dataclass_fields__)


def user_directory() -> str | None:
    """Give ``$XDG_CACHE_HOME/hauberk`` (``~/.cache/hauberk``), or None where that would be no absolute path."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not base.startswith("/"):  # the XDG specification: a relative path is to be ignored
        base = os.path.expanduser("~/.cache")  # noqa: PTH111 - pathlib costs more than the cache saves
    return f"{base}/hauberk" if base.startswith("/") else None


class Cache:
    """The entries in one directory."""

    def __init__(self, directory: str) -> None:
        """Name the directory; it is made when there is something to keep."""
        self._directory = directory
        self._identity = _identity()

    def find(self, files: Iterable[tuple[str, bytes]]) -> Collection | None:
        """Give what these files hold, if it was kept and can be believed."""
        path = self._path(files)
        data = _read_own(path)
        if data is None:
            return None
        digest, payload = data[:_DIGEST_LENGTH], data[_DIGEST_LENGTH:]
        if digest != _digest(path, payload):
            return None
        try:
            with suspended_collection():  # looking for garbage would cost a quarter of the time
                return _decode(json.loads(payload))
        except (ValueError, TypeError, KeyError):
            return None

    def keep(self, files: Iterable[tuple[str, bytes]], collection: Collection) -> None:
        """Keep what these files hold. Does nothing where that is not possible."""
        payload = json.dumps(_encode(collection), separators=(",", ":")).encode()
        if self._identity is None or len(payload) > MAXIMUM_BYTES:
            return
        path = self._path(files)
        temporary = f"{path}.{os.getpid()}.new"
        with contextlib.suppress(OSError):
            os.makedirs(self._directory, mode=0o700, exist_ok=True)  # noqa: PTH103 - see user_directory
            try:
                _write_new(temporary, _digest(path, payload) + payload)
                os.replace(temporary, path)  # noqa: PTH105 - see user_directory
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)  # noqa: PTH108 - see user_directory
                raise
            self._forget_the_oldest()

    def _path(self, files: Iterable[tuple[str, bytes]]) -> str:
        digest = hashlib.sha256(self._identity or b"")
        for name, content in files:
            # lengths first: no other names and contents give the same text
            encoded = name.encode("utf-8", "surrogateescape")
            digest.update(b"%d %d\n%b" % (len(encoded), len(content), encoded))
            digest.update(content)
        return f"{self._directory}/{digest.hexdigest()}{_SUFFIX}"

    def _forget_the_oldest(self) -> None:
        entries = []
        with os.scandir(self._directory) as found:
            entries = [(entry.stat(follow_symlinks=False).st_mtime_ns, entry.path) for entry in found]
        for _, path in sorted(entries)[:-MAXIMUM_ENTRIES]:
            os.unlink(path)  # noqa: PTH108 - see user_directory


def _digest(path: str, payload: bytes) -> bytes:
    """Give what an entry starts with. It holds the entry's name, so that no entry can be put in another's place."""
    return hashlib.sha256(path.rpartition("/")[2].encode() + payload).hexdigest().encode()


def _read_own(path: str) -> bytes | None:
    """Read an entry that belongs to this user alone; None for everything else."""
    try:
        descriptor = os.open(path, _READ_ONLY)
    except OSError:
        return None
    try:
        status = os.fstat(descriptor)
        others = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        fits = status.st_size <= MAXIMUM_BYTES + _DIGEST_LENGTH
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or others or not fits:
            return None
        with open(descriptor, "rb", buffering=0, closefd=False) as file:
            return file.read()
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _write_new(path: str, data: bytes) -> None:
    with open(os.open(path, _NEW, 0o600), "wb") as file:  # noqa: PTH123 - a descriptor
        file.write(data)


def _identity() -> bytes | None:
    """Give what an entry follows from besides the files; None where it cannot be told, and nothing is kept."""
    digest = hashlib.sha256(f"{__version__} {sys.version}".encode())
    try:
        here = os.path.dirname(__file__)  # noqa: PTH120 - see user_directory
        sources = [f"{os.path.dirname(here)}/errors.py"]  # noqa: PTH120 - see user_directory
        for directory, _, names in os.walk(here):
            sources += (f"{directory}/{name}" for name in names if name.endswith(".py"))
        for source in sorted(sources):
            with open(source, "rb") as file:  # noqa: PTH123 - see user_directory
                digest.update(hashlib.sha256(file.read()).digest())
        digest.update("".join(_library(name) for name in _LIBRARIES).encode())
    except OSError:
        return None
    return digest.digest()


def _library(name: str) -> str:
    """Give where a library is and when it was installed, without importing it."""
    for directory in sys.path:
        with contextlib.suppress(OSError):
            status = os.stat(f"{directory}/{name}")  # noqa: PTH116 - see user_directory
            return f"{directory} {status.st_size} {status.st_mtime_ns}\n"
    message = f"found no {name} on sys.path"
    raise FileNotFoundError(message)


def _encode(collection: Collection) -> list[object]:
    policies = [
        [
            *policy[:_BEFORE_SELECTOR],
            _values(tuple(_without_defaults(policy.selector, _SELECTOR_FIELDS, _SELECTOR_DEFAULTS))),
            [_encode_rule(rule, policy) for rule in policy.rules],
        ]
        for policy in collection.policies
    ]
    return [policies, [[getattr(problem, name) for name in _PROBLEM_FIELDS] for problem in collection.problems]]


def _without_defaults(value: object, names: tuple[str, ...], defaults: tuple[object, ...]) -> list[object]:
    """Give the fields of an object as a list; those at the end that are as always are left out."""
    fields: list[object] = [getattr(value, name) for name in names]
    while fields and fields[-1] == defaults[len(fields) - 1]:
        fields.pop()
    return fields


def _values(value: object) -> object:
    """Give an object as the list of its fields, also where it stands in a field."""
    if isinstance(value, tuple):
        return [_values(item) for item in value]
    fields = getattr(value, "__dataclass_fields__", None)
    return value if fields is None else [_values(getattr(value, name)) for name in fields]


def _encode_rule(rule: Rule, policy: NormalPolicy) -> list[object]:
    """Give a rule as values. Its policy and file are said once for the policy."""
    rest = _without_defaults(rule, _OPTIONAL, _DEFAULTS)
    if rule.match is not None:
        rest[_MATCH] = [type(rule.match).__name__, _values(rule.match)]
    origin = rule.origin
    place: tuple[object, ...] = (origin.field, origin.line, origin.column)
    if (origin.policy, origin.file) != (policy.name, policy.file):
        place = (*place, origin.policy, origin.file)
    return [rule.section, rule.kind, rule.value, rule.action, place, *rest]


def _decode(value: Any) -> Collection:  # noqa: ANN401 - what was encoded here, and is whole
    policies, problems = value
    return Collection(
        tuple(
            NormalPolicy(
                name,
                kind,
                namespace,
                file,
                _decode_selector(selector),
                tuple([_decode_rule(rule, name, file) for rule in rules]),
            )
            for name, kind, namespace, file, selector, rules in policies
        ),
        tuple(Problem(*problem) for problem in problems),
    )


def _decode_selector(values: list[Any]) -> Selector:
    parts = [_tuples(value) for value in values]
    if len(parts) > _SCOPE:
        parts[_SCOPE] = Scope(parts[_SCOPE])
    if len(parts) > _REQUIREMENTS:
        parts[_REQUIREMENTS] = _requirements(parts[_REQUIREMENTS])
    return Selector(*parts)


def _decode_rule(value: list[Any], policy: str, file: str) -> Rule:
    section, kind, name, action, place, *rest = value
    if len(rest) > _FIRST_LIST:
        rest = [_tuples(part) if type(part) is list else part for part in rest]
        if len(rest) > _MATCH and rest[_MATCH] is not None:
            match, parts = rest[_MATCH]
            if match == PeerMatch.__name__ and parts[_GROUPS]:
                parts = (*parts[:_GROUPS], _groups(parts[_GROUPS]), *parts[_GROUPS + 1 :])
            rest[_MATCH] = _MATCHES[match](*parts)
        if len(rest) > _OPERATIONS:
            rest[_OPERATIONS] = tuple(Operation(operation) for operation in rest[_OPERATIONS])
    field, line, column, *elsewhere = place
    policy, file = elsewhere or (policy, file)
    return Rule(
        _SECTIONS[section], _KINDS[kind], name, _ACTIONS[action], Origin(policy, field, file, line, column), *rest
    )


def _groups(values: Any) -> tuple[PeerGroup, ...]:  # noqa: ANN401 - what was encoded here
    return tuple(
        PeerGroup(
            kind, value, selector and PeerSelector(_requirements(selector[0]), selector[1], _requirements(selector[2]))
        )
        for kind, value, selector in values
    )


def _requirements(values: Any) -> tuple[LabelRequirement, ...]:  # noqa: ANN401 - what was encoded here
    return tuple(LabelRequirement(*value) for value in values)


def _tuples(value: Any) -> Any:  # noqa: ANN401 - any plain value
    """Give lists, also those in lists, as the tuples they were."""
    return tuple(map(_tuples, value)) if type(value) is list else value
