# SPDX-License-Identifier: Apache-2.0
"""What can be asked about, beside files: sockets, names, capabilities, calls, presets, devices, peers.

A person writes each as one line of text; :func:`read` turns it into values, and :func:`matches` tells whether a rule's
object is this one. What a text leaves out is something that no rule names: a device of which no subclass is said has
none that a rule could match, a peer without a port has none. So an answer never rests on a guess about what was left
out.

=============  ==================================================================================
operation      text
=============  ==================================================================================
``socket``     a protocol (``tcp``), a socket type (``raw``), or both (``raw/icmp``)
``resolve``    a domain name
``capability`` ``net_raw`` or ``CAP_NET_RAW``
``syscall``    a name, and the path it is about where there is one: ``unlink /etc/passwd``
``preset``     ``filelessExec``
``attach``     ``MASS-STORAGE``, ``8/6/80`` (class, subclass, protocol), at level 2 ``8/6/80@2``
``receive``,   an address; what the packet is: ``tcp/443`` (its destination port), ``icmp/8``,
``send``       ``vrrp``; and what is known: ``on eth0``, ``from 68`` (its source port),
               ``name www.example.com``, ``entity world``, ``labels app=web,tier=front``,
               ``namespace shop``; several with commas between them
=============  ==================================================================================
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from hauberk.errors import HauberkError
from hauberk.policy import vocabulary
from hauberk.policy.rules import (
    DEFAULT_NAMESPACE,
    OPERATIONS_OF,
    PATH_SECTIONS,
    SOCKET_RANKS,
    DeviceMatch,
    ObjectKind,
    Operation,
    Peer,
    PeerMatch,
    SyscallMatch,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from hauberk.policy.rules import Rule

PATH_OPERATIONS = frozenset(operation for section in PATH_SECTIONS for operation in OPERATIONS_OF[section])
"""The operations whose object is a file."""

CLUSTER_SUFFIXES = ("svc.cluster.local", "cluster.local")
"""What resolvers in Kubernetes append to a name; before the first may stand a namespace."""

_TYPE_OF = {"tcp": "stream", "udp": "dgram", "icmp": "raw", "icmpv6": "raw", "sctp": "stream"}
"""The type of socket that a protocol is used with unless it is said."""
_BYTE = 255
_HALF = re.compile("[\ud800-\udc7f\udd00-\udfff]")
"""Halves of characters that stand for no byte of a path, as JSON can hold them."""
_SHOWN_CHARACTERS = 120
"""So much of a text is repeated where it cannot be read."""


class QuestionError(HauberkError):
    """A question cannot be asked as it stands."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Socket:
    """A kind of socket by the words that name it: its type, and its protocol where it has one."""

    words: frozenset[str]


@dataclass(frozen=True, slots=True)
class Name:
    """A domain name in lower case, without dots at its ends."""

    name: str


@dataclass(frozen=True, slots=True)
class Word:
    """A capability or preset."""

    word: str


@dataclass(frozen=True, slots=True)
class Call:
    """A system call, and the path it is about."""

    name: str
    path: str | None = None


@dataclass(frozen=True, slots=True)
class Device:
    """A USB device or interface. None: what no rule names. ``level``: 1 in a root port."""

    device_class: int
    subclass: int | None = None
    protocol: int | None = None
    level: int | None = None


Object = str | Socket | Name | Word | Call | Device | Peer
"""Something that is asked about; text is the path of a file."""


def read(operation: Operation, text: str) -> Object:
    """Read what a person wrote. Raises :class:`QuestionError`."""
    return _READERS.get(operation, check_path)(text)


def check_path(path: str, what: str = "path") -> str:
    """Give a path as it is. Raises :class:`QuestionError` unless it is absolute and has no detours."""
    parts = path.split("/")[1:] if path != "/" else ["-"]
    detours = any(part in ("", ".", "..") for part in parts)
    if not path.startswith("/") or "\0" in path or _HALF.search(path) or detours:
        message = (
            f"found the {what} {_shown(path)}, expected an absolute path without '.', '..' and extra '/'. Correct it"
        )
        raise QuestionError(message)
    return path


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…")


