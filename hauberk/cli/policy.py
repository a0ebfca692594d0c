# SPDX-License-Identifier: Apache-2.0
"""``hauberk policy check | explain | render``: for authors of policies, without a kernel.

``check`` reports every problem with its place, for people, for programs and for code review on GitHub. ``explain``
asks what would happen. ``render`` shows what the policies become. YAML, pydantic and the engine's planner are
imported by the command that needs them.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hauberk.errors import FactsError, HauberkError, Problem

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Sequence

    from hauberk.policy.explain import Explainer, Question
    from hauberk.policy.models import Policy
    from hauberk.policy.rules import RuleSet
    from hauberk.policy.selectors import WorkloadIdentity

_SUFFIXES = (".yaml", ".yml")


class UsageError(HauberkError):
    """The command line asks for something that cannot be done."""

    exit_code = 2


def register(subparsers: Any) -> None:  # noqa: ANN401 - argparse's own type is private
    """Add ``policy`` and its commands."""
    policy = subparsers.add_parser("policy", help="check policies and ask what they would do")
    commands = policy.add_subparsers(title="commands", dest="policy_command", required=True)

    check = commands.add_parser("check", help="report every problem of policies, with file, line and field")
    _add_files(check)
    check.add_argument("--format", choices=("text", "json", "github"), default="text", help="form of the report")
    check.set_defaults(run=_check)

    explain = commands.add_parser(
        "explain",
        help="ask whether an operation would be allowed, and why",
        description="Exit code 0: allowed or audited; 1: denied, or a policy is invalid. "
        "Without --label, --container-name and --namespace, all policies given are taken to cover the workload.",
    )
    _add_files(explain)
    what = explain.add_argument_group("question")
    what.add_argument("--operation", choices=("execute", "map", "read", "write"))
    what.add_argument("--path", help="absolute path of the object")
    what.add_argument("--source", metavar="EXE", help="executable that acts; default: one that no rule names")
    owner = what.add_mutually_exclusive_group()
    owner.add_argument("--owner", action="store_true", default=True, help="it acts as the object's owner (default)")
    owner.add_argument("--not-owner", dest="owner", action="store_false", help="it does not")
    what.add_argument(
        "--questions",
        metavar="FILE",
        help="questions as JSON lines with operation, path, source, owner ('-': standard input); answers likewise",
    )
    explain.add_argument("--rootfs", metavar="DIR", help="resolve the symbolic links of this root file system")
    explain.add_argument("--json", action="store_true", help="answer in JSON")
    _add_workload(explain)
    explain.set_defaults(run=_explain)

    render = commands.add_parser("render", help="show the rules that policies become, and the size of an engine's plan")
    _add_files(render)
    render.add_argument("--engine", choices=("bpf_lsm",), required=True)
    render.add_argument("--rootfs", metavar="DIR", help="resolve the symbolic links of this root file system")
    _add_workload(render)
    render.set_defaults(run=_render)


def _add_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files", nargs="+", metavar="FILE|DIR", help="policy files, or directories with *.yaml and *.yml"
    )


def _add_workload(parser: argparse.ArgumentParser) -> None:
    workload = parser.add_argument_group("workload")
    workload.add_argument(
        "--label", action="append", default=[], metavar="K=V", help="label of the workload; repeatable"
    )
    workload.add_argument("--container-name", default="", metavar="N", help="name of the container")
    workload.add_argument("--namespace", default="", metavar="NS", help="namespace of the workload")
    workload.add_argument("--posture", choices=("block", "audit", "allow"), default="block",
                          help="what an allow-list does with the rest (default: block)")  # fmt: skip


def policy_files(names: Iterable[str]) -> list[tuple[str, bytes]]:
    """Read files, and the ``*.yaml`` and ``*.yml`` files of directories (with all below, in order of their paths).

    Gives (path as shown in messages, content). Raises :class:`UsageError` where there is nothing to read.
    """
    from hauberk.policy.documents import MAXIMUM_BYTES  # noqa: PLC0415

    found: dict[str, bytes] = {}
    for name in names:
        top = Path(name)
        paths = [top]
        if top.is_dir():
            paths = sorted(path for path in top.rglob("*") if path.suffix in _SUFFIXES and path.is_file())
            if not paths:
                message = (
                    f"found no *.yaml or *.yml file in {name}, expected at least one policy. Name another directory"
                )
                raise UsageError(message)
        for path in paths:
            try:
                with path.open("rb") as stream:
                    found[str(path)] = stream.read(MAXIMUM_BYTES + 1)
            except OSError as error:
                message = f"found {path} unreadable ({error.strerror}), expected a policy file. Check its name and mode"
                raise UsageError(message) from error
    return list(found.items())


def _check(arguments: argparse.Namespace) -> int:
    from hauberk.policy import models  # noqa: PLC0415

    policies, problems = models.examine(policy_files(arguments.files))
    if arguments.format == "json":
        report = {
            "valid": not problems,
            "policies": [{"name": policy.name, "file": policy.document.file} for policy in policies],
            "problems": [_problem_as_json(problem) for problem in problems],
        }
        _print(json.dumps(report, indent=2))
    else:
        for problem in problems:
            _print(_annotation(problem) if arguments.format == "github" else str(problem))
        if arguments.format == "text":
            _print(f"{len(policies)} valid {_plural(len(policies), 'policy', 'policies')}, "
                   f"{len(problems)} {_plural(len(problems), 'problem', 'problems')}")  # fmt: skip
    return 1 if problems else 0


def _plural(number: int, one: str, many: str) -> str:
    return one if number == 1 else many


def _problem_as_json(problem: Problem) -> dict[str, str | int]:
    return {name: getattr(problem, name) for name in Problem.__slots__}


def _annotation(problem: Problem) -> str:
    """Give a workflow command for an annotation in a code review on GitHub."""

    def escape(text: str, *, of_property: bool) -> str:
        text = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
        return text.replace(":", "%3A").replace(",", "%2C") if of_property else text

    properties = {"file": problem.file, "title": problem.field or "policy"}
    if problem.line:
        properties |= {"line": str(problem.line), "col": str(problem.column)}
    written = ",".join(f"{name}={escape(value, of_property=True)}" for name, value in properties.items())
    return f"::error {written}::{escape(problem.describe(), of_property=False)}"


def _workload(arguments: argparse.Namespace) -> WorkloadIdentity | None:
    """Give the workload described on the command line, or None where nothing is said about it."""
    from hauberk.policy.selectors import WorkloadIdentity  # noqa: PLC0415

    labels: dict[str, str] = {}
    for pair in arguments.label:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            message = f"found the label {pair!r}, expected KEY=VALUE. Write the label's name, '=' and its value"
            raise UsageError(message)
        labels[key] = value
    if not (labels or arguments.container_name or arguments.namespace):
        return None
    return WorkloadIdentity(namespace=arguments.namespace, labels=labels, container_name=arguments.container_name)


def _rule_set(arguments: argparse.Namespace) -> RuleSet | None:
    """Give the rule set of the command line's files and workload; None if no policy covers it."""
    from hauberk.policy import models, normalise  # noqa: PLC0415

    policies: Sequence[Policy] = models.load(policy_files(arguments.files))
    posture = normalise.POSTURES[arguments.posture]
    workload = _workload(arguments)
    return normalise.build(policies, posture) if workload is None else normalise.rule_set(policies, workload, posture)


