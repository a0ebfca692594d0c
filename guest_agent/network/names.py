# SPDX-License-Identifier: Apache-2.0
"""What a resolver's answer says of a name: the addresses it leads to, and for how long.

The bytes come from the network and may be cut at any place, so reading is total: an answer gives what it says in full
records, and whatever it is not sure of it does not say. Nothing is raised. An address too few refuses a connection, an
address too many grants one; so everything doubtful is left out:

* only an answer without error to one question for addresses (RFC 1035 §4.1), and of it only the answer section: what
  stands beside the answer was not asked for;
* only records of the name that was asked for and, along its aliases, of those it leads to (RFC 1034 §3.6.2). The
  addresses belong to the name that was *asked for*, as in Cilium: no alias on the way is learned;
* an address counts for the shortest time that any record on its way says (RFC 1034 §5.3.3 leaves that to the cache);
* only names that a pattern of a policy can match, in lower case; only addresses that a packet can be sent to. IPv4 in
  the form of IPv6 is left out: packets to it are IPv4, and who answers so to a question for IPv6 wants something else.

Pointers in compressed names only ever lead backwards here (RFC 1035 §4.1.4: "a prior occurrence"), so that there is no
loop; the number of records, aliases and bytes is bounded.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass
from typing import Final

MAXIMUM_BYTES: Final = 4096
"""Bytes that are read of an answer: more than UDP answers have in practice (RFC 6891 §6.2.5 suggests 4096 at most)."""
MAXIMUM_RECORDS: Final = 128
MAXIMUM_ALIASES: Final = 16
"""Aliases that are followed; resolvers give up at about as many."""
MAXIMUM_POINTERS: Final = 16
"""Pointers that are followed in one name; writers of messages need one or two."""
MAXIMUM_SECONDS: Final = 2**31 - 1
"""A longer time counts as none (RFC 2181 §8)."""

_MAXIMUM_NAME: Final = 255
_LABEL: Final = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789-_")
_HEADER: Final = struct.Struct("!6H")
_QUESTION: Final = struct.Struct("!2H")
_RECORD: Final = struct.Struct("!2HIH")
_ANSWER, _NO_OPCODE_NO_ERROR = 0x8000, 0x780F
_A, _CNAME, _AAAA, _ANY = 1, 5, 28, 255
_INTERNET: Final = 1
_LENGTHS: Final = {_A: 4, _AAAA: 16}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a name leads to.

    ``name`` is the one that was asked for, in lower case without a dot at its end; ``addresses`` are in canonical text,
    each once, with the seconds it counts, which may be 0.
    """

    name: str
    addresses: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class _Record:
    owner: str
    kind: int
    seconds: int
    start: int
    length: int


class _CutError(Exception):
    """The bytes end, or say nothing sensible, from here on."""


def read(payload: bytes) -> Answer | None:
    """Read what UDP carried; None where it says nothing of the addresses of a name. Raises nothing, whatever it is."""
    payload = payload[:MAXIMUM_BYTES]
    try:
        asked, kind, place, records = _begin(payload)
    except _CutError:
        return None
    aliases: dict[str, tuple[str, int]] = {}
    addresses: list[tuple[str, str, int]] = []
    for record in _records(payload, place, records):
        if record.kind == _CNAME:
            target = _name_within(payload, record)
            if target is not None:
                aliases.setdefault(record.owner, (target, record.seconds))
        elif record.kind in _LENGTHS and kind in {record.kind, _ANY}:
            address = _address(payload[record.start : record.start + record.length], record.kind)
            if address is not None:
                addresses.append((record.owner, address, record.seconds))
    ways = _ways(asked, aliases)
    found: dict[str, int] = {}
    for owner, address, seconds in addresses:
        if owner in ways:
            found[address] = min(seconds, ways[owner], found.get(address, MAXIMUM_SECONDS))
    return Answer(asked, tuple(found.items())) if found else None


def _begin(payload: bytes) -> tuple[str, int, int, int]:
    """Give the name and type asked for, where the answers begin, and how many there are."""
    if len(payload) < _HEADER.size:
        raise _CutError
    _, flags, questions, records, _, _ = _HEADER.unpack_from(payload)
    if not flags & _ANSWER or flags & _NO_OPCODE_NO_ERROR or questions != 1:
        raise _CutError
    asked, place = _name(payload, _HEADER.size)
    kind, of_network = _unpack(_QUESTION, payload, place)
    if asked is None or kind not in {_A, _AAAA, _ANY} or of_network != _INTERNET:
        raise _CutError
    return asked, kind, place + _QUESTION.size, min(records, MAXIMUM_RECORDS)


def _records(payload: bytes, place: int, count: int) -> list[_Record]:
    """Give the records that are there in full and that are about a name we could be asked for."""
    found: list[_Record] = []
    try:
        for _ in range(count):
            owner, place = _name(payload, place)
            kind, of_network, seconds, length = _unpack(_RECORD, payload, place)
            place += _RECORD.size
            if place + length > len(payload):
                break
            if owner is not None and of_network == _INTERNET:
                found.append(_Record(owner, kind, seconds if seconds <= MAXIMUM_SECONDS else 0, place, length))
            place += length
    except _CutError:
        pass  # what came before is whole
    return found


def _unpack(form: struct.Struct, payload: bytes, place: int) -> tuple[int, ...]:
    if place + form.size > len(payload):
        raise _CutError
    return form.unpack_from(payload, place)


def _name_within(payload: bytes, record: _Record) -> str | None:
    """Give the name that a record's data is; None if it is not one, or not one alone."""
    try:
        name, end = _name(payload, record.start)
    except _CutError:
        return None
    return name if end == record.start + record.length else None


def _name(payload: bytes, place: int) -> tuple[str | None, int]:
    """Give a name, None for one that no pattern can match, and where it ends."""
    labels: list[bytes] = []
    end: int | None = None
    size, earliest, pointers = 1, place, 0
    while True:
        if place >= len(payload):
            raise _CutError
        length = payload[place]
        if length >= 0xC0:  # noqa: PLR2004 - two bits set: a pointer
            if place + 1 >= len(payload):
                raise _CutError
            end = place + 2 if end is None else end
            place = (length & 0x3F) << 8 | payload[place + 1]
            pointers += 1
            if place >= earliest or pointers > MAXIMUM_POINTERS:
                raise _CutError
            earliest = place
            continue
        size += length + 1
        if length > 0x3F or size > _MAXIMUM_NAME or place + 1 + length > len(payload):  # noqa: PLR2004 - a label
            raise _CutError
        place += 1
        if not length:
            break
        labels.append(payload[place : place + length].lower())
        place += length
    text = b".".join(labels)
    known = bool(labels) and all(_LABEL.issuperset(label) for label in labels)
    return (text.decode("ascii") if known else None), (place if end is None else end)


def _ways(asked: str, aliases: dict[str, tuple[str, int]]) -> dict[str, int]:
    """Give the names that the one asked for leads to, itself included, and how long the way there counts."""
    ways = {asked: MAXIMUM_SECONDS}
    name = asked
    for _ in range(MAXIMUM_ALIASES):
        if name not in aliases:
            break
        following, seconds = aliases[name]
        if following in ways:
            break
        ways[following] = min(seconds, ways[name])
        name = following
    return ways


def _address(octets: bytes, kind: int) -> str | None:
    """Give an address in canonical text, None for one that no packet to a peer can have."""
    if len(octets) != _LENGTHS[kind]:
        return None
    address = ipaddress.ip_address(octets)
    mapped = isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None
    if mapped or address.is_unspecified or address.is_multicast or octets == b"\xff" * 4:
        return None
    return str(address)