def matches(rule: Rule, asked: Object) -> bool:  # noqa: PLR0911 - one for each kind of object
    """Tell whether a rule's object is what is asked about, which is not a file.

    The reference; :class:`hauberk.policy.index.RuleIndex` finds the same rules faster.
    """
    match asked:
        case Socket(words):
            return rule.kind is ObjectKind.PROTOCOL and (rule.value == "all" or rule.value in words)
        case Name(name):
            return rule.kind is ObjectKind.DOMAIN and any(
                candidate == rule.value or candidate.endswith(f".{rule.value}") for candidate in names(name)
            )
        case Word(word):
            return rule.kind in _WORD_KINDS and rule.value == word
        case Call():
            return isinstance(rule.match, SyscallMatch) and _is_called(rule.match, asked)
        case Device():
            return isinstance(rule.match, DeviceMatch) and _is_attached(rule.match, asked)
        case Peer():
            from hauberk.policy import peers  # noqa: PLC0415 - few questions are about packets

            return isinstance(rule.match, PeerMatch) and peers.matches(rule.match, asked)
        case _:
            return False


_WORD_KINDS = frozenset({ObjectKind.CAPABILITY, ObjectKind.PRESET})


def names(name: str) -> tuple[str, ...]:
    """Give what a look-up asks for: the name, and without what a resolver in Kubernetes appended to it."""
    found = [name]
    for suffix in CLUSTER_SUFFIXES:
        if name.endswith(f".{suffix}"):
            short = name.removesuffix(f".{suffix}")
            found.append(short)
            if suffix == CLUSTER_SUFFIXES[0] and "." in short:
                found.append(short.rpartition(".")[0])
    return tuple(dict.fromkeys(found))


def _is_called(match: SyscallMatch, call: Call) -> bool:
    if call.name not in match.names:
        return False
    if match.path is None:
        return True
    if call.path is None:
        return False
    directory = match.path.rstrip("/")
    if call.path in {match.path, directory}:
        return True
    return match.recursive and call.path.startswith(f"{directory}/")


def _is_attached(match: DeviceMatch, device: Device) -> bool:
    pairs = (
        (match.device_class, device.device_class),
        (match.subclass, device.subclass),
        (match.protocol, device.protocol),
        (match.level, device.level),
    )
    return all(wanted is None or wanted == found for wanted, found in pairs)


def _refuse(text: str, expected: str, advice: str) -> QuestionError:
    return QuestionError(f"found {_shown(text)}, expected {expected}. {advice}")


def _socket(text: str) -> Socket:
    words = text.lower().split("/")
    known = [word for word in words if word in vocabulary.PROTOCOLS and word != "all"]
    types = [word for word in known if word in SOCKET_RANKS]
    protocols = [word for word in known if word not in SOCKET_RANKS]
    if len(known) != len(words) or len(protocols) > 1 or not known:
        expected = f"a protocol or socket type out of {', '.join(vocabulary.PROTOCOLS[:-1])}, or TYPE/PROTOCOL"
        raise _refuse(text, expected, "Write for example tcp, or raw/icmp")
    return Socket(frozenset(known if types else [*known, _TYPE_OF[protocols[0]]]))