_UNCOVERED = "no policy covers this workload; the default of its bundle decides, which is deny unless it says otherwise"


def _explain(arguments: argparse.Namespace) -> int:
    if arguments.questions and (arguments.operation or arguments.path or arguments.source):
        message = "found --questions and a question, expected one of them. Put the question into the file"
        raise UsageError(message)
    if not arguments.questions and not (arguments.operation and arguments.path):
        message = "found no question, expected --operation and --path, or --questions. Say what to ask"
        raise UsageError(message)
    rule_set = _rule_set(arguments)
    if rule_set is None:
        _print(json.dumps({"verdict": "deny", "reason": _UNCOVERED}) if arguments.json else f"deny: {_UNCOVERED}")
        return 1
    from hauberk.policy import explain  # noqa: PLC0415
    from hauberk.policy.rules import Operation  # noqa: PLC0415

    with ExitStack() as stack:
        explainer = _explainer(arguments, rule_set, stack)
        if arguments.questions:
            return _batch(explainer, arguments.questions, stack)
        question = explain.Question(Operation(arguments.operation), arguments.path, arguments.source, arguments.owner)
        return _answer(explainer, question, as_json=arguments.json)


def _explainer(arguments: argparse.Namespace, rule_set: RuleSet, stack: ExitStack) -> Explainer:
    from hauberk.policy.explain import Explainer  # noqa: PLC0415

    if arguments.rootfs is None:
        return Explainer(rule_set)
    from hauberk.policy.resolution import RootResolver, expand  # noqa: PLC0415

    resolver = stack.enter_context(RootResolver(arguments.rootfs))
    return Explainer(expand(rule_set, resolver.resolve), resolver.resolve)


