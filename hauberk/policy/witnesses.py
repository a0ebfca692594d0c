# SPDX-License-Identifier: Apache-2.0
"""Texts that stand for all that could be asked about, beside files and packets: one for each set of rules at least.

Rules tell apart only what they mention. Of each property of an object (a device's class, its level) it is therefore
enough to try each value that some rule mentions, and one that none does. The texts are those of
:mod:`hauberk.policy.objects`. There may be several for one set of rules; whoever asks them all has asked everything.
:mod:`hauberk.policy.path_classes` does the same for files, where patterns overlap in less simple ways, and
:mod:`hauberk.policy.peer_classes` for packets.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final

from hauberk.errors import HauberkError
from hauberk.policy import objects, vocabulary
from hauberk.policy.path_classes import PathObject, path_classes
from hauberk.policy.rules import (
    SOCKET_RANKS,
    DeviceMatch,
    ObjectKind,
    Operation,
    SyscallMatch,
)
from hauberk.policy.workload_classes import another

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from hauberk.policy.rules import Rule

MAXIMUM_TEXTS: Final = 100_000
"""Most texts for one operation."""

_LAST_BYTE: Final = 255


class TooManyTextsError(HauberkError):
    """Rules tell apart too many objects to ask about each."""

    exit_code = 3


def texts(operation: Operation, rules: Sequence[Rule]) -> tuple[str, ...]:
    """Give texts for everything that ``rules`` tell apart about an operation that is not about files or packets.

    ``rules`` are those of the operation's section. Raises :class:`TooManyTextsError`.
    """
    found = dict.fromkeys(itertools.islice(_texts(operation, rules), MAXIMUM_TEXTS + 1))
    if len(found) > MAXIMUM_TEXTS:
        message = (
            f"found more than {MAXIMUM_TEXTS} objects of {operation.value} that the rules tell apart, expected fewer. "
            "Compare fewer policies at a time"
        )
        raise TooManyTextsError(message)
    return tuple(found)


def _texts(operation: Operation, rules: Sequence[Rule]) -> Iterator[str]:
    match operation:
        case Operation.SOCKET:
            yield from _sockets()
        case Operation.RESOLVE:
            yield from _names([rule.value for rule in rules])
        case Operation.CAPABILITY:
            yield from vocabulary.CAPABILITIES
        case Operation.PRESET:
            yield from vocabulary.PRESETS
        case Operation.SYSCALL:
            yield from _calls([rule.match for rule in rules if isinstance(rule.match, SyscallMatch)])
        case Operation.ATTACH:
            yield from _devices([rule.match for rule in rules if isinstance(rule.match, DeviceMatch)])


def _sockets() -> Iterator[str]:
    words = vocabulary.PROTOCOLS[:-1]
    yield from words
    types = [word for word in words if word in SOCKET_RANKS]
    protocols = [word for word in words if word not in SOCKET_RANKS]
    yield from ("/".join(pair) for pair in itertools.product(types, protocols))


def _names(domains: list[str]) -> Iterator[str]:
    """Give names for each set of domains that hold one, also one with what resolvers in Kubernetes append.

    For these, a name is looked up in up to three forms. All sets of domains that hold a form are found from the
    domains themselves without what may be appended, and from the last label of each, which is where a namespace may
    stand.
    """
    known = dict.fromkeys(form for domain in domains for form in objects.names(domain))
    labels = dict.fromkeys(form.rpartition(".")[2] for form in known)
    labels |= dict.fromkeys(form.removesuffix(".svc").rpartition(".")[2] for form in known)
    fresh = another({label for form in known for label in form.split(".")})
    for name in (fresh, *known):
        yield name
        yield from (f"{name}.{suffix}" for suffix in objects.CLUSTER_SUFFIXES)
        yield from (f"{name}.{label}.{objects.CLUSTER_SUFFIXES[0]}" for label in (fresh, *labels))


def _calls(matches: list[SyscallMatch]) -> Iterator[str]:
    names = dict.fromkeys(name for match in matches for name in match.names)
    limits = [
        PathObject(ObjectKind.DIRECTORY if match.recursive else ObjectKind.PATH, path, match.recursive)
        for match in matches
        if match.path is not None
        for path in (f"{match.path.rstrip('/')}/" if match.recursive else match.path.rstrip("/") or "/",)
    ]
    witnesses = path_classes(list(dict.fromkeys(limits))).values() if limits else ()
    for name in (*names, another(names)):
        yield name
        yield from (f"{name} {witness}" for witness in witnesses)


def _devices(matches: list[DeviceMatch]) -> Iterator[str]:
    classes = _mentioned((match.device_class for match in matches), 1)
    subclasses = _mentioned((match.subclass for match in matches), 0)
    protocols = _mentioned((match.protocol for match in matches), 0)
    levels = _mentioned((match.level for match in matches), 1)
    for device_class, subclass, protocol, level in itertools.product(classes, subclasses, protocols, levels):
        yield f"{device_class}/{subclass}/{protocol}@{level}"


def _mentioned(values: Iterable[int | None], first: int) -> list[int]:
    """Give the bytes that are mentioned, and the smallest from ``first`` on that is not."""
    mentioned = dict.fromkeys(value for value in values if value is not None)
    other = next((value for value in range(first, _LAST_BYTE + 1) if value not in mentioned), None)
    return [*mentioned, *(() if other is None else (other,))]
