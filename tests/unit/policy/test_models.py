# SPDX-License-Identifier: Apache-2.0
"""Policies: what is accepted, and that every mistake is told at its place with what to do."""

from __future__ import annotations

import pytest

from hauberk.errors import PolicyError, Problem
from hauberk.policy import models

VALID = """\
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata:
  name: everything
  namespace: prod
  labels: {team: a}
  annotations: {note: b}
  uid: 0b1f
  generation: 3
spec:
  selector:
    matchLabels:
      app: web
      kubearmor.io/container.name: "[a, b]"
    matchExpressions:
      - key: label
        operator: NotIn
        values: [tier=test]
  severity: 5
  tags: [x, y]
  message: spec
  action: Audit
  process:
    severity: 6
    action: Block
    matchPaths:
      - path: /bin/sh
        ownerOnly: true
        fromSource:
          - path: /usr/bin/nginx
        severity: 10
        tags: [z]
        message: rule
        action: Allow
      - execname: bash
    matchDirectories:
      - dir: /tmp/
        recursive: true
    matchPatterns:
      - pattern: /home/*/bin/**
  file:
    matchPaths:
      - path: /etc/shadow
        readOnly: true
    matchDirectories:
      - dir: /
        readOnly: false
        fromSource: [{path: /bin/cat}]
    matchPatterns:
      - pattern: /**/*.key
        readOnly: true
        ownerOnly: true
status: {policyStatus: OK}
"""


def examine(text: str) -> tuple[list[models.Policy], list[Problem]]:
    return models.examine([("p.yaml", text.encode())])


def problems_of(text: str) -> list[Problem]:
    policies, problems = examine(text)
    assert policies == []
    return problems


def test_a_policy_with_every_field_is_accepted() -> None:
    policies, problems = examine(VALID)
    assert problems == []
    assert [policy.name for policy in policies] == ["prod/everything"]


def test_several_documents_are_accepted() -> None:
    policies, problems = examine(VALID + "---\n" + VALID.replace("name: everything", "name: other"))
    assert problems == []
    assert [policy.name for policy in policies] == ["prod/everything", "prod/other"]


FILE_SECTION = VALID[VALID.index("  file:") : VALID.index("status:")]

