# SPDX-License-Identifier: Apache-2.0
"""``hauberk policy check`` and ``schema``: what is wrong with policies, and what an editor should know of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from hauberk.cli import inputs
from hauberk.policy import collection

if TYPE_CHECKING:
    import argparse

    from hauberk.errors import Problem


def check(arguments: argparse.Namespace) -> int:
    """Report on all documents, and decide when all were looked at."""
    cache = inputs.cache(wanted=not arguments.no_cache)
    found = collection.examine(inputs.read(arguments.files).files, cache)
    if arguments.format == "json":
        report = {
            "valid": found.valid,
            "policies": [{"name": policy.name, "kind": policy.kind, "file": policy.file} for policy in found.policies],
            "problems": [
                {name: getattr(problem, name) for name in problem.__dataclass_fields__} for problem in found.problems
            ],
        }
        inputs.write(json.dumps(report, indent=2))
        return 0 if found.valid else 1
    for problem in found.problems:
        inputs.write(_annotation(problem) if arguments.format == "github" else str(problem))
    if arguments.format == "text":
        warnings = sum(problem.warning for problem in found.problems)
        counts = [
            _counted(len(found.policies), "valid policy", "valid policies"),
            _counted(len(found.problems) - warnings, "problem", "problems"),
            *([_counted(warnings, "warning", "warnings")] if warnings else []),
        ]
        inputs.write(", ".join(counts))
    return 0 if found.valid else 1


def _counted(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _annotation(problem: Problem) -> str:
    """Give a workflow command for an annotation in a code review on GitHub."""

    def escape(text: str, *, of_property: bool) -> str:
        text = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
        return text.replace(":", "%3A").replace(",", "%2C") if of_property else text

    properties = {"file": problem.file, "title": problem.field or "policy"}
    if problem.line:
        properties |= {"line": str(problem.line), "col": str(problem.column)}
    written = ",".join(f"{name}={escape(value, of_property=True)}" for name, value in properties.items())
    level = "warning" if problem.warning else "error"
    return f"::{level} {written}::{escape(problem.describe(), of_property=False)}"


def schema(arguments: argparse.Namespace) -> int:  # noqa: ARG001 - every command is called in one way
    """Print the JSON Schema."""
    from hauberk.policy.schema import policy_schema_text  # noqa: PLC0415 - makes all models

    inputs.write(policy_schema_text().rstrip("\n"))
    return 0
