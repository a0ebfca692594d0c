# SPDX-License-Identifier: Apache-2.0
"""Where workloads are in the machine's networks, read anew each time: namespaces, addresses, virtual Ethernet pairs.

Addresses are read from ``/proc/PID/net``, which shows the network namespace of that process: nothing has to be entered.
Which pair leads where only netlink tells: the agent's own namespace is asked for its links and for the number it knows
each workload's namespace by.
"""

from __future__ import annotations

import ipaddress
import logging
import re
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from guest_agent.engines.network_port import MAXIMUM_LEVEL, Cgroup
from guest_agent.network.topology import Placement
from guest_agent.workloads import verification
from guest_agent.workloads.verification import VerificationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from guest_agent.workloads.registry import Identity
    from guest_agent.workloads.verification import Machine

logger = logging.getLogger(__name__)

_LOCAL: Final = re.compile(r"\|-- ([0-9.]+)\n\s+/32 host LOCAL")
_SIX: Final = 32  # hexadecimal digits of an address
_LINK: Final = struct.Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, change
_NEW_LINK, _GET_LINK, _NEW_NSID, _GET_NSID = 16, 18, 88, 90
_NAME, _LINFO_KIND, _MASTER, _LINK_INFO, _LINK_NSID = 3, 1, 10, 18, 37
_NSID, _NSID_PID = 1, 2
_I32: Final = struct.Struct("=i")


class Links(Protocol):
    """What tells the ends of virtual Ethernet pairs; tests bring one of their own."""

    def routed(self, namespaces: Mapping[int, int]) -> Mapping[int, str]:
        """Give the ends in the agent's namespace that are no bridge ports, by the namespace of the other end.

        ``namespaces`` has a process of each namespace that is asked about. A namespace with several such pairs is left
        out: one of them alone does not carry all of its packets.
        """


def place(identity: Identity, machine: Machine) -> Placement:
    """Tell where a workload is. Raises VerificationError; a cgroup too deep for the kernel's match is one reason."""
    level = len([part for part in identity.cgroup_path.split("/") if part])
    if level > MAXIMUM_LEVEL:
        message = f"cgroup {identity.cgroup_path} lies {level} deep, expected at most {MAXIMUM_LEVEL}"
        raise VerificationError(message)
    namespace = verification.network_namespace(identity.pid, machine)
    return Placement(namespace, Cgroup(identity.cgroup_id, level))


def find(identity: Identity, namespace: int, machine: Machine) -> tuple[Placement, int] | None:
    """Find a registered workload again, and a process of it, by its processes.

    ``namespace`` is where it was, 0 where that is not known. None: no process of it is there any more.
    """
    level = len([part for part in identity.cgroup_path.split("/") if part])
    for pid in verification.processes_of(identity, machine):
        try:
            found = verification.network_namespace(pid, machine)
        except VerificationError:
            continue
        if namespace in (0, found):
            return Placement(found, Cgroup(identity.cgroup_id, level)), pid
    return None


def addresses(pid: int | str, machine: Machine) -> tuple[str, ...]:
    """Give the addresses of a process's network namespace but those of loopback; none where they cannot be read."""
    directory = machine.proc_root / str(pid) / "net"
    found: dict[str, None] = {}
    try:
        found |= dict.fromkeys(_LOCAL.findall((directory / "fib_trie").read_text()))
        for line in (directory / "if_inet6").read_text().splitlines():
            digits = line.split(" ", 1)[0]
            if len(digits) == _SIX:
                found[str(ipaddress.IPv6Address(int(digits, 16)))] = None
    except (OSError, ValueError) as error:
        logger.debug("the addresses of process %s cannot be read: %s", pid, error)
    return tuple(address for address in found if not ipaddress.ip_address(address).is_loopback)


@dataclass(slots=True)
class KernelLinks:
    """Asks the kernel, in the network namespace of the thread that asks."""

    def routed(self, namespaces: Mapping[int, int]) -> Mapping[int, str]:
        """See :class:`Links`. What cannot be asked gives nothing: the tables inside hold all the same."""
        if not namespaces:
            return {}
        from guest_agent.engines.nftables import netlink  # noqa: PLC0415 - only where there is something to ask

        try:
            with netlink.NetlinkSocket(socket.NETLINK_ROUTE) as route:
                # Links first: asking for them is what gives the namespaces at their other ends numbers.
                links = route.dump(netlink.Message(_GET_LINK, _LINK.pack(0, 0, 0, 0, 0)))
                numbers: dict[int, int] = {}
                for namespace, pid in namespaces.items():
                    asked = netlink.Message(_GET_NSID, bytes(4) + netlink.attribute(_NSID_PID, _I32.pack(pid)))
                    for answer in route.ask(asked) if pid else ():
                        number = netlink.attributes(answer.payload[4:]).get(_NSID)
                        if answer.kind == _NEW_NSID and number is not None:
                            numbers[_I32.unpack(number)[0]] = namespace
            pairs = (_pair(netlink.attributes(link.payload[_LINK.size :])) for link in links)
            return one_each((numbers[found[0]], found[1]) for found in pairs if found and found[0] in numbers)
        except (OSError, ValueError, struct.error) as error:
            logger.warning("the links of this machine cannot be read: %s", error)
            return {}


def one_each(found: Iterable[tuple[int, str]]) -> dict[int, str]:
    """Give the pairs of namespace and link whose namespace occurs once."""
    listed: dict[int, list[str]] = {}
    for namespace, name in found:
        listed.setdefault(namespace, []).append(name)
    return {namespace: names[0] for namespace, names in listed.items() if len(names) == 1}


def _pair(parts: Mapping[int, bytes]) -> tuple[int, str] | None:
    """Give the other end's namespace number and the name of a link that is a routed end of a virtual Ethernet pair."""
    from guest_agent.engines.nftables import netlink  # noqa: PLC0415 - as above

    information = netlink.attributes(parts.get(_LINK_INFO, b""))
    if netlink.read_text(information.get(_LINFO_KIND, b"")) != "veth" or _MASTER in parts or _LINK_NSID not in parts:
        return None
    return _I32.unpack(parts[_LINK_NSID])[0], netlink.read_text(parts.get(_NAME, b""))
