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
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from guest_agent.engines.network_port import EngineError
from guest_agent.engines.nftables import netlink_table as kernel
from guest_agent.engines.nftables.engine_reconcile import reconcile
from guest_agent.engines.nftables.namespace import run_in_new
from guest_agent.engines.nftables.netlink import NetlinkError, NetlinkSocket
from guest_agent.engines.nftables.ruleset import WIDTHS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guest_agent.engines.nftables.netlink_table import Table
    from guest_agent.engines.nftables.nft import Command, Nft

_KEPT: Final = 16
_INTERVAL: Final = "interval"
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
        commands, left = _split(structure)
        self._nft.run([{"add": {"table": {"family": "inet", "name": kernel.TABLE}}}, *commands])
        try:
            with NetlinkSocket() as channel:
                table, _ = kernel.read_table(channel)
                if table is None:
                    message = f"nft said nothing, and made no table {kernel.TABLE}; is it nftables 1.0.6 or later?"
                    raise EngineError(message)
                # What we wrote ourselves has to pass the kernel too, and to be read back in its form.
                table = _tried(channel, left.put_into(table)) or table
        except (OSError, ValueError, KeyError) as error:
            message = f"what nft made of the rules cannot be read: {error}; is this kernel older than 6.1?"
            raise EngineError(message) from error
        return replace(table, quotas={name: replace(quota, used=0) for name, quota in table.quotas.items()})


@dataclass
class _Left:
    """What nft is not asked for: rules by chain and place among its rules, and bytes of the fields of sets by name."""

    rules: dict[str, dict[int, bytes]] = field(default_factory=dict)
    sets: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def take(self, described: dict[str, Any]) -> dict[str, Any]:
        """Give a set of concatenated intervals as nft is to make it, without them.

        nft 1.0.6 turns fields of one byte round where it looks into such a set, which kernels from 6.12 on refuse.
        """
        self.sets[described["name"]] = tuple(WIDTHS[kind] // 8 for kind in described["type"])
        flags = [flag for flag in described["flags"] if flag != _INTERVAL]
        return {key: value for key, value in described.items() if key != "flags"} | ({"flags": flags} if flags else {})

    def put_into(self, table: Table) -> Table:
        """Give the table that nft made, with what it was not asked for."""
        chains, sets = dict(table.chains), dict(table.sets)
        for name, places in self.rules.items():
            rules = (places.get(place, rule) for place, rule in enumerate(chains[name].rules))
            chains[name] = replace(chains[name], rules=tuple(rules))
        for name, widths in self.sets.items():
            sets[name] = replace(sets[name], definition=kernel.with_intervals(sets[name].definition, widths))
        return replace(table, chains=chains, sets=sets)


def _split(structure: Sequence[Command]) -> tuple[list[Command], _Left]:
    """Give the commands for nft, and what is left."""
    commands: list[Command] = []
    left = _Left()
    places: dict[str, int] = {}
    for command in structure:
        made = command
        match command:
            case {"add": {"rule": dict(rule)}}:
                chain = str(rule["chain"])
                place = places[chain] = places.get(chain, -1) + 1
                dispatch = _dispatch(rule)
                if dispatch is not None:
                    left.rules.setdefault(chain, {})[place] = dispatch
                    made = {"add": {"rule": {**rule, "expr": _PLACEHOLDER}}}
            case {"add": {"set": dict(described)}} if _has_concatenated_intervals(described):
                made = {"add": {"set": left.take(described)}}
            case {"add": {"map": dict(described)}} if _has_concatenated_intervals(described):
                made = {"add": {"map": left.take(described)}}
        commands.append(made)
    return commands, left


def _has_concatenated_intervals(described: dict[str, Any]) -> bool:
    return isinstance(described["type"], list) and _INTERVAL in described.get("flags", ())


def _dispatch(rule: dict[str, object]) -> bytes | None:
    """Give the rule that hands packets on by cgroup; None for every other."""
    match rule.get("expr"):
        case [{"vmap": {"key": {"socket": {"key": "cgroupv2", "level": int(level)}}, "data": str(name)}}]:
            return kernel.cgroup_dispatch(level, name.removeprefix("@"))
        case _:
            return None


def _tried(channel: NetlinkSocket, table: Table) -> Table | None:
    """Put a table in the place of what nft made, and read it back."""
    steps = reconcile(None, table).steps
    try:
        channel.commit([kernel.delete_table(), *(step.message for step in steps)])
    except NetlinkError as error:
        what = steps[error.index - 1].what if 0 < error.index <= len(steps) else "the table"
        message = (
            f"this kernel does not take {what}: {error.strerror}; rules by cgroup need CONFIG_NFT_SOCKET and"
            " CONFIG_SOCK_CGROUP_DATA"
        )
        raise EngineError(message) from error
    return kernel.read_table(channel)[0]
