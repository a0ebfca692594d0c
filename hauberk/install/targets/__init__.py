# SPDX-License-Identifier: Apache-2.0
"""The targets: what each runtime needs to be there, and how to see that it looks there.

A target is pure towards the machine: it reads through the tree and gives a plan, or findings; it writes nothing.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hauberk.install.plan import Plan
    from hauberk.install.tree import Tree

NAMES: Final = {
    "podman": "hauberk.install.targets.podman",
    "crio": "hauberk.install.targets.crio",
    "containerd": "hauberk.install.targets.containerd",
    "docker": "hauberk.install.targets.docker",
    "kata-guest": "hauberk.install.targets.kata_guest",
    "systemd": "hauberk.install.targets.systemd",
}
"""Target -> the module whose ``TARGET`` it is; imported when asked for."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the operator chose. Kept in the record, so that ``--check`` asks for the same."""

    fail_open: bool = False
    wrapper: bool = False  # containerd: the wrapper runtime instead of base_runtime_spec
    edit: bool = False  # may add to a configuration file that is not ours
    runtimes: tuple[str, ...] = ()  # containerd: handlers; empty: all that run runc's shim
    directory: str = ""  # podman, crio, kata-guest: where hooks are looked for; empty: the default

    def recorded(self) -> dict[str, object]:
        """Give the choices as the record keeps them."""
        return {
            "failOpen": self.fail_open,
            "wrapper": self.wrapper,
            "edit": self.edit,
            "runtimes": list(self.runtimes),
            "directory": self.directory,
        }


def recorded_options(recorded: dict[str, object]) -> Options:
    """Give the options that a record keeps; what an older record does not know is the default."""
    runtimes = recorded.get("runtimes")
    return Options(
        fail_open=recorded.get("failOpen") is True,
        wrapper=recorded.get("wrapper") is True,
        edit=recorded.get("edit") is True,
        runtimes=tuple(map(str, runtimes)) if isinstance(runtimes, list) else (),
        directory=str(recorded.get("directory") or ""),
    )


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a check looked at. ``advice`` says what to do when it is not well."""

    well: bool
    what: str
    advice: str = ""
    no_runtime: bool = False

    def __str__(self) -> str:
        """Render as one line."""
        return f"{'ok  ' if self.well else 'NOT '} {self.what}{'. ' + self.advice if self.advice else ''}"


class Target(Protocol):
    """One way in."""

    name: str
    accepts: frozenset[str]  # names of Options that mean something here
    programs: tuple[str, ...]  # where the runtime's program may lie; empty: no runtime is needed

    def plan(self, tree: Tree, options: Options) -> Plan:
        """Say what should be there. Raises InstallError for a configuration that cannot be read."""
        ...

    def examine(self, tree: Tree, options: Options) -> Iterator[Finding]:
        """Look whether the runtime will use what is there."""
        ...


def target(name: str) -> Target:
    """Give a target by name."""
    found: Target = importlib.import_module(NAMES[name]).TARGET
    return found
