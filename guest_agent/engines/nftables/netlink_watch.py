# SPDX-License-Identifier: Apache-2.0
"""Notices that somebody else touched our table, by the notifications of nftables in a namespace.

The kernel says of each change whose socket asked for it; ours are known by the number of our own. A notification only
says that it is time to look: whether anything differs, reading the table back decides. When some were lost, it is time
to look, too.
"""

from __future__ import annotations

import errno
from typing import Final

from guest_agent.engines.nftables import netlink
from guest_agent.engines.nftables import netlink_table as kernel
from guest_agent.engines.nftables.netlink import MalformedError, NetlinkSocket

_GROUP: Final = 7  # NFNLGRP_NFTABLES
_GENERATION_PROCESS, _GENERATION_PROGRAM = 2, 3
_SUBSYSTEM: Final = netlink.SUBSYSTEM_NFTABLES << 8
_LONGEST_NAME: Final = 15


class Watch:
    """Changes of our table in the namespace of the thread that makes it. Not for two threads at once."""

    def __init__(self) -> None:
        """Begin to watch. Raises OSError."""
        self._channel = NetlinkSocket(receive_buffer=4 << 20)
        try:
            self._channel.join(_GROUP)
        except OSError:
            self._channel.close()
            raise
        self._touched = False

    def close(self) -> None:
        """Stop watching. Idempotent."""
        self._channel.close()

    def fileno(self) -> int:
        """Descriptor that polls readable when something changed."""
        return self._channel.fileno()

    def changed_by(self, own_port: int) -> str | None:
        """Take what waits, without blocking; say who touched our table ("" if that is not told), None: nobody.

        ``own_port`` is the number of the socket that makes our own changes.
        """
        culprit: str | None = None
        while True:
            try:
                data = self._channel.receive_waiting()
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                culprit = culprit or ""
                continue
            if data is None:
                return culprit
            try:
                culprit = self._read(data, own_port, culprit)
            except MalformedError:
                culprit = culprit or ""

    def _read(self, data: bytes, own_port: int, culprit: str | None) -> str | None:
        for message, _, _ in netlink.decode(data):
            if message.port == own_port or message.kind & 0xFF00 != _SUBSYSTEM:
                continue
            read = netlink.netfilter_attributes(message)
            if message.kind == _SUBSYSTEM | kernel.NEW_GENERATION:  # comes last, and says who it was
                if self._touched:
                    culprit = _who(read)
                self._touched = False
            elif netlink.read_text(read.get(kernel.TABLE_NAME, b"")) == kernel.TABLE:
                self._touched = True
                culprit = culprit or ""
        return culprit


def _who(read: dict[int, bytes]) -> str:
    program = netlink.read_text(read.get(_GENERATION_PROGRAM, b""))[:_LONGEST_NAME]
    plain = "".join(character if character.isprintable() else "?" for character in program)
    return f"{plain} (process {netlink.read_number(read.get(_GENERATION_PROCESS, b''))})"