# (text in VALID, what replaces it, field, line, parts of the message)
MUTATIONS = [
    ("security.kubearmor.com/v1", "security.kubearmor.com/v2", "apiVersion", 1, ["expected security.kubearmor.com/v1"]),
    ("KubeArmorPolicy", "KubearmorPolicy", "kind", 2, ["Did you mean 'KubeArmorPolicy'?"]),
    ("KubeArmorPolicy", "Deployment", "kind", 2, ["expected KubeArmorPolicy or KubeArmorHostPolicy or", "Keep what"]),
    ("KubeArmorPolicy", "[KubeArmorPolicy]", "kind", 2, ["found a list"]),
    ("kind: KubeArmorPolicy", "kin: KubeArmorPolicy", "kind", 1, ["found no such field"]),
    ("name: everything", "name: '-x-'", "metadata.name", 4, ['found "-x-"']),
    ("name: everything", "name: ../../etc", "metadata.name", 4, ["letters, digits"]),
    ("name: everything", "nam: everything", "metadata.name", 4, ["expected the field 'name'"]),
    ("{team: a}", "{team: 1}", "metadata.labels.team", 6, ["found 1, expected text", "quotes"]),
    ("uid: 0b1f", "uuid: 0b1f", "metadata.uuid", 8, ["unknown field 'uuid'"]),
    ("spec:", "sepc:", "sepc", 10, ["Did you mean 'spec'?"]),
    ("app: web", "app: true", "spec.selector.matchLabels.app", 13, ["found true, expected text"]),
    ('"[a, b]"', '"^$"', "spec.selector.matchLabels.kubearmor.io/container.name", 14, ["'.*' for every container"]),
    ('"[a, b]"', '"(a"', "spec.selector.matchLabels.kubearmor.io/container.name", 14, ["'(' without ')'"]),
    ("key: label", "key: labels", "spec.selector.matchExpressions[0].key", 16, ["Did you mean 'label'?"]),
    ("operator: NotIn", "operator: Exists", "spec.selector.matchExpressions[0].operator", 17, ["In or NotIn"]),
    ("[tier=test]", "[tier]", "spec.selector.matchExpressions[0].values[0]", 18, ["key=value"]),
    ("[tier=test]", "[]", "spec.selector.matchExpressions[0].values", 18, ["at least one element"]),
    ("severity: 5", "severity: 0", "spec.severity", 19, ["found 0, expected a whole number from 1 to 10"]),
    ("severity: 5", "severity: 11", "spec.severity", 19, ["from 1 to 10"]),
    ("severity: 5", "severity: '5'", "spec.severity", 19, ['found "5", expected a whole number']),
    ("severity: 5", "severity: true", "spec.severity", 19, ["found true"]),
    ("severity: 5", "severity: 5.5", "spec.severity", 19, ["found 5.5"]),
    ("severity: 5", "severity:", "spec.severity", 19, ["found null", "remove the field"]),
    ("severity: 5", "severty: 5", "spec.severty", 19, ["Did you mean 'severity'?"]),
    ("tags: [x, y]", "tags: x", "spec.tags", 20, ['found "x", expected a list']),
    ("tags: [x, y]", "tags: [x, 1]", "spec.tags[1]", 20, ["found 1, expected text"]),
    ("message: spec", "message: [spec]", "spec.message", 21, ["found a list, expected text"]),
    ("action: Audit", "action: audit", "spec.action", 22, ["Allow or Audit or Block", "Did you mean 'Audit'?"]),
    ("action: Audit", "action: Deny", "spec.action", 22, ['found "Deny"', "Write Allow or Audit or Block"]),
    ("action: Audit", "action: Blok", "spec.action", 22, ["Did you mean 'Block'?"]),
    ("action: Audit", "action: 1", "spec.action", 22, ["found 1"]),
    ("  process:", "  proces:", "spec.proces", 23, ["Did you mean 'process'?"]),
    ("    matchPaths:\n      - path: /bin/sh", "    matchPath:\n      - path: /bin/sh", "spec.process.matchPath", 26,
     ["Did you mean 'matchPaths'?"]),
    ("path: /bin/sh", "path: bin/sh", "spec.process.matchPaths[0].path", 27,
     ['Write it from the root, such as "/bin/sh"']),
    ("path: /bin/sh", "path: /bin/sh/", "spec.process.matchPaths[0].path", 27, ["without a '/' at its end"]),
    ("path: /bin/sh", "path: /", "spec.process.matchPaths[0].path", 27, ["matchDirectories"]),
    ("path: /bin/sh", "path: /bin//sh", "spec.process.matchPaths[0].path", 27, ["empty components"]),
    ("path: /bin/sh", "path: /bin/../sh", "spec.process.matchPaths[0].path", 27, ["'..'"]),
    ("path: /bin/sh", "path: /bin/./sh", "spec.process.matchPaths[0].path", 27, ["'.'"]),
    ("path: /bin/sh", "path: /bin/[*", "spec.process.matchPaths[0].path", 27, ["'[' without ']'"]),
    ("path: /usr/bin/nginx", "path: /usr/bin/*", "spec.process.matchPaths[0].fromSource[0].path", 30, ["wildcards"]),
    ("dir: /tmp/", "dir: /tmp/*/", "spec.process.matchDirectories[0].dir", 37, ["wildcards"]),
    ("path: /bin/sh", 'path: "/bin/\\0sh"', "spec.process.matchPaths[0].path", 27, ["NUL"]),
    ("path: /bin/sh", "path: /proc/self/exe", "spec.process.matchPaths[0].path", 27, ["/proc/*/environ"]),
    ("path: /bin/sh", "path: /" + "a" * 4095, "spec.process.matchPaths[0].path", 27, ["at most 4095 bytes"]),
    ("path: /bin/sh", "path: 1", "spec.process.matchPaths[0].path", 27, ["found 1, expected text"]),
    ("path: /bin/sh\n        ownerOnly: true", "ownerOnly: true", "spec.process.matchPaths[0]", 27,
     ["neither path nor execname"]),
    ("path: /bin/sh", "readOnly: true\n        path: /bin/sh", "spec.process.matchPaths[0].readOnly", 27,
     ["Only rules of the file section"]),
    ("ownerOnly: true\n        fromSource", "ownerOnly: yes\n        fromSource",
     "spec.process.matchPaths[0].ownerOnly",
     28, ['found "yes", expected true or false']),
    ("- path: /usr/bin/nginx", "- path: nginx", "spec.process.matchPaths[0].fromSource[0].path", 30, ["absolute path"]),
    ("- path: /usr/bin/nginx", "- dir: /usr/bin/", "spec.process.matchPaths[0].fromSource[0].path", 30,
     ["expected the field 'path'"]),
    ("- path: /usr/bin/nginx", "  path: /usr/bin/nginx", "spec.process.matchPaths[0].fromSource", 30,
     ["found a mapping, expected a list"]),
    ("\n          - path: /usr/bin/nginx", " []", "spec.process.matchPaths[0].fromSource", 29,
     ["at least one element"]),
    ("execname: bash", "execname: bin/bash", "spec.process.matchPaths[1].execname", 35, ["last component"]),
    ("execname: bash", "execname: b*", "spec.process.matchPaths[1].execname", 35, ["without wildcards"]),
    ("execname: bash", "execname: bash\n        path: /bin/bash", "spec.process.matchPaths[1]", 35,
     ["both path and execname"]),
    ("dir: /tmp/", "dir: ''", "spec.process.matchDirectories[0].dir", 37, ["absolute"]),
    ("dir: /tmp/", "dir: tmp/", "spec.process.matchDirectories[0].dir", 37, ["absolute"]),
    ("dir: /tmp/", "dirs: /tmp/", "spec.process.matchDirectories[0].dir", 37, ["expected the field 'dir'"]),
    ("recursive: true", "recursive: 1", "spec.process.matchDirectories[0].recursive", 38, ["true or false"]),
    ("/home/*/bin/**", "/home/[", "spec.process.matchPatterns[0].pattern", 40, ["at character 7", "'[' without ']'"]),
    ("/home/*/bin/**", "home/*", "spec.process.matchPatterns[0].pattern", 40, ["absolute paths"]),
    ("/home/*/bin/**", "/home/../*", "spec.process.matchPatterns[0].pattern", 40, ["'..'"]),
    ("pattern: /home/*/bin/**", "pattern: /home/*\n        fromSource: [{path: /a}]",
     "spec.process.matchPatterns[0].fromSource", 41, ["Patterns cannot be limited to a source"]),
    ("readOnly: true\n    matchDir", "readonly: true\n    matchDir", "spec.file.matchPaths[0].readonly", 44,
     ["Did you mean 'readOnly'?"]),
    ("path: /etc/shadow", "execname: shadow", "spec.file.matchPaths[0].path", 43, ["expected the field 'path'"]),
    (FILE_SECTION, "  file: {}\n", "spec.file", 41, ["a section without rules"]),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "field", "line", "parts"), MUTATIONS)
