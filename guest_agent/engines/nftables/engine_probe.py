# SPDX-License-Identifier: Apache-2.0
"""What of nftables works on this machine, tried out in a namespace that is thrown away."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Final

from guest_agent.engines.network_port import LOG_GROUP, EngineError, Probe
from guest_agent.engines.nftables import conntrack
from guest_agent.engines.nftables import netlink_table as kernel
from guest_agent.engines.nftables.engine_compile import Compiler
from guest_agent.engines.nftables.expressions import destination_is
from guest_agent.engines.nftables.namespace import run_in_new
from guest_agent.engines.nftables.netlink import NETLINK_SOCK_DIAG, NetlinkSocket
from guest_agent.engines.nftables.nflog import LogReader

if TYPE_CHECKING:
    from collections.abc import Callable

    from guest_agent.engines.nftables.nft import Command, Nft

_PLACE: Final[Command] = {"family": "inet", "table": kernel.TABLE}
_CHAIN: Final[Command] = {
    "add": {"chain": {**_PLACE, "name": "c", "type": "filter", "hook": "output", "prio": -5, "policy": "accept"}}
}
_MEASURE: Final[Command] = {"payload": {"protocol": "ip", "field": "daddr"}}
_BOXES: Final[Command] = {
    "add": {"set": {**_PLACE, "name": "s", "type": ["ipv4_addr", "inet_service"], "flags": ["interval"]}}
}
_CGROUPS: Final[Command] = {"add": {"map": {**_PLACE, "name": "m", "type": "cgroupsv2", "map": "verdict"}}}
_QUOTA: Final[Command] = {"add": {"quota": {**_PLACE, "name": "q", "bytes": 1, "inv": True}}}


def _rule(*expressions: Command) -> Command:
    return {"add": {"rule": {**_PLACE, "chain": "c", "expr": list(expressions)}}}


_NEEDED: Final[tuple[tuple[str, str, tuple[Command, ...]], ...]] = (
    ("tables of inet", "CONFIG_NF_TABLES and CONFIG_NF_TABLES_INET", (_CHAIN,)),
    ("sets of concatenated intervals", "Linux 5.6 or later", (_CHAIN, _BOXES)),
    (
        "connection tracking",
        "CONFIG_NFT_CT",
        (_CHAIN, _rule({"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": "new"}}, {"accept": None})),
    ),
    ("quotas", "CONFIG_NFT_QUOTA", (_CHAIN, _QUOTA, _rule({"quota": "q"}, {"drop": None}))),
    (
        "limited logs",
        "CONFIG_NFT_LOG, CONFIG_NFT_LIMIT and CONFIG_NETFILTER_NETLINK_LOG",
        (_CHAIN, _rule({"limit": {"rate": 1, "per": "second"}}, {"log": {"group": LOG_GROUP, "snaplen": 64}})),
    ),
)
_CGROUP_RULE: Final = (
    _CHAIN,
    _CGROUPS,
    _rule({"vmap": {"key": {"socket": {"key": "cgroupv2", "level": 1}}, "data": "@m"}}),
    _rule(destination_is("multicast"), {"drop": None}),
)


def probe(nft: Nft) -> Probe:
    """Tell whether rules about packets can be held here. Changes nothing and raises nothing.

    What is merely worse without (matching by cgroup, cutting flows) is in the details, and no reason to refuse.
    """
    details = {"kernel": os.uname().release}
    try:
        details["nft"] = nft.version()
    except EngineError as error:
        return Probe(available=False, reason=str(error), details=details)
    compiler = Compiler(nft)
    # All at once where all of it works, which it mostly does: a small machine takes a second for each run of nft.
    all_work = not _refusal(lambda: compiler.compile(_everything()))
    for what, needs, structure in _NEEDED:
        refusal = "" if all_work else _refusal(functools.partial(compiler.compile, structure))
        details[what] = refusal or "yes"
        if refusal:
            reason = f"the kernel has no {what} ({refusal}); it needs {needs}"
            return Probe(available=False, reason=reason, details=details)
    details["rules by cgroup"] = "yes" if all_work else _refusal(lambda: compiler.compile(_CGROUP_RULE)) or "yes"
    details |= _readings()
    return Probe(available=True, reason=f"nftables on Linux {details['kernel']} by {details['nft']}", details=details)


def _everything() -> tuple[Command, ...]:
    """Give every structure that is tried as one, what several have in common once."""
    found: list[Command] = []
    for command in (*(one for _, _, structure in _NEEDED for one in structure), *_CGROUP_RULE):
        if command not in found:
            found.append(command)
    return tuple(found)


def _readings() -> dict[str, str]:
    """Tell of each thing that is read from the kernel whether it can be; all in one namespace."""
    readings: dict[str, Callable[[], object]] = {
        "log": lambda: LogReader(0, LOG_GROUP).close(),
        "entries of connection tracking": _read_flows,
        "sockets": _read_sockets,
    }
    found: dict[str, str] = {}

    def read() -> None:
        found.update({what: _refusal(attempt) or "yes" for what, attempt in readings.items()})

    refusal = _refusal(lambda: run_in_new(read))
    return found or dict.fromkeys(readings, refusal)


def _refusal(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except (EngineError, OSError) as error:
        return str(error)
    return ""


def _read_flows() -> None:
    with NetlinkSocket() as channel:
        list(conntrack.flows(channel))


def _read_sockets() -> None:
    with NetlinkSocket(NETLINK_SOCK_DIAG) as channel:
        conntrack.sockets(channel)
