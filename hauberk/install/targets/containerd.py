# SPDX-License-Identifier: Apache-2.0
"""containerd: two ways in, and the operator chooses (docs/adr/0009).

* ``base_runtime_spec``: every container of a handler starts from a specification that has our hooks. No program of
  ours runs but the hook. containerd does not use it for pause containers, nor for what ``ctr`` or Docker start.
* the wrapper runtime (``--wrapper``): the shim runs our program in the real runtime's place, for everything.

Either is a drop-in. A handler that has a base specification of its own keeps it: ours is that one with the hooks added.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from hauberk.install import containerd_configuration as configurations
from hauberk.install import programs, toml_reading, wrapper
from hauberk.install.errors import InstallError
from hauberk.install.material import encoded, hooks, material
from hauberk.install.plan import Edit, File, Plan
from hauberk.install.targets import Finding
from hauberk.install.targets.hooks_directory import programs as hook_programs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hauberk.install.containerd_configuration import Configuration
    from hauberk.install.plan import Directory
    from hauberk.install.targets import Options
    from hauberk.install.tree import Tree

SPECIFICATION: Final = "/etc/containerd/hauberk-base-spec.json"


class Containerd:
    """The target."""

    name = "containerd"
    accepts = frozenset({"fail_open", "wrapper", "edit", "runtimes"})
    programs = ("/usr/bin/containerd", "/usr/local/bin/containerd")

    def plan(self, tree: Tree, options: Options) -> Plan:
        """Say what should be there."""
        configuration = configurations.read(tree)
        handlers, notes, obstacles = _handlers(configuration, options)
        wanted: list[File | Directory | Edit] = [*hook_programs(fail_open=options.fail_open)]
        additions: dict[str, dict[str, Any]] = {}
        if options.wrapper:
            wanted.extend(wrapper.common(fail_open=options.fail_open))
        for name, table in handlers.items():
            if options.wrapper:
                files, addition, missing = _wrapped(tree, name, table)
                obstacles.extend(missing)
            else:
                files, addition = _specified(tree, name, table, options)
            wanted.extend(entry for entry in files if entry not in wanted)
            additions[name] = addition
        unlisted = [wrapper.path(name) for name in handlers if options.wrapper and name not in wrapper.LISTED]
        if unlisted:
            notes.append(f"In agent.yaml of a sealed machine, list {' and '.join(unlisted)} under helpers.")
        directory = configuration.directory or configurations.DROP_INS
        path = f"{directory}/{configurations.DROP_IN_NAME}"
        wanted.append(File(path, configurations.drop_in(configuration, additions)))
        wanted.extend(_imports(tree, configuration, options, obstacles))
        if tree.is_machine:
            notes.append("Now: systemctl restart containerd. Running containers go on and keep the hooks they had.")
        return Plan(self.name, tuple(wanted), options.recorded(), tuple(notes), tuple(obstacles))

    def examine(self, tree: Tree, options: Options) -> Iterator[Finding]:
        """Look whether containerd, asked for its configuration, names what was put there."""
        configuration = configurations.read(tree)
        if configuration.directory is None:
            yield Finding(
                well=False,
                what=f"{tree.shown(configurations.MAIN)} imports no directory with Hauberk's settings",
                advice=f'Add: imports = ["{configurations.PATTERN}"]',
            )
        program = tree.program(*self.programs) if tree.is_machine else None
        if program is None:
            return
        dump = programs.containerd_dump(program)
        if isinstance(dump, str):
            advice = "Correct what it says: whether containerd uses what was put there is not known until it answers"
            yield Finding(well=False, what=dump, advice=advice)
            return
        effective = toml_reading.parse(dump, "containerd config dump")
        handlers, _, _ = _handlers(configuration, options)
        found = {
            name: value
            for plugin in toml_reading.within(effective, "plugins").values()
            for name, value in toml_reading.within(plugin, "containerd", "runtimes").items()
        }
        for name, table in handlers.items():
            if options.wrapper:
                wanted = wrapper.path(name)
                actual = toml_reading.within(found, name, "options").get("BinaryName")
            else:
                wanted = _specification_path(name, table)
                actual = toml_reading.within(found, name).get("base_runtime_spec")
            shown = f"containerd's handler {name} uses {actual or 'nothing of ours'}"
            if actual == wanted:
                yield Finding(well=True, what=shown)
            else:
                yield Finding(well=False, what=f"{shown}, not {wanted}", advice="See which file is imported later")


def _handlers(configuration: Configuration, options: Options) -> tuple[dict[str, Any], list[str], list[str]]:
    """Give the handlers that get our hooks, notes on the others, and obstacles."""
    every = configuration.handlers()
    notes: list[str] = []
    obstacles: list[str] = []
    chosen: dict[str, Any] = {}
    for name, table in every.items():
        kind = table.get("runtime_type", configurations.RUNC_SHIM)
        if options.runtimes and name not in options.runtimes:
            notes.append(f"Handler {name} was not asked for and is left alone: its containers are not registered.")
        elif kind != configurations.RUNC_SHIM:
            notes.append(f"Handler {name} ({kind}) is left alone: it does not run an OCI runtime on this machine.")
        else:
            chosen[name] = table
    obstacles.extend(
        f"--runtime {name}: containerd has no such handler of type {configurations.RUNC_SHIM}; found {', '.join(every)}"
        for name in options.runtimes
        if name not in chosen
    )
    return chosen, notes, obstacles


def _specification_path(name: str, table: dict[str, Any]) -> str:
    own = table.get("base_runtime_spec")
    return SPECIFICATION.replace(".json", f"-{wrapper.checked(name)}.json") if own else SPECIFICATION


def _specified(tree: Tree, name: str, table: dict[str, Any], options: Options) -> tuple[list[File], dict[str, Any]]:
    """Give the base specification of a handler, and the setting that names it."""
    own = str(table.get("base_runtime_spec") or "")
    path = _specification_path(name, table)
    content = tree.read(own) if own else material("deploy/containerd/base-spec.json")
    if content is None:
        message = f"{tree.shown(own)}, the base_runtime_spec of handler {name}, is missing; containerd needs it too"
        raise InstallError(message)
    specification = with_hooks(content, tree.shown(own or path), fail_open=options.fail_open)
    return [File(path, specification)], {"base_runtime_spec": path}


def with_hooks(content: bytes, shown: str, *, fail_open: bool) -> bytes:
    """Add our hooks to an OCI specification, behind those it has; what it has of ours stays.

    Raises InstallError for one that is none.
    """
    try:
        specification = json.loads(content)
        sections = specification.setdefault("hooks", {})
        for stage, entries in hooks(fail_open=fail_open).items():
            present = sections.get(stage) or []
            sections[stage] = [*present, *(entry for entry in entries if entry not in present)]
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        message = f"{shown} is no OCI specification ({error}); expected a JSON object with an object 'hooks', or none"
        raise InstallError(message) from error
    return encoded(specification)


def _wrapped(tree: Tree, name: str, table: dict[str, Any]) -> tuple[list[File], dict[str, Any], list[str]]:
    """Give the wrapper of a handler, the setting that names it, and what is missing."""
    named = str(toml_reading.within(table, "options").get("BinaryName") or "runc")
    real = wrapper.find(tree, named)
    if real is None:
        return [], {}, [f"the runtime {named!r} of handler {name} was not found; install it first"]
    return wrapper.files(name, real), {"options": {"BinaryName": wrapper.path(name)}}, []


def _imports(tree: Tree, configuration: Configuration, options: Options, obstacles: list[str]) -> Iterator[File | Edit]:
    """Give what makes containerd import the directory, where it does not yet."""
    if configuration.main in (None, configurations.main_file()):  # the latter is what an earlier installation put
        yield File(configurations.MAIN, configurations.main_file())
        return
    if configuration.directory is not None:
        return
    line = f'imports = ["{configurations.PATTERN}"]'
    edited = configurations.add_import(configuration.main) if options.edit else None
    if edited is None:
        how = "in its list of imports" if imports(configuration) else "above its first table"
        choice = "" if options.edit else ", or let --edit-config do it (a copy is kept)"
        obstacles.append(f"{tree.shown(configurations.MAIN)} is not ours: add the line {line} {how}{choice}")
        return
    pattern = f'"{configurations.PATTERN}"'
    detail, advice = f"add {pattern} to imports", f"take {pattern} out of imports"
    yield Edit(configurations.MAIN, configuration.main, edited, detail, advice)


def imports(configuration: Configuration) -> list[str]:
    """Give what the main file imports."""
    return configurations.imports_of(configuration.files[0][1]) if configuration.files else []


TARGET: Final = Containerd()