def _answer(explainer: Explainer, question: Question, *, as_json: bool) -> int:
    from hauberk.policy import explain  # noqa: PLC0415

    answer = explainer.ask(question)
    _print(json.dumps(explain.as_json(answer), indent=2) if as_json else explain.as_text(answer))
    return 0 if answer.allowed else 1


def _batch(explainer: Explainer, name: str, stack: ExitStack) -> int:
    """Answer questions line by line. The exit code says whether all could be asked, not what was answered."""
    from hauberk.policy import explain  # noqa: PLC0415

    try:
        lines = sys.stdin if name == "-" else stack.enter_context(Path(name).open(encoding="utf-8"))  # noqa: SIM115
    except OSError as error:
        message = f"found {name} unreadable ({error.strerror}), expected a file with questions. Check its name and mode"
        raise UsageError(message) from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            answer = explainer.ask(explain.parse_question(line))
        except (explain.QuestionError, FactsError) as error:
            message = f"question in line {number}: {error}"
            raise UsageError(message) from error
        sys.stdout.write(json.dumps(explain.verdict_as_json(answer)) + "\n")
    return 0


def _render(arguments: argparse.Namespace) -> int:
    from hauberk.policy import explain  # noqa: PLC0415
    from hauberk.policy.rules import Section  # noqa: PLC0415

    rule_set = _rule_set(arguments)
    if rule_set is None:
        _print(json.dumps({"engine": arguments.engine, "rules": None, "reason": _UNCOVERED}))
        return 1
    with ExitStack() as stack:
        rule_set = _explainer(arguments, rule_set, stack).rule_set
    _print(
        json.dumps(
            {
                "engine": arguments.engine,
                "posture": arguments.posture,
                "allowLists": [section.value for section in Section if rule_set.is_allow_list(section)],
                "privilegedSources": sorted(rule_set.privileged_sources()),
                "rules": [explain.rule_as_json(rule) for rule in rule_set.rules],
                "table": _table_sizes(rule_set),
            },
            indent=2,
        )
    )
    return 0


def _table_sizes(rule_set: RuleSet) -> dict[str, int] | None:
    """Give the sizes of the engine's table, or None where the agent is not installed beside this command."""
    try:
        plan = importlib.import_module("guest_agent.engines.bpf_lsm.plan")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "guest_agent":
            raise
        return None
    table = plan.compile_table(rule_set)
    return {"bytes": len(table.blob), "states": table.states, "classes": table.classes, "sources": len(table.sources)}


def _print(text: str) -> None:
    sys.stdout.write(text + os.linesep)
