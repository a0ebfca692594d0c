# SPDX-License-Identifier: Apache-2.0
"""Takes the rules about packets away where no agent runs: after a removal, or when a policy has locked its author out.

Only our own table is removed: from the agent's network namespace, and from that of every workload on record that still
has a process. A running agent is asked instead, since it would put the rules in force again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from guest_agent.engines.network_port import EngineError, Namespace
from guest_agent.network import places
from guest_agent.records import RecordStore
from guest_agent.workloads import verification

if TYPE_CHECKING:
    from guest_agent.configuration import Configuration
    from guest_agent.engines.network_port import NetworkEngine
    from guest_agent.workloads.verification import Machine


@dataclass(frozen=True, slots=True)
class Flushed:
    """How many namespaces were looked into, and where that did not work."""

    namespaces: int
    problems: tuple[str, ...] = ()


def flush(configuration: Configuration, engine: NetworkEngine, machine: Machine) -> Flushed:
    """Remove our table everywhere. Raises EngineError in sealed mode, OSError while an agent runs."""
    if configuration.mode == "sealed":
        message = "found a sealed machine, expected one in host mode: what is sealed stays in force"
        raise EngineError(message)
    records = RecordStore(configuration.state_directory)
    records.claim()
    try:
        found = {verification.network_namespace("self", machine): "self"}
        for record in records.all():
            place = places.find(record.identity, 0, machine)
            if place is not None:
                found.setdefault(place[0].namespace, str(place[1]))
    finally:
        records.give_up()
    problems: list[str] = []
    for inode, process in found.items():
        try:
            engine.remove(Namespace(inode, str(machine.proc_root / process / "ns" / "net")))
        except EngineError as error:
            problems.append(f"network namespace {inode}: {error}")
    return Flushed(len(found) - len(problems), tuple(problems))
