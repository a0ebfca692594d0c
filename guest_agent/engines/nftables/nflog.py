# SPDX-License-Identifier: Apache-2.0
"""Reads what the rules log: one socket for each namespace, on a group of our own.

The kernel numbers what it tells, so that what did not fit into the socket is counted as lost, and ENOBUFS is let
through rather than silenced. Reading never waits. Formats: ``include/uapi/linux/netfilter/nfnetlink_log.h``.
"""

from __future__ import annotations

import errno
import socket
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from guest_agent.engines.network_port import NameAnswer, NetworkEvent
from guest_agent.engines.nftables import netlink, nflog_packets, protocols
from guest_agent.engines.nftables.netlink import MalformedError, NetlinkSocket, attribute, netfilter, u32
from guest_agent.engines.nftables.ruleset import ANSWER_PREFIX, LogMark

if TYPE_CHECKING:
    from collections.abc import Iterator

RECEIVE_BUFFER_BYTES: Final = 8 << 20
_MESSAGE_PACKET, _MESSAGE_CONFIGURATION = 0, 1
_PACKET: Final = netlink.SUBSYSTEM_LOG << 8
_COMMAND, _MODE, _BUFFER, _TIMEOUT, _THRESHOLD, _FLAGS = 1, 2, 3, 4, 5, 6
_BIND: Final = 1
_COPY_PACKET: Final = 2
_SEQUENCE_FLAG: Final = 1
_KERNEL_BUFFER_BYTES: Final = 1 << 16
_FLUSH_HUNDREDTHS: Final = 5  # the longest that a single packet waits for others, in hundredths of a second
_PACKETS_AT_ONCE: Final = 64
_DATAGRAMS_AT_ONCE: Final = 256
_TIMESTAMP, _INDEX_IN, _INDEX_OUT, _PAYLOAD, _PREFIX, _SEQUENCE = 3, 4, 5, 9, 10, 12
_MODULUS: Final = 1 << 32


@dataclass(slots=True)
class Counts:
    """What came and what did not: ``events`` were told, ``lost`` did not fit, ``unread`` were none of ours."""

    events: int = 0
    lost: int = 0
    unread: int = 0


class LogReader:
    """The log of the network namespace of the thread that makes it. Not for two threads at once."""

    def __init__(self, namespace: int, group: int, *, receive_buffer: int = RECEIVE_BUFFER_BYTES) -> None:
        """Begin to read a group; ``namespace`` is what events name. Raises NetlinkError (EBUSY: somebody reads it)."""
        self.counts = Counts()
        self._namespace = namespace
        self._expected: int | None = None
        self._overrun = False
        self._channel = NetlinkSocket(receive_buffer=receive_buffer)
        try:
            command = attribute(_COMMAND, bytes([_BIND]))
            self._channel.ask(_configuration(group, command))
            self._channel.ask(
                _configuration(
                    group,
                    attribute(_MODE, struct.pack(">IBx", 0xFFFF, _COPY_PACKET)),
                    u32(_BUFFER, _KERNEL_BUFFER_BYTES),
                    u32(_TIMEOUT, _FLUSH_HUNDREDTHS),
                    u32(_THRESHOLD, _PACKETS_AT_ONCE),
                    attribute(_FLAGS, struct.pack(">H", _SEQUENCE_FLAG)),
                )
            )
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Stop reading. Idempotent."""
        self._channel.close()

    def fileno(self) -> int:
        """Descriptor that polls readable when packets wait."""
        return self._channel.fileno()

    def drain(self) -> Iterator[NetworkEvent | NameAnswer]:
        """Take what waits, without blocking, and no more than a fair share of a flood."""
        for _ in range(_DATAGRAMS_AT_ONCE):
            try:
                data = self._channel.receive_waiting()
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._overrun = True  # how many, the next number tells
                continue
            if data is None:
                return
            yield from self._read(data)

    def _read(self, data: bytes) -> Iterator[NetworkEvent | NameAnswer]:
        try:
            for message, _, _ in netlink.decode(data):
                if message.kind == _PACKET:
                    found = self._event(netlink.netfilter_attributes(message))
                    if found is not None:
                        yield found
        except MalformedError:
            self.counts.unread += 1

    def _event(self, read: dict[int, bytes]) -> NetworkEvent | NameAnswer | None:
        self._count(read)
        packet = nflog_packets.parse(read.get(_PAYLOAD, b""))
        prefix = netlink.read_text(read.get(_PREFIX, b""))
        moment = _boot_time(read.get(_TIMESTAMP, b""))
        if packet is not None and prefix == ANSWER_PREFIX:
            self.counts.events += 1
            return NameAnswer(moment, self._namespace, packet.source, packet.payload)
        try:
            mark = LogMark.read(prefix)
        except ValueError:
            self.counts.unread += 1
            return None
        self.counts.events += 1
        packet = packet or nflog_packets.Packet("", "", 0)
        return NetworkEvent(
            timestamp_ns=moment,
            namespace=self._namespace,
            verdict=mark.verdict,
            endpoint=mark.endpoint,
            direction=mark.section,
            reason=mark.reason,
            protocol=protocols.name(packet.protocol) if packet.source else "",
            source_address=packet.source,
            destination_address=packet.destination,
            source_port=packet.source_port,
            destination_port=packet.destination_port,
            icmp_type=packet.icmp_type,
            icmp_code=packet.icmp_code,
            interface_in=self._interface(read.get(_INDEX_IN, b"")),
            interface_out=self._interface(read.get(_INDEX_OUT, b"")),
        )

    def _count(self, read: dict[int, bytes]) -> None:
        if _SEQUENCE not in read:
            return
        number = netlink.read_number(read[_SEQUENCE])
        if self._expected is not None:
            self.counts.lost += (number - self._expected) % _MODULUS
        elif self._overrun:
            self.counts.lost += number
        self._expected = (number + 1) % _MODULUS

    def _interface(self, index: bytes) -> str:
        return self._channel.interface_name(netlink.read_number(index) & 0x7FFF_FFFF) if index else ""


def _configuration(group: int, *parts: bytes) -> netlink.Message:
    return netfilter(netlink.SUBSYSTEM_LOG, _MESSAGE_CONFIGURATION, socket.AF_UNSPEC, *parts, resource=group)


def _boot_time(stamp: bytes) -> int:
    """Give nanoseconds of CLOCK_BOOTTIME for the wall-clock time the kernel noted; now, where it noted none."""
    now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    if len(stamp) != 16:  # noqa: PLR2004 - seconds and microseconds
        return now
    seconds, microseconds = struct.unpack(">QQ", stamp)
    noted = (seconds * 1_000_000 + microseconds) * 1000
    age = time.clock_gettime_ns(time.CLOCK_REALTIME) - noted
    return now - age if 0 <= age <= now else now
