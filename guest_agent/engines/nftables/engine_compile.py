# SPDX-License-Identifier: Apache-2.0
"""Turns the structure of a table into what the kernel holds of it: `nft` is the compiler, a scratch namespace its desk.

The kernel's form of rules is documented nowhere, so `nft` writes them. It does so in an empty network namespace that
is thrown away, and what is read back there goes, with the elements, as one transaction to where it is to hold. Three
things that `nft -f` in place could not give follow from that: cgroups by number (no release takes anything but a path,
and JSON of 1.0.6 has no word for them), quotas and base chains that stay while everything around them changes, and a
read-back that equals what was sent, byte for byte. What `nft` refuses is refused before anything is touched.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from guest_agent.engines.network_port import EngineError
from guest_agent.engines.nftables import netlink_table as kernel
from guest_agent.engines.nftables.namespace import run_in_new
from guest_agent.engines.nftables.netlink import NetlinkError, NetlinkSocket

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guest_agent.engines.nftables.netlink_table import Table
    from guest_agent.engines.nftables.nft import Command, Nft

_KEPT: Final = 16
_PLACEHOLDER: Final = [{"counter": None}]


class Compiler:
    """Compiles structures and remembers the last ones. May be used by several threads."""

    def __init__(self, nft: Nft) -> None:
        """Use this `nft`."""
        self._nft = nft
        self._lock = threading.Lock()
        self._done: OrderedDict[str, Table] = OrderedDict()

    def compile(self, structure: Sequence[Command]) -> Table:
        """Give the table that libnftables' commands make. Raises EngineError.

        The commands add chains, sets, maps, quotas and rules to the table ``inet hauberk``. A rule whose only statement
        is ``vmap`` of ``socket cgroupv2`` to a named map is written here, in nft's place.
        """
        known = json.dumps(structure, sort_keys=True)
        with self._lock:
            if known in self._done:
                self._done.move_to_end(known)
                return self._done[known]
        compiled = run_in_new(lambda: self._compile(structure))
        with self._lock:
            self._done[known] = compiled
            while len(self._done) > _KEPT:
                self._done.popitem(last=False)
        return compiled

    def _compile(self, structure: Sequence[Command]) -> Table:
        commands: list[Command] = [{"add": {"table": {"family": "inet", "name": kernel.TABLE}}}]
        dispatches: list[tuple[str, int, bytes]] = []  # chain, place among its rules, rule
        places: dict[str, int] = {}
        for command in structure:
            rule = _rule_of(command)
            if rule is None:
                commands.append(command)
                continue
            chain = str(rule["chain"])
            place = places[chain] = places.get(chain, -1) + 1
            dispatch = _dispatch(rule)
            if dispatch is None:
                commands.append(command)
            else:
                dispatches.append((chain, place, dispatch))
                commands.append({"add": {"rule": {**rule, "expr": _PLACEHOLDER}}})
        self._nft.run(commands)
        try:
            with NetlinkSocket() as channel:
                _put_in_place(channel, dispatches)
                table, _ = kernel.read_table(channel)
        except (OSError, ValueError, KeyError) as error:
            message = f"what nft made of the rules cannot be read: {error}; is this kernel older than 6.1?"
            raise EngineError(message) from error
        if table is None:
            message = f"nft said nothing, and made no table {kernel.TABLE}; is it nftables 1.0.6 or later?"
            raise EngineError(message)
        return replace(table, quotas={name: replace(quota, used=0) for name, quota in table.quotas.items()})


def _rule_of(command: Command) -> dict[str, object] | None:
    added = command.get("add")
    rule = added.get("rule") if isinstance(added, dict) else None
    return rule if isinstance(rule, dict) else None


def _dispatch(rule: dict[str, object]) -> bytes | None:
    """Give the rule that hands packets on by cgroup; None for every other."""
    match rule.get("expr"):
        case [{"vmap": {"key": {"socket": {"key": "cgroupv2", "level": int(level)}}, "data": str(name)}}]:
            return kernel.cgroup_dispatch(level, name.removeprefix("@"))
        case _:
            return None


def _put_in_place(channel: NetlinkSocket, dispatches: Sequence[tuple[str, int, bytes]]) -> None:
    if not dispatches:
        return
    handles: dict[str, list[int]] = {}
    for handle, chain, _ in kernel.read_rules(channel):
        handles.setdefault(chain, []).append(handle)
    try:
        channel.commit([kernel.replace_rule(chain, handles[chain][place], rule) for chain, place, rule in dispatches])
    except NetlinkError as error:
        message = (
            f"this kernel does not take rules by cgroup ({error.strerror}); it needs CONFIG_NFT_SOCKET and"
            " CONFIG_SOCK_CGROUP_DATA"
        )
        raise EngineError(message) from error
