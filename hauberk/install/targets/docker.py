# SPDX-License-Identifier: Apache-2.0
"""Docker: the wrapper runtime as default runtime in ``daemon.json``.

Docker knows no hooks and its containerd no base specification for it. ``daemon.json`` has no drop-ins either: where
there is one already, its members are added to only when asked for, and the file's own copy is kept.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from hauberk.install import wrapper
from hauberk.install.errors import InstallError
from hauberk.install.material import encoded
from hauberk.install.plan import Directory, Edit, File, Plan
from hauberk.install.targets import Finding
from hauberk.install.targets.hooks_directory import programs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hauberk.install.targets import Options
    from hauberk.install.tree import Tree

CONFIGURATION: Final = "/etc/docker/daemon.json"
NAME: Final = "hauberk"
_WRAPPED: Final = "docker"


class Docker:
    """The target."""

    name = "docker"
    accepts = frozenset({"fail_open", "edit"})
    programs = ("/usr/bin/dockerd", "/usr/local/bin/dockerd")

    def plan(self, tree: Tree, options: Options) -> Plan:
        """Say what should be there."""
        content = tree.read(CONFIGURATION)
        settings = _parse(content, tree.shown(CONFIGURATION))
        obstacles: list[str] = []
        wanted: list[File | Directory | Edit] = [
            *programs(fail_open=options.fail_open),
            *wrapper.common(fail_open=options.fail_open),
        ]
        real = _real(tree, settings, obstacles)
        if real is not None:
            wanted.extend(wrapper.files(_WRAPPED, real))
        changed, fresh = _with_ours(settings), encoded(_with_ours({}))
        notes = ["What `docker build` runs does not go through a runtime of daemon.json and is not registered."]
        if _default(settings).get("runtimeArgs"):
            name = settings["default-runtime"]
            notes.append(
                f"The runtimeArgs of {name} are not passed on: add them to runtimes.{NAME} if they are needed."
            )
        if content in (None, fresh):  # a file with anything else in it is its owner's
            wanted.append(File(CONFIGURATION, fresh))
        elif content is not None and changed != settings:
            detail = f'make runtimes.{NAME} the "default-runtime"'
            advice = f'take runtimes.{NAME} and "default-runtime" out of it'
            if options.edit:
                wanted.append(Edit(CONFIGURATION, content, encoded(changed), detail, advice))
            else:
                obstacles.append(
                    f'{tree.shown(CONFIGURATION)} is not ours: add "default-runtime": "{NAME}" and "runtimes":'
                    f" {json.dumps({NAME: changed['runtimes'][NAME]})}, or let --edit-config do it (a copy is kept)"
                )
        if tree.is_machine:
            notes.append("Now: systemctl restart docker. Containers that exist keep the runtime they were made with.")
        return Plan(self.name, tuple(wanted), options.recorded(), tuple(notes), tuple(obstacles))

    def examine(self, tree: Tree, options: Options) -> Iterator[Finding]:
        """Look whether Docker's configuration names the wrapper."""
        del options
        settings = _parse(tree.read(CONFIGURATION), tree.shown(CONFIGURATION))
        default = settings.get("default-runtime", "runc")
        path = settings.get("runtimes", {}).get(default, {}).get("path")
        well = path == wrapper.path(_WRAPPED)
        advice = "" if well else f'Set "default-runtime": "{NAME}" with the path {wrapper.path(_WRAPPED)}'
        yield Finding(well=well, what=f"Docker's default runtime is {default} ({path or 'its own'})", advice=advice)


def _parse(content: bytes | None, shown: str) -> dict[str, Any]:
    if content is None:
        return {}
    try:
        settings = json.loads(content)
    except (ValueError, RecursionError) as error:
        message = f"{shown} is no JSON ({error}); correct it first"
        raise InstallError(message) from error
    runtimes = settings.get("runtimes", {}) if isinstance(settings, dict) else None
    if not isinstance(runtimes, dict) or not all(isinstance(entry, dict) for entry in runtimes.values()):
        message = f"{shown}: expected an object, with an object of objects as runtimes"
        raise InstallError(message)
    result: dict[str, Any] = settings
    return result


def _with_ours(settings: dict[str, Any]) -> dict[str, Any]:
    runtimes = {**settings.get("runtimes", {}), NAME: {"path": wrapper.path(_WRAPPED)}}
    return {**settings, "default-runtime": NAME, "runtimes": runtimes}


def _default(settings: dict[str, Any]) -> dict[str, Any]:
    """Give the entry of the default runtime, if that is one of theirs with an entry."""
    name = str(settings.get("default-runtime", NAME))
    found: dict[str, Any] = {} if name == NAME else settings.get("runtimes", {}).get(name, {})
    return found


def _real(tree: Tree, settings: dict[str, Any], obstacles: list[str]) -> str | None:
    """Give the runtime that Docker would use without us."""
    default = str(settings.get("default-runtime", "runc"))
    if default == NAME:
        known = (tree.read(f"{wrapper.SETTINGS}/runtimes/{_WRAPPED}") or b"").decode("utf-8", "replace").strip()
        default = known or "runc"
    named = default if default.startswith("/") else settings.get("runtimes", {}).get(default, {}).get("path", default)
    real = wrapper.find(tree, str(named))
    if real is None:
        obstacles.append(f"Docker's runtime {named!r} was not found; install it first")
    return real


TARGET: Final = Docker()
