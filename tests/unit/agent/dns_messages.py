# SPDX-License-Identifier: Apache-2.0
"""Answers of resolvers, written octet by octet (RFC 1035 §4)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import ip_address

A, CNAME, AAAA, TXT, ANY = 1, 5, 28, 16, 255
RESPONSE = 0x8180
"""An answer without error, to a question that wanted recursion, by somebody who offers it."""


@dataclass(frozen=True)
class Record:
    """A record of the answer section; ``data`` as it stands in the message."""

    owner: bytes
    kind: int
    seconds: int
    data: bytes
    of_network: int = 1

    def encode(self) -> bytes:
        """Write it."""
        return self.owner + struct.pack("!HHIH", self.kind, self.of_network, self.seconds, len(self.data)) + self.data


def name(text: str) -> bytes:
    """Write a name without compression."""
    labels = [label.encode("latin-1") for label in text.split(".") if label]
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def pointer(place: int) -> bytes:
    """Write the rest of a name that stands at a place."""
    return struct.pack("!H", 0xC000 | place)


QUESTION = pointer(12)
"""The name of the question, as most answers write it."""


def address(owner: bytes, text: str, seconds: int = 300) -> Record:
    """Give a record of an address of either family."""
    packed = ip_address(text).packed
    return Record(owner, A if len(packed) == 4 else AAAA, seconds, packed)


def alias(owner: bytes, target: str, seconds: int = 300) -> Record:
    """Give a record that one name is another."""
    return Record(owner, CNAME, seconds, name(target))


def message(
    asked: str, kind: int, *records: Record, flags: int = RESPONSE, questions: int = 1, of_network: int = 1
) -> bytes:
    """Write an answer with so many questions (all the same)."""
    header = struct.pack("!6H", 0x4842, flags, questions, len(records), 0, 0)
    question = name(asked) + struct.pack("!HH", kind, of_network)
    return header + question * questions + b"".join(record.encode() for record in records)
