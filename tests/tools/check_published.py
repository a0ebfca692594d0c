# SPDX-License-Identifier: Apache-2.0
"""Check all policies in a checkout of KubeArmor's repository, and take down their facts; or those of another language.

    python -m tests.tools.check_published DIRECTORY [--facts FILE] [--api-version cilium.io/v2]

Policies stand in YAML files and in the fenced blocks of Markdown files. Without the checkout, the tests check what
``--facts`` took down before: each distinct policy as its kind, selector, rules and the fields that are told of it.
Names, messages, tags and comments are not taken down: they are their authors' and say nothing to a machine.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import textwrap
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hauberk.policy import documents, models
from tests.tools.facts import facts_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hauberk.errors import Problem

_FENCE = re.compile(r"^([ \t>]*)(```|~~~)[^\n]*\n(.*?)^\1\2", re.MULTILINE | re.DOTALL)


def main(arguments: list[str]) -> int:
    """Report on standard output. Exit code 1 if a policy in a YAML file is refused."""
    parser = argparse.ArgumentParser(description="Check the policies of a checkout.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--facts", type=Path, help="file to write the facts to")
    known = tuple(dict.fromkeys(models.API_VERSIONS.values()))
    parser.add_argument("--api-version", choices=known, default=models.API_VERSION, help="whose policies")
    options = parser.parse_args(arguments)
    facts: Counter[str] = Counter()
    refused = 0
    version: str = options.api_version
    for name, sources in (
        ("YAML", _yaml(options.directory, version.encode())),
        ("Markdown", _markdown(options.directory, version.encode())),
    ):
        counts: Counter[str] = Counter()
        for file, data in sources:
            for document, told in _policies(file, data, version, counts):
                outcome = "refused" if any(not problem.warning for problem in told) else "valid"
                counts[outcome] += 1
                counts["with warnings"] += outcome == "valid" and bool(told)
                refused += outcome == "refused" and name == "YAML"
                sys.stdout.writelines(f"{problem}\n" for problem in told)
                if version == models.API_VERSION and (outcome == "valid" or name == "YAML"):
                    facts[json.dumps(facts_of(document, told), sort_keys=True)] += 1
        sys.stdout.write(f"{name}: {', '.join(f'{number} {what}' for what, number in sorted(counts.items()))}\n")
    if options.facts:
        options.facts.write_text("".join(f"{line}\n" for line in sorted(facts)), encoding="utf-8")
        sys.stdout.write(f"{len(facts)} distinct policies written to {options.facts}\n")
    return 1 if refused else 0


def _policies(
    file: str, data: bytes, version: str, counts: Counter[str]
) -> Iterator[tuple[dict[str, Any], list[Problem]]]:
    """Give each policy document of a file with what is told of it alone."""
    broken: list[Problem] = []
    found = documents.read(data, file, broken)
    counts["unreadable blocks"] += bool(broken)
    for document in found:
        value = document.value
        if isinstance(value, dict) and models.API_VERSIONS.get(str(value.get("kind"))) == version:
            yield value, models.check(document)[1]


def _yaml(directory: Path, group: bytes) -> Iterator[tuple[str, bytes]]:
    for path in sorted(directory.rglob("*.y*ml")):
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            if group in data and b"CustomResourceDefinition" not in data:
                yield str(path), data


def _markdown(directory: Path, group: bytes) -> Iterator[tuple[str, bytes]]:
    for path in sorted(directory.rglob("*.md")):
        if path.is_file() and not path.is_symlink():
            text = path.read_text(encoding="utf-8", errors="replace")
            for block in _FENCE.finditer(text):
                data = textwrap.dedent(block[3]).encode()
                if group in data:
                    yield f"{path} (block at line {text.count(chr(10), 0, block.start(3)) + 1})", data


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
