# SPDX-License-Identifier: Apache-2.0
"""Netlink as the kernel speaks it: attributes, messages, dumps, nfnetlink batches.

Two hundred lines of our own, because pyroute2 has no messages for quotas and none for NFLOG, takes 125 µs to encode an
element of a set (this: 2), and costs the agent 20 MiB. A socket belongs to the network namespace of the thread that
made it, whatever thread uses it later; that is how the engine works in many namespaces at once.

Formats: ``include/uapi/linux/netlink.h`` and ``linux/netfilter/nfnetlink.h``.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

NETLINK_ROUTE: Final = 0
NETLINK_SOCK_DIAG: Final = 4
NETLINK_NETFILTER: Final = 12
SUBSYSTEM_CONNTRACK: Final = 1
SUBSYSTEM_LOG: Final = 4
SUBSYSTEM_NFTABLES: Final = 10

REQUEST: Final = 0x1
ACKNOWLEDGE: Final = 0x4
DUMP: Final = 0x300
CREATE: Final = 0x400
APPEND: Final = 0x800
DEADLINE_SECONDS: Final = 20.0

_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_NLMSG_OVERRUN: Final = 4
_FLAG_DUMP_INTERRUPTED: Final = 0x10
_FLAG_CAPPED: Final = 0x100
_FLAG_EXTENDED_ACK: Final = 0x200
_BATCH_BEGIN: Final = 0x10
_BATCH_END: Final = 0x11
_BATCH_GENERATION: Final = 1
_ERROR_MESSAGE: Final = 1  # NLMSGERR_ATTR_MSG
_TYPE_MASK: Final = 0x3FFF
_NESTED: Final = 0x8000
_MAXIMUM_ATTRIBUTE: Final = 0xFFFF
_MAXIMUM_DUMPS: Final = 20

_SIOCGIFNAME: Final = 0x8910
_IFREQ: Final = struct.Struct("@16si20x")
_SOL_NETLINK: Final = 270
_ADD_MEMBERSHIP: Final = 1
_CAP_ACK: Final = 10
_EXT_ACK: Final = 11
_SO_SNDBUFFORCE: Final = 32
_SO_RCVBUFFORCE: Final = 33
_RECEIVE_BYTES: Final = 1 << 18

_HEADER: Final = struct.Struct("=IHHII")  # length, type, flags, sequence number, port
_ATTRIBUTE: Final = struct.Struct("=HH")
_GENERIC: Final = struct.Struct(">BBH")  # nfgenmsg: family, version, resource
_ERROR: Final = struct.Struct("=i")
_TIME: Final = struct.Struct("@ll")
_U32: Final = struct.Struct(">I")
_U64: Final = struct.Struct(">Q")
_PADDING: Final = (b"", b"\0\0\0", b"\0\0", b"\0")


class MalformedError(ValueError):
    """Bytes that are no netlink message or no attributes."""


class NetlinkError(OSError):
    """The kernel refused a request; ``index`` is which of a batch (-1: the batch as a whole)."""

    def __init__(self, number: int, text: str, index: int = -1) -> None:
        """Take over what the kernel said."""
        self.index = index
        super().__init__(number, text)


@dataclass(frozen=True, slots=True)
class Message:
    """One message: its type, its payload behind the netlink header, and who caused it (0: the kernel)."""

    kind: int
    payload: bytes
    port: int = 0
    flags: int = 0


# ---- attributes ------------------------------------------------------------------------------------------------------


def attribute(kind: int, payload: bytes) -> bytes:
    """Encode one attribute. Raises ValueError for a payload of 64 KiB or more."""
    length = 4 + len(payload)
    if length > _MAXIMUM_ATTRIBUTE:
        message = f"found {len(payload)} bytes for one netlink attribute, expected less than 64 KiB"
        raise ValueError(message)
    return _ATTRIBUTE.pack(length, kind) + payload + _PADDING[length & 3]


def nested(kind: int, *parts: bytes) -> bytes:
    """Encode an attribute of attributes."""
    return attribute(kind | _NESTED, b"".join(parts))


def text(kind: int, value: str) -> bytes:
    """Encode a string with the zero behind it that the kernel wants."""
    return attribute(kind, value.encode("ascii") + b"\0")


def u32(kind: int, value: int) -> bytes:
    """Encode a number in network order, as nfnetlink has them all."""
    return attribute(kind, _U32.pack(value))


def u64(kind: int, value: int) -> bytes:
    """Encode a long number in network order."""
    return attribute(kind, _U64.pack(value))


def walk(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Give each attribute's type and payload, in order. Raises MalformedError."""
    offset, end = 0, len(data)
    while offset < end:
        if end - offset < _ATTRIBUTE.size:
            message = f"found {end - offset} bytes where an attribute begins, expected 4 or more"
            raise MalformedError(message)
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if not _ATTRIBUTE.size <= length <= end - offset:
            message = f"found an attribute of {length} bytes where {end - offset} are left"
            raise MalformedError(message)
        yield kind & _TYPE_MASK, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def attributes(data: bytes) -> dict[int, bytes]:
    """Give attributes by type. Raises MalformedError."""
    return dict(walk(data))


