# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: T201 - a command line prints
"""``hauberk install`` and ``hauberk uninstall``: put the hook and the units in a runtime's way, and take them back.

    hauberk install podman [--root DIR] [--dry-run | --check] [--json]

Nothing is started, stopped or reloaded: the last lines say what to do. Exit codes: 0 done, or complete; 1 something
is in the way, missing or was kept; 2 wrong usage; 3 the runtime is missing, or root's rights are.
"""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hauberk.install.plan import Step
    from hauberk.install.targets import Finding, Options

    _Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001 - it has no public name

DONE, NO, ENVIRONMENT = 0, 1, 3
_TARGETS = {
    "podman": "the hook for podman started by root",
    "crio": "the hook for CRI-O",
    "containerd": "the hook for containerd's CRI: base_runtime_spec, or a wrapper of runc",
    "docker": "the hook for Docker: a wrapper of runc",
    "kata-guest": "hook and agent in the image of a Kata guest",
    "systemd": "the agent as a service",
}


def register(subparsers: _Subparsers) -> None:
    """Add the commands to the parser of ``hauberk``."""
    install = subparsers.add_parser("install", help="put the hook into a runtime's way, or the agent into systemd's")
    targets = install.add_subparsers(title="targets", dest="target", required=True)
    for name, text in _TARGETS.items():
        _add_install(targets.add_parser(name, help=text, description=f"Install {text}."), name)
    uninstall = subparsers.add_parser("uninstall", help="take back what hauberk install put")
    targets = uninstall.add_subparsers(title="targets", dest="target", required=True)
    for name, text in _TARGETS.items():
        parser = targets.add_parser(name, help=text, description=f"Take back {text}.")
        _add_common(parser)
        parser.set_defaults(run=_uninstall, target=name)


def _add_common(parser: argparse.ArgumentParser) -> argparse._MutuallyExclusiveGroup:
    parser.add_argument("--root", type=Path, default=Path("/"), metavar="DIR", help="an image's files; default /")
    parser.add_argument("--json", action="store_true", help="for scripts")
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--dry-run", action="store_true", help="only tell what would be done")
    return either


def _add_install(parser: argparse.ArgumentParser, name: str) -> None:
    either = _add_common(parser)
    either.add_argument("--check", action="store_true", help="tell whether what is there is complete and works")
    parser.add_argument(
        "--replace", action="store_true", help="keep a file that is in the way as FILE.before-hauberk and go on"
    )
    if name in ("podman", "crio", "containerd", "docker"):
        parser.add_argument(
            "--fail-open",
            action="store_true",
            help="containers start unprotected while no agent listens; void unless agent.yaml says 'mode: host'",
        )
    if name in ("podman", "crio", "kata-guest"):
        parser.add_argument(
            "--hooks-dir", type=_absolute, dest="directory", metavar="DIR", help="another hooks directory"
        )
    if name in ("containerd", "docker"):
        parser.add_argument(
            "--edit-config", action="store_true", dest="edit",
            help="add what is needed to a configuration file that is there; a copy is kept",
        )  # fmt: skip
    if name == "containerd":
        parser.add_argument("--wrapper", action="store_true", help="wrap the runtime instead of base_runtime_spec")
        parser.add_argument(
            "--runtime", action="append", default=[], dest="runtimes", metavar="HANDLER",
            help="only this handler (may be repeated); default: all that run runc's shim",
        )  # fmt: skip
    parser.set_defaults(run=_install, target=name)


def _absolute(text: str) -> str:
    if not text.startswith("/"):
        message = f"{text!r}: expected an absolute path, as the runtime will see it"
        raise argparse.ArgumentTypeError(message)
    return text.rstrip("/")


def _options(arguments: argparse.Namespace) -> Options:
    targets = importlib.import_module("hauberk.install.targets")
    names = {"fail_open", "wrapper", "edit", "directory", "runtimes"} & set(vars(arguments))
    chosen = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    if "runtimes" in chosen:
        chosen["runtimes"] = tuple(chosen["runtimes"])
    options: Options = targets.Options(**chosen)
    return options


def _operations() -> Any:  # noqa: ANN401 - a module, imported when asked for
    return importlib.import_module("hauberk.install.operations")


def _tree(arguments: argparse.Namespace) -> Any:  # noqa: ANN401 - as above
    return importlib.import_module("hauberk.install.tree").Tree(arguments.root)


def _install(arguments: argparse.Namespace) -> int:
    options = _options(arguments)
    with _tree(arguments) as tree:
        if arguments.check:
            return _report(_operations().check(tree, arguments.target, options), as_json=arguments.json)
        prepared, notes = _operations().install(
            tree, arguments.target, options, replace=arguments.replace, dry_run=arguments.dry_run
        )
    _show(prepared.steps, notes, arguments)
    return DONE


def _uninstall(arguments: argparse.Namespace) -> int:
    with _tree(arguments) as tree:
        prepared, told = _operations().uninstall(tree, arguments.target, dry_run=arguments.dry_run)
    _show(prepared.steps, told, arguments)
    return NO if told else DONE


def _show(steps: Iterable[Step], notes: Iterable[str], arguments: argparse.Namespace) -> None:
    if arguments.json:
        document = {
            "target": arguments.target,
            "dryRun": arguments.dry_run,
            "steps": [
                {"action": step.action, "path": step.path, "detail": step.detail, "changes": step.changes}
                for step in steps
            ],
            "notes": list(notes),
        }
        print(json.dumps(document, indent=1))
        return
    for step in steps:
        print(f"{'would ' if arguments.dry_run and step.changes else ''}{step}")
    for note in notes:
        print(note)


def _report(findings: list[Finding], *, as_json: bool) -> int:
    complete = all(finding.well for finding in findings)
    if as_json:
        document = {
            "complete": complete,
            "findings": [
                {"well": finding.well, "what": finding.what, "advice": finding.advice} for finding in findings
            ],
        }
        print(json.dumps(document, indent=1))
    else:
        for finding in findings:
            print(finding)
    if any(finding.no_runtime for finding in findings):
        return ENVIRONMENT
    return DONE if complete else NO
