# SPDX-License-Identifier: Apache-2.0
"""The agent as a service: its unit, enabled by the link that ``systemctl enable`` would make.

The link is made here, and systemctl is never called: an image's units are enabled the same way as a machine's, and
nothing is started behind the operator's back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hauberk.install.material import material
from hauberk.install.plan import Directory, File, Link, Plan
from hauberk.install.targets import Finding
from hauberk.install.targets.hooks_directory import programs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hauberk.install.targets import Options
    from hauberk.install.tree import Tree

UNITS: Final = "/etc/systemd/system"
UNIT: Final = "hauberk-agent.service"
ETC: Final = "/etc/hauberk"
COMMAND: Final = "/usr/bin/hauberk"
_SETTINGS: Final = (
    ("agent.yaml", "Write it (docs/agent.md); it must say the mode"),
    ("trust-root.json", "Put the keys there that bundles must be signed with (docs/bundles.md)"),
    ("bundle.json", "Build one: hauberk bundle build"),
    ("bundle.json.sig", "Sign the bundle: hauberk bundle sign"),
)


class Systemd:
    """The target."""

    name = "systemd"
    accepts: frozenset[str] = frozenset()
    programs = ("/usr/lib/systemd/systemd", "/lib/systemd/systemd")

    def plan(self, tree: Tree, options: Options) -> Plan:
        """Say what should be there."""
        notes = ["Now: systemctl daemon-reload && systemctl start hauberk-agent.service."] if tree.is_machine else []
        return Plan(self.name, (*programs(fail_open=False), *agent_unit()), options.recorded(), tuple(notes))

    def examine(self, tree: Tree, options: Options) -> Iterator[Finding]:
        """Look at what the unit needs to start."""
        del options
        yield from examine_agent(tree)


def agent_unit() -> tuple[File | Link | Directory, ...]:
    """Give the unit, its enablement and its configuration's directory."""
    return (
        Directory(ETC, 0o700),
        File(f"{UNITS}/{UNIT}", material(f"deploy/systemd/{UNIT}")),
        Link(f"{UNITS}/multi-user.target.wants/{UNIT}", f"{UNITS}/{UNIT}"),
    )


def examine_agent(tree: Tree) -> Iterator[Finding]:
    """Look whether the agent's command, its settings and no override of the unit are there."""
    if tree.program(COMMAND):
        yield Finding(well=True, what=f"{tree.shown(COMMAND)} is there")
    else:
        yield Finding(
            well=False,
            what=f"{tree.shown(COMMAND)}, which the unit starts, is missing",
            advice="Install hauberk[agent] on the root file system and link its hauberk command there",
        )
    for name, advice in _SETTINGS:
        there = tree.read(f"{ETC}/{name}") is not None
        what = f"{tree.shown(f'{ETC}/{name}')} is {'there' if there else 'missing'}"
        yield Finding(well=there, what=what, advice="" if there else advice)
    for place in ("/etc/systemd/system.control", "/run/systemd/system.control", "/run/systemd/transient"):
        if f"{UNIT}" in tree.names(place):
            yield Finding(
                well=False,
                what=f"{tree.shown(place)}/{UNIT} takes the unit's place",
                advice="systemctl revert hauberk-agent.service",
            )


TARGET: Final = Systemd()