def _name(text: str) -> Name:
    name = text.lower().strip(".")
    if not re.fullmatch(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*", name):
        raise _refuse(text, "a domain name such as www.example.com", "Write the name that is looked up")
    return Name(name)


def _capability(text: str) -> Word:
    return _word(text, text.lower().removeprefix("cap_"), vocabulary.CAPABILITIES)


def _preset(text: str) -> Word:
    return _word(text, text, vocabulary.PRESETS)


def _word(text: str, word: str, known: tuple[str, ...]) -> Word:
    if word not in known:
        raise _refuse(text, f"one of {', '.join(known)}", "Choose one of them")
    return Word(word)


def _call(text: str) -> Call:
    name, space, path = text.partition(" ")
    if not re.fullmatch(r"[a-z0-9_]+", name):
        raise _refuse(text, "the name of a system call, and a path where it is about one", "Write 'unlink /etc/passwd'")
    return Call(name, check_path(path) if space else None)


def _device(text: str) -> Device:
    place, at, level = text.partition("@")
    words = place.split("/")
    if "/".join(words[:2]).upper() in vocabulary.DEVICE_CLASSES:  # AUDIO/VIDEO
        words[:2] = ["/".join(words[:2])]
    try:
        device_class = vocabulary.device_class(words[0])
        subclass, protocol = [*map(_number, words[1:]), None, None][:2]
        device_level = _number(level) if at else None
    except ValueError:
        device_class = None
    if device_class is None or len(words) > 3:  # noqa: PLR2004 - class, subclass and protocol
        raise _refuse(text, "a device such as MASS-STORAGE, 8/6/80 or 8/6/80@2", "Write CLASS/SUBCLASS/PROTOCOL@LEVEL")
    return Device(device_class, subclass, protocol, device_level)


def _number(text: str) -> int:
    number = int(text, 0)
    if not 0 <= number <= _BYTE:
        message = f"{number} is no byte"
        raise ValueError(message)
    return number


_PEER = (
    "a peer such as 10.0.0.1, '10.0.0.1 tcp/443 on eth0', 'fd00::1 icmpv6/128' or '192.0.2.1 tcp/443 name a.example'"
)
_HOW_PEER: Final = (
    "Write ADDRESS, PROTOCOL/PORT or icmp/TYPE, and what else is known: on INTERFACE, from PORT, name NAME,…, "
    "entity ENTITY,…, labels KEY=VALUE,…, namespace NAMESPACE"
)
_WITH_PORTS: Final = frozenset({"tcp", "udp", "sctp"})
_LAST_PORT: Final = 65535
_PARTS: Final = {
    "on": r"\S+",
    "from": r"[0-9]{1,5}",
    "name": r"[^\s,]+(,[^\s,]+)*",
    "entity": r"[^\s,]+(,[^\s,]+)*",
    "labels": r"[^\s,=]+=[^\s,]*(,[^\s,=]+=[^\s,]*)*",
    "namespace": r"[A-Za-z0-9][-A-Za-z0-9_.]*",
}
"""What can be said of a peer behind its address, and how each is written."""


def _peer(text: str) -> Peer:
    words = text.split()
    protocol, number = "", None
    try:
        family, address = _address(words[0])
        if words[1:] and words[1].lower() not in _PARTS:
            protocol, number = _protocol(words.pop(1).lower(), family)
        parts = _parts(words[1:])
        source_port = _bounded(parts["from"], _LAST_PORT) if "from" in parts else None
        entities = tuple(_word(one, one, _SAID_ENTITIES).word for one in _listed(parts, "entity"))
    except (ValueError, KeyError, IndexError) as error:
        raise _refuse(text, _PEER, _HOW_PEER) from error
    labels = tuple(sorted(dict(_pair(one) for one in _listed(parts, "labels")).items()))
    return Peer(
        address,
        protocol,
        number if protocol in _WITH_PORTS else None,
        parts.get("on", ""),
        None if protocol in _WITH_PORTS else number,
        tuple(_name(one).name for one in _listed(parts, "name")),
        entities,
        labels if parts.keys() & {"labels", "namespace"} else None,
        parts.get("namespace", ""),
        source_port,
    )


def _parts(words: list[str]) -> dict[str, str]:
    """Read what is said behind the address, each once. Raises ValueError and KeyError."""
    parts: dict[str, str] = {}
    for word, value in itertools.zip_longest(words[::2], words[1::2], fillvalue=""):
        key = word.lower()
        if key in parts or not re.fullmatch(_PARTS[key], value):
            raise ValueError(word)
        parts[key] = value
    return parts


_SAID_ENTITIES: Final = tuple(word for word in vocabulary.ENTITIES if word not in {"all", "none"})
"""What a peer can be to this machine; every one is among all, and none among none."""


def _listed(parts: Mapping[str, str], key: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(parts[key].split(","))) if key in parts else ()


def _pair(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    return key, value


def _address(text: str) -> tuple[int, str]:
    import ipaddress  # noqa: PLC0415 - few questions are about packets

    if "%" in text:
        raise ValueError(text)
    address = ipaddress.ip_address(text)
    mapped = isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None
    return 4 if mapped else address.version, str(address)


def _protocol(text: str, family: int) -> tuple[str, int | None]:
    """Read ``tcp/443``, ``icmp/8``, ``vrrp`` or the number of a protocol. Raises ValueError."""
    name, slash, number = text.partition("/")
    icmp = {"icmp": 4, "icmpv6": 6}
    known = (*_WITH_PORTS, *icmp, *map(str.lower, vocabulary.PORTLESS_PROTOCOLS))
    if name not in known:
        _bounded(name, _BYTE)
    if icmp.get(name, family) != family or (slash and name not in _WITH_PORTS | icmp.keys()):
        raise ValueError(text)
    return name, _bounded(number, _LAST_PORT if name in _WITH_PORTS else _BYTE) if slash else None


def _bounded(text: str, last: int) -> int:
    if not re.fullmatch(r"0|[1-9][0-9]{0,4}", text) or int(text) > last:
        raise ValueError(text)
    return int(text)


def peer_text(peer: Peer) -> str:
    """Write a peer as :func:`read` reads it."""
    number = peer.icmp_type if peer.port is None else peer.port
    protocol = peer.protocol if number is None else f"{peer.protocol}/{number}"
    labels = ",".join(f"{key}={value}" for key, value in peer.labels or ())
    # a workload without labels is told by its namespace; one that is not known is the default
    namespace = peer.namespace or ("" if labels or peer.labels is None else DEFAULT_NAMESPACE)
    values = {
        "on": peer.interface,
        "from": "" if peer.source_port is None else str(peer.source_port),
        "name": ",".join(peer.names),
        "entity": ",".join(peer.entities),
        "labels": labels,
        "namespace": namespace,
    }
    return " ".join(
        filter(None, (peer.address, protocol, *(f"{key} {value}" for key, value in values.items() if value)))
    )


def peer_from_json(value: Mapping[str, object]) -> str:
    """Give the text of a peer that a program describes: ``address`` and what :data:`PEER_FIELDS` names beside it.

    Raises :class:`QuestionError`.
    """
    if not PEER_FIELDS.keys() >= value.keys() or "address" not in value:
        raise _refuse(str(value), f"an object with address, and no fields but {', '.join(PEER_FIELDS)}", "Correct it")
    number = value.get("icmpType", value.get("port"))
    words = [_plain(value, "address")]
    if "protocol" in value or number is not None:
        words.append(_plain(value, "protocol") + ("" if number is None else f"/{number}"))
    for name, key in PEER_FIELDS.items():
        if key and name in value:
            words += [key, _plain(value, name)]
    return " ".join(words)


PEER_FIELDS: Final = {
    "address": "", "protocol": "", "port": "", "icmpType": "", "interface": "on", "sourcePort": "from", "names": "name",
    "entities": "entity", "labels": "labels", "namespace": "namespace",
}  # fmt: skip
"""How a program names the parts of a peer, and the word that stands before each in a text."""


def _plain(value: Mapping[str, object], name: str) -> str:
    """Give one part of a peer as a word. Raises :class:`QuestionError` for one that would be read as several."""
    match value.get(name):
        case dict() as pairs:
            words = [f"{key}={item}" for key, item in pairs.items()]
        case list() as items:
            words = list(map(str, items))
        case part:
            words = [str(part)] if type(part) in {str, int} else []
    if not words or not all(re.fullmatch(r"[^\s,]+", word) for word in words):
        raise _refuse(str(value), f"{name} without spaces and commas", "Correct it, or leave it out")
    return ",".join(words)


_READERS: dict[Operation, Callable[[str], Object]] = {
    Operation.SOCKET: _socket,
    Operation.RESOLVE: _name,
    Operation.CAPABILITY: _capability,
    Operation.SYSCALL: _call,
    Operation.PRESET: _preset,
    Operation.ATTACH: _device,
    Operation.RECEIVE: _peer,
    Operation.SEND: _peer,
}
