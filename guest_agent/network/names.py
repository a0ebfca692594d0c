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
loop; the number of records, aliases and bytes is bounded, and no byte is read as a name twice.
"""

from __future__ import annotations

import ipaddress
import struct
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

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
class _Name:
    """A name: its labels, whether a pattern can match it, and where it ends."""

    labels: bytes
    known: bool
    end: int

    @property
    def text(self) -> str | None:
        return self.labels.decode("ascii") if self.known else None


@dataclass(frozen=True, slots=True)
class _Record:
    owner: str
    kind: int
    seconds: int
    start: int
    end: int


class _CutError(Exception):
    """The bytes end, or say nothing sensible, from here on."""


def read(payload: bytes) -> Answer | None:
    """Read what UDP carried; None where it says nothing of the addresses of a name. Raises nothing, whatever it is."""
    message = _Message(payload[:MAXIMUM_BYTES])
    try:
        asked, kind, place, records = message.begin()
    except _CutError:
        return None
    aliases: dict[str, tuple[str, int]] = {}
    addresses: list[tuple[str, str, int]] = []
    for record in message.records(place, records):
        if record.kind == _CNAME:
            target = message.alias(record)
            if target is not None:
                aliases.setdefault(record.owner, (target, record.seconds))
        elif record.kind in _LENGTHS and kind in {record.kind, _ANY}:
            address = _address(message.payload[record.start : record.end], record.kind)
            if address is not None:
                addresses.append((record.owner, address, record.seconds))
    ways = _ways(asked, aliases)
    found: dict[str, int] = {}
    for owner, address, seconds in addresses:
        if owner in ways:
            found[address] = min(seconds, ways[owner], found.get(address, MAXIMUM_SECONDS))
    return Answer(asked, tuple(found.items())) if found else None


class _Message:
    """The parts of an answer. Names that pointers lead to are read once, however many do."""

    def __init__(self, payload: bytes) -> None:
        self.payload = payload
        self._names: dict[int, _Name] = {}

    def begin(self) -> tuple[str, int, int, int]:
        """Give the name and type asked for, where the answers begin, and how many there are."""
        _, flags, questions, records, _, _ = self._unpack(_HEADER, 0)
        if not flags & _ANSWER or flags & _NO_OPCODE_NO_ERROR or questions != 1:
            raise _CutError
        asked = self._name(_HEADER.size)
        kind, of_network = self._unpack(_QUESTION, asked.end)
        text = asked.text
        if text is None or kind not in {_A, _AAAA, _ANY} or of_network != _INTERNET:
            raise _CutError
        return text, kind, asked.end + _QUESTION.size, min(records, MAXIMUM_RECORDS)

    def records(self, place: int, count: int) -> Iterator[_Record]:
        """Give the records that are there in full and that are about a name we could be asked for."""
        with suppress(_CutError):  # what came before is whole
            for _ in range(count):
                owner = self._name(place)
                kind, of_network, seconds, length = self._unpack(_RECORD, owner.end)
                start = owner.end + _RECORD.size
                place = start + length
                if place > len(self.payload):
                    return
                text = owner.text
                if text is not None and of_network == _INTERNET:
                    yield _Record(text, kind, seconds if seconds <= MAXIMUM_SECONDS else 0, start, place)

    def alias(self, record: _Record) -> str | None:
        """Give the name that a record's data is; None if it is not one, or not one alone."""
        try:
            name = self._name(record.start)
        except _CutError:
            return None
        return name.text if name.end == record.end else None

    def _name(self, start: int, pointers: int = 0, room: int = _MAXIMUM_NAME - 1) -> _Name:
        """Read the name that begins at a place, which so many pointers have led to; ``room`` is for it, in octets."""
        found = self._names.get(start)
        if found is None:
            length = self._octet(start)
            if not length:
                found = _Name(b"", known=False, end=start + 1)
            elif length >= 0xC0:  # noqa: PLR2004 - two bits set: it stands elsewhere
                place = (length & 0x3F) << 8 | self._octet(start + 1)
                if place >= start or pointers >= MAXIMUM_POINTERS:
                    raise _CutError
                found = replace(self._name(place, pointers + 1, room), end=start + 2)
            else:
                following = start + 1 + length
                label = self.payload[start + 1 : following].lower()
                left = room - length - 1
                if length > 0x3F or following > len(self.payload) or left < 0:  # noqa: PLR2004 - six bits
                    raise _CutError
                rest = self._name(following, pointers, left)
                known = _LABEL.issuperset(label) and (rest.known or not rest.labels)
                found = _Name(label + b"." + rest.labels if rest.labels else label, known, rest.end)
            self._names[start] = found
        if found.labels and len(found.labels) >= room:
            raise _CutError
        return found

    def _octet(self, place: int) -> int:
        if place >= len(self.payload):
            raise _CutError
        return self.payload[place]

    def _unpack(self, form: struct.Struct, place: int) -> tuple[int, ...]:
        if place + form.size > len(self.payload):
            raise _CutError
        return form.unpack_from(self.payload, place)


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