def test_a_mistake_is_told_at_its_place(old: str, new: str, field: str, line: int, parts: list[str]) -> None:
    assert old in VALID
    problems = problems_of(VALID.replace(old, new, 1))
    matching = [problem for problem in problems if problem.field == field]
    assert len(matching) == 1, problems
    problem = matching[0]
    assert problem.line == line
    assert str(problem).startswith(f"p.yaml:{line}:{problem.column}: {field}: found ")
    for part in parts:
        assert part in str(problem)


def policy(spec: str) -> str:
    return f"apiVersion: security.kubearmor.com/v1\nkind: KubeArmorPolicy\nmetadata: {{name: n}}\nspec:\n{spec}"


@pytest.mark.parametrize(
    ("spec", "field", "words"),
    [
        ("  selector: {matchLabels: {a: b}}\n", "spec", "a policy without rules"),
        ("  selector: {matchLabels: {a: b}}\n  file: {matchPaths: []}\n", "spec.file", "a section without rules"),
        ("  selector: {matchLabels: {a: b}}\n  file:\n", "spec.file", "found null"),
    ],
)
def test_a_policy_that_does_nothing_is_refused(spec: str, field: str, words: str) -> None:
    (problem,) = problems_of(policy(spec))
    assert problem.field == field
    assert words in str(problem)


@pytest.mark.parametrize("text", ["- a\n", "text\n", "spec: {}\n", "{}\n", "5\n"])
def test_what_is_no_policy_at_all_is_refused(text: str) -> None:
    assert problems_of(text)


def test_all_problems_of_all_documents_and_files_are_told_at_once() -> None:
    broken = VALID.replace("severity: 5", "severity: 50").replace("dir: /tmp/", "dir: tmp/")
    with pytest.raises(PolicyError) as caught:
        models.load(
            [("a.yaml", (broken + "---\n" + broken).encode()), ("b.yaml", b"x: [\n"), ("c.yaml", VALID.encode())]
        )
    lines = [(problem.file, problem.line) for problem in caught.value.problems]
    second = VALID.count("\n") + 1
    assert lines[:4] == [("a.yaml", 19), ("a.yaml", 37), ("a.yaml", second + 19), ("a.yaml", second + 37)]
    assert lines[4][0] == "b.yaml"
    assert len(lines) == 5
    assert len(str(caught.value).splitlines()) == 5


def test_two_policies_of_one_name_are_refused() -> None:
    with pytest.raises(
        PolicyError, match=r"b.yaml:4:9: metadata.name: found a second KubeArmorPolicy named 'prod/everything'"
    ):
        models.load([("a.yaml", VALID.encode()), ("b.yaml", VALID.encode())])


def test_names_of_other_namespaces_do_not_clash() -> None:
    other = VALID.replace("namespace: prod", "namespace: test")
    assert len(models.load([("a.yaml", VALID.encode()), ("b.yaml", other.encode())])) == 2


def test_many_sources_are_refused() -> None:
    sources = ", ".join(f"{{path: /s{number}}}" for number in range(257))
    (problem,) = problems_of(
        policy(
            f"  selector: {{matchLabels: {{a: b}}}}\n  file: {{matchPaths: [{{path: /x, fromSource: [{sources}]}}]}}\n"
        )
    )
    assert "found 257 elements, expected at most 256 elements" in str(problem)


def test_many_rules_are_refused() -> None:
    rules = "".join(f"      - path: /f{number}\n" for number in range(20_001))
    (problem,) = problems_of(policy(f"  selector: {{matchLabels: {{a: b}}}}\n  file:\n    matchPaths:\n{rules}"))
    assert "found 20001 rules, expected at most 20000 rules" in str(problem)


def test_long_values_are_shortened_in_messages() -> None:
    (problem,) = problems_of(VALID.replace("path: /bin/sh", "path: " + "x" * 500))
    assert len(str(problem)) < 450
    assert "…" in str(problem)