def read_text(payload: bytes) -> str:
    """Decode a string up to the zero behind it."""
    return payload.split(b"\0", 1)[0].decode("utf-8", "replace")


def read_number(payload: bytes) -> int:
    """Decode a number in network order, of whatever length."""
    return int.from_bytes(payload, "big")


# ---- messages --------------------------------------------------------------------------------------------------------


def netfilter(subsystem: int, message: int, family: int, *parts: bytes, resource: int = 0) -> Message:
    """Make an nfnetlink message: the general header, then attributes."""
    return Message((subsystem << 8) | message, _GENERIC.pack(family, 0, resource) + b"".join(parts))


def netfilter_attributes(message: Message) -> dict[int, bytes]:
    """Give the attributes of an nfnetlink message. Raises MalformedError."""
    return attributes(message.payload[_GENERIC.size :])


def encode(message: Message, sequence: int, flags: int) -> bytes:
    """Give a message's bytes."""
    length = _HEADER.size + len(message.payload)
    padding = _PADDING[length & 3]
    return _HEADER.pack(length, message.kind, flags | message.flags | REQUEST, sequence, 0) + message.payload + padding


def decode(data: bytes) -> Iterator[tuple[Message, int, int]]:
    """Give each message with its flags and sequence number. Raises MalformedError."""
    offset, end = 0, len(data)
    while end - offset >= _HEADER.size:
        length, kind, flags, sequence, port = _HEADER.unpack_from(data, offset)
        if not _HEADER.size <= length <= end - offset:
            message = f"found a netlink message of {length} bytes where {end - offset} are left"
            raise MalformedError(message)
        yield Message(kind, data[offset + _HEADER.size : offset + length], port), flags, sequence
        offset += (length + 3) & ~3


