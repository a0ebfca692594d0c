# SPDX-License-Identifier: Apache-2.0
"""The image of a Kata guest: the hook as kata-agent wants it, and the agent as a unit before kata-agent.

kata-agent takes regular executable files from ``prestart`` and ``poststop`` below the directory that the host's
``guest_hook_path`` names; links are not taken. It ignores a hook's exit status, which is why the kernel's gate, in
force before kata-agent starts, is what really holds. There is no way to fail open here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hauberk.install.material import material
from hauberk.install.plan import EXECUTABLE, Directory, File, Plan
from hauberk.install.targets import Finding
from hauberk.install.targets.systemd import ETC, UNITS, agent_unit, examine_agent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hauberk.install.targets import Options
    from hauberk.install.tree import Tree

DIRECTORY: Final = "/usr/share/oci/hooks"
STAGES: Final = ("prestart", "poststop")
_DROP_IN: Final = "kata-agent.service.d/10-hauberk.conf"


class KataGuest:
    """The target."""

    name = "kata-guest"
    accepts = frozenset({"directory"})
    programs = ("/usr/bin/kata-agent", "/usr/local/bin/kata-agent")

    def plan(self, tree: Tree, options: Options) -> Plan:
        """Say what should be there."""
        del tree
        directory = options.directory or DIRECTORY
        hook = material("hooks/hauberk-hook")
        copies = tuple(File(f"{directory}/{stage}/hauberk-hook", hook, EXECUTABLE) for stage in STAGES)
        notes = [
            f"On the host, in the hypervisor's section of Kata's configuration: guest_hook_path = \"{directory}\".",
            f"Put agent.yaml (mode: sealed), trust-root.json, bundle.json and bundle.json.sig into {ETC} of the image.",
        ]
        if directory != DIRECTORY:
            notes.append(f"In agent.yaml, list {' and '.join(copy.path for copy in copies)} under helpers.")
        return Plan(
            self.name,
            (
                Directory(directory),
                *copies,
                *agent_unit(),
                File(f"{UNITS}/{_DROP_IN}", material(f"deploy/systemd/{_DROP_IN}")),
            ),
            options.recorded(),
            tuple(notes),
        )

    def examine(self, tree: Tree, options: Options) -> Iterator[Finding]:
        """Look at what the guest needs to come up, and at hooks of others beside ours."""
        yield from examine_agent(tree)
        settings = tree.read(f"{ETC}/agent.yaml")
        if settings is not None and b"mode: sealed" not in settings.splitlines():
            yield Finding(
                well=False,
                what=f"{tree.shown(ETC)}/agent.yaml has no line 'mode: sealed'",
                advice="In host mode a container whose hook did not run is not gated, and the host decides about hooks",
            )
        for stage in STAGES:
            others = [
                name for name in tree.names(f"{options.directory or DIRECTORY}/{stage}") if name != "hauberk-hook"
            ]
            if others:
                yield Finding(
                    well=True,
                    what=f"other hooks in {stage}: {', '.join(others)}",
                    advice="In sealed mode the gate refuses them unless agent.yaml lists them under helpers",
                )


TARGET: Final = KataGuest()