class NetlinkSocket:
    """A netlink socket of the namespace of the thread that makes it. Not for two threads at once."""

    def __init__(self, protocol: int = NETLINK_NETFILTER, *, receive_buffer: int = 1 << 20) -> None:
        """Open and bind; ``receive_buffer`` in bytes. Raises OSError."""
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
        self._socket = socket.socket(socket.AF_NETLINK, kind, protocol)
        try:
            self._socket.bind((0, 0))
            self.port: int = self._socket.getsockname()[0]
            # Not Python's own time limit, under which a receive that must not wait would wait all the same.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIME.pack(int(DEADLINE_SECONDS), 0))
            with suppress(OSError):  # without the right to more, the machine's limit has to do
                self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, receive_buffer)
            for option in (_CAP_ACK, _EXT_ACK):
                self._socket.setsockopt(_SOL_NETLINK, option, 1)
        except OSError:
            self._socket.close()
            raise
        self._sequence = 0

    def __enter__(self) -> Self:
        """Use it for a while."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self._socket.close()

    def fileno(self) -> int:
        """Descriptor to poll."""
        return self._socket.fileno()

    def join(self, group: int) -> None:
        """Subscribe to a multicast group. Raises OSError."""
        self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)

    def interface_name(self, index: int) -> str:
        """Give the name of an interface of the socket's namespace; "" when there is none of this number any more."""
        try:
            answer = fcntl.ioctl(self._socket, _SIOCGIFNAME, _IFREQ.pack(b"", index))
        except OSError:
            return ""
        return answer[:16].split(b"\0", 1)[0].decode("utf-8", "surrogateescape")

    def receive_waiting(self) -> bytes | None:
        """Take one datagram of the kernel that waits; None when none does. Raises OSError (ENOBUFS: some were lost)."""
        try:
            while True:
                data, (sender, _) = self._socket.recvfrom(_RECEIVE_BYTES, socket.MSG_DONTWAIT)
                if sender == 0:  # who administers the namespace could send us anything
                    return data
        except BlockingIOError:
            return None

    def ask(self, request: Message, flags: int = ACKNOWLEDGE) -> list[Message]:
        """Send one request and give what comes before its acknowledgement. Raises NetlinkError, OSError."""
        self._sequence += 1
        self._socket.send(encode(request, self._sequence, flags))
        return list(self._answers({self._sequence: 0}, self._sequence))

    def stream(self, request: Message) -> Iterator[Message]:
        """Ask for all of something that may change meanwhile, and give it as it comes. Raises NetlinkError, OSError.

        Nothing else may be asked before the end.
        """
        self._sequence += 1
        self._socket.send(encode(request, self._sequence, DUMP))
        with suppress(InterruptedDumpError):
            yield from self._answers({self._sequence: 0}, self._sequence)

    def dump(self, request: Message) -> list[Message]:
        """Ask for all of something, again when it changed meanwhile. Raises NetlinkError, OSError."""
        for _ in range(_MAXIMUM_DUMPS):
            self._sequence += 1
            self._socket.send(encode(request, self._sequence, DUMP))
            with suppress(InterruptedDumpError):
                return list(self._answers({self._sequence: 0}, self._sequence))
        raise NetlinkError(errno.EBUSY, "the rules kept changing while they were read")

    def commit(self, messages: Sequence[Message], generation: int | None = None) -> None:
        """Send nftables messages as one transaction: all of them hold, or none. Raises NetlinkError, OSError.

        ``generation``: that of the state the messages suppose; the kernel refuses (ERESTART) when it is another.
        """
        if not messages:
            return
        parts = [() if generation is None else (u32(_BATCH_GENERATION, generation),), ()]
        begin, end = (
            Message(kind, _GENERIC.pack(socket.AF_UNSPEC, 0, SUBSYSTEM_NFTABLES) + b"".join(part))
            for kind, part in zip((_BATCH_BEGIN, _BATCH_END), parts, strict=True)
        )
        first = self._sequence + 1
        self._sequence += len(messages) + 2
        places = {first + 1 + place: place for place in range(len(messages))} | {first: -1, self._sequence: -1}
        last = self._sequence - 1
        data = bytearray(encode(begin, first, 0))
        for place, message in enumerate(messages):
            sequence = first + 1 + place
            data += encode(message, sequence, ACKNOWLEDGE if sequence == last else 0)
        data += encode(end, self._sequence, 0)
        self._grow(len(data))
        self._socket.send(data)
        for _ in self._answers(places, last):
            pass
        self._discard()

    def _grow(self, size: int) -> None:
        """Make room for one datagram of so many bytes; the kernel counts its own overhead too."""
        wanted = 2 * size + (1 << 16)
        if self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) < wanted:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, wanted)

    def _discard(self) -> None:
        """Drop what still waits: newer kernels acknowledge the end of a batch too."""
        with suppress(OSError):
            while self.receive_waiting() is not None:
                pass

    def _answers(self, places: dict[int, int], last: int) -> Iterator[Message]:
        interrupted = False
        while True:
            try:
                data, (sender, _) = self._socket.recvfrom(_RECEIVE_BYTES)
            except BlockingIOError as error:
                reason = f"the kernel did not answer on netlink for {DEADLINE_SECONDS:g} s"
                raise NetlinkError(errno.ETIMEDOUT, reason) from error
            for message, flags, sequence in decode(data) if sender == 0 else ():
                if sequence not in places:
                    continue  # of a request that was given up
                interrupted = interrupted or bool(flags & _FLAG_DUMP_INTERRUPTED)
                if message.kind == _NLMSG_OVERRUN:
                    raise NetlinkError(errno.ENOBUFS, "the kernel's answer did not fit")
                if message.kind in {_NLMSG_ERROR, _NLMSG_DONE}:
                    _raise_error(message, flags, places[sequence])
                    if message.kind == _NLMSG_DONE and interrupted:
                        raise InterruptedDumpError
                    if message.kind == _NLMSG_DONE or sequence == last:
                        return
                else:
                    yield message


class InterruptedDumpError(Exception):
    """What was dumped changed meanwhile, so that the parts do not belong together."""


def _raise_error(message: Message, flags: int, place: int) -> None:
    if len(message.payload) < _ERROR.size:
        return
    number = -_ERROR.unpack_from(message.payload)[0]
    if number <= 0:
        return
    said = ""
    if message.kind == _NLMSG_ERROR and flags & _FLAG_EXTENDED_ACK:
        header_length = _HEADER.unpack_from(message.payload, _ERROR.size)[0]
        skipped = _ERROR.size + (_HEADER.size if flags & _FLAG_CAPPED else (header_length + 3) & ~3)
        with suppress(MalformedError):
            said = read_text(attributes(message.payload[skipped:]).get(_ERROR_MESSAGE, b""))
    raise NetlinkError(number, os.strerror(number) + (f" ({said})" if said else ""), place)


def split(items: Iterable[bytes], limit: int = 60_000) -> Iterator[bytes]:
    """Join encoded attributes into pieces of at most ``limit`` bytes, so that each fits into one attribute."""
    piece = bytearray()
    for item in items:
        if piece and len(piece) + len(item) > limit:
            yield bytes(piece)
            piece = bytearray()
        piece += item
    if piece:
        yield bytes(piece)
