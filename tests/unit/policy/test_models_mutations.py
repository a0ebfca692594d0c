# SPDX-License-Identifier: Apache-2.0
"""One mistake in a valid document is told at its line and field, whatever the document, field and mistake."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import yaml
from hypothesis import given
from hypothesis import strategies as st

from hauberk.policy import models
from hauberk.policy.documents import FieldPath, field_name
from hauberk.policy.models.messages import fields_at, model_at
from tests.tools.facts import document_of
from tests.unit.policy.documents_of_each_kind import ALL
from tests.unit.policy.test_published import FACTS
from tests.unit.policy.yaml_with_lines import Written

if TYPE_CHECKING:
    from hauberk.errors import Problem

OF_EACH_KIND: list[dict[str, Any]] = [yaml.safe_load(text) for text in ALL]
PUBLISHED = [document_of(fact, number) for number, fact in enumerate(FACTS) if "odd" not in fact]
DOCUMENTS = st.sampled_from(OF_EACH_KIND) | st.sampled_from(PUBLISHED)

FREE = ("labels", "annotations", "matchLabels")
"""Mappings whose keys the author chooses."""
TOLERATED_NULLS = ("fromSource", "matchExpressions")
TOLERATED_NULLS_OF = {
    "CiliumNetworkPolicy": ("matchLabels",),
    "CiliumClusterwideNetworkPolicy": ("matchLabels",),
    "NetworkPolicy": ("matchLabels", "ingress", "egress"),
}
"""What else may be null, in documents of these kinds."""

WRONG_TYPES = (1.5, -1, {"x": "y"}, [["x"]], None, {"": None})

WRONG_VALUES: dict[str, tuple[object, ...]] = {
    "apiVersion": ("security.kubearmor.com/v2", "v1"),
    "kind": ("KubeArmorPolicys", "Pod"),
    "name": ("", "-x", "a/b"),
    "namespace": ("-x", "a b"),
    "severity": (0, 11, -1, "5"),
    "action": ("block", "Deny", ""),
    "operator": ("in", "Exists"),
    "key": ("labels", "pod"),
    "path": ("", "relative", "./x", "/a/../b", "/a//b"),
    "dir": ("", "relative/", "/a/./b/", "/a*/"),
    "pattern": ("relative*", "/a[", "/{a"),
    "execname": ("", "bin/sh", "a*"),
    "allowedArgs": ([], ["x"] * 21),
    "protocol": ("Tcp", "ip", "", -1, 256),
    "domain": ("*.example.com", "a b", ""),
    "capability": ("CAP_CHOWN", "chonw", ""),
    "syscall": ([], ["opne"], ["open", ""]),
    "class": ("STICK", "0", "0x100", ""),
    "subClass": (-1, 256),
    "level": (0, 7, "pods"),
    "cidr": ("10.0.0.0/33", "fd00::/129", "localhost", "10.0.0.0/8/8", ""),
    "port": ("0", "65536", "htpps", "1-2", ""),
    "endPort": (0, 65536),
    "iface": ([], [""], ["a/b"], ["a*b"]),
    "limit": ("", "5TB", "MB", "-1", "1.5GB"),
    "duration": ("", "5", "0s", "1ms", "1d"),
    "recursive": ("yes", 1),
    "ownerOnly": ("no", 0),
    "readOnly": ("true",),
    "pts": ("false", 1),
    "apparmor": ("", " "),
    "from": ([],),
    "to": ([],),
    "values": ([], [""]),
    "matchPaths": ("x", {"path": "/x"}),
    "ports": ([], ["443"]),
    "metadata": ([], "x"),
    "spec": (None, [], "x"),
}
"""What no field of the name takes, in any of KubeArmor's kinds of documents."""
_COMMON = {name: WRONG_VALUES[name] for name in ("kind", "name", "namespace", "cidr", "endPort", "metadata", "spec")}
WRONG_VALUES_OF: dict[str, dict[str, tuple[object, ...]]] = {
    "cilium.io/v2": _COMMON | {
        "apiVersion": ("cilium.io/v1", "networking.k8s.io/v1"),
        "specs": ([], [None], {}),
        "operator": ("in", "Equals", ""),
        "key": ("", "a b", "fqdn:x", "-x"),
        "values": (["a b"], ["-"], "x", [1]),
        "port": ("", "65536", "htpps", "1-2", 443, "0x10"),
        "protocol": ("tcp", "IP", ""),
        "ports": ([], ["443"], [{}]),
        "toPorts": ([], [{}]),
        "icmps": ([], [{}]),
        "fields": ([], [8]),
        "type": (-1, 256, "256", "Ecko", "", "08"),
        "family": ("IPv5", "ipv4", ""),
        "except": (["11.0.0.0/8"], ["fe80::/64"], ["x"]),
        "fromCIDR": (["10.0.0.0/33"], [{}], "10.0.0.0/8"),
        "toCIDR": (["10.0.0.0/33"], [{}], "10.0.0.0/8"),
        "fromEntities": (["hots"], ["world-ipv5"], "world"),
        "toEntities": (["hots"], "all"),
        "toFQDNs": ([], [{}]),
        "matchName": ("", "*.example.com", "a b", "a..b", "-a.b"),
        "matchPattern": ("", "a b", "x.**.y", ".x", "a..b"),
        "enableDefaultDeny": (True, []),
        "rules": ([], "dns"),
    },
    "networking.k8s.io/v1": _COMMON | {
        "apiVersion": ("networking.k8s.io/v1beta1", "extensions/v1beta1"),
        "operator": ("in", "Equals", ""),
        "key": ("", "a b", "k8s:app", "-x"),
        "values": (["a b"], ["-"], "x", [1]),
        "policyTypes": (["ingress"], "Ingress", ["Ingress", "Egress", "Ingress"]),
        "from": ([{}], ["10.0.0.0/8"], {}),
        "to": ([{}], ["10.0.0.0/8"], {}),
        "port": ("443", "0", 0, 65536, "api-port", "", True),
        "protocol": ("tcp", "ANY", ""),
        "ports": (["443"], [443], {}),
        "except": (["11.0.0.0/8"], ["0.0.0.0/0"], ["x"]),
    },
}  # fmt: skip
"""The same for the other kinds, by ``apiVersion``."""


def wrong_values(document: dict[str, Any]) -> dict[str, tuple[object, ...]]:
    """Give what no field of a name takes in a document."""
    return WRONG_VALUES_OF.get(document["apiVersion"], WRONG_VALUES)


def fields(value: object, path: FieldPath = ()) -> list[FieldPath]:
    """Give the paths of all fields of the language that a document has."""
    found: list[FieldPath] = []
    if isinstance(value, dict):
        for name, item in value.items():
            found.append((*path, name))
            if name not in (*FREE, "status"):
                found += fields(item, (*path, name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            found += fields(item, (*path, index))
    return found


def elements(value: object, path: FieldPath = ()) -> list[FieldPath]:
    """Give the paths of everything that has a type: fields, elements of lists, and values of free mappings."""
    found: list[FieldPath] = []
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        if name != "status":
            found += [(*path, name), *elements(item, (*path, name))]
    return found


def owner_and_name(document: dict[str, Any], path: FieldPath) -> tuple[Any, Any]:
    owner: Any = document
    for part in path[:-1]:
        owner = owner[part]
    return owner, path[-1]


def problems_of(text: str) -> list[Problem]:
    policies, problems = models.examine([("p.yaml", text.encode())])
    assert policies == [], text
    return [problem for problem in problems if not problem.warning]


def line_of_start(written: Written, path: FieldPath) -> int:
    """Give the line where the value of a mapping or document begins: that of its first field, if it has any."""
    return min((line for other, line in written.lines.items() if other[: len(path)] == path and other != path),
               default=written.lines.get(path, 1))  # fmt: skip


@st.composite
def a_document_and(draw: st.DrawFn, *, of: Any = fields) -> tuple[dict[str, Any], FieldPath]:  # noqa: ANN401
    document = copy.deepcopy(draw(DOCUMENTS))
    return document, draw(st.sampled_from(of(document)))


@given(st.data())
def test_a_valid_document_written_in_block_style_is_valid(data: st.DataObject) -> None:
    document = data.draw(DOCUMENTS)
    written = Written(document)
    policies, problems = models.examine([("p.yaml", written.text.encode())])
    assert all(problem.warning for problem in problems)
    (policy,) = policies
    for path, line in written.lines.items():
        assert policy.document.place(path, of_key=True).line == line


@given(a_document_and(), st.integers(0, 20), st.sampled_from(["drop", "double", "swap", "case", "add"]))
def test_a_misspelt_field_is_told(mutated: tuple[dict[str, Any], FieldPath], at: int, how: str) -> None:
    document, path = mutated
    owner, name = owner_and_name(document, path)
    at %= len(name)
    wrong = {
        "drop": name[:at] + name[at + 1 :],
        "double": name[: at + 1] + name[at:],
        "swap": name[: at - 1] + name[at] + name[at - 1] + name[at + 1 :] if at else name,
        "case": name[:at] + name[at].swapcase() + name[at + 1 :],
        "add": name + "x",
    }[how]
    known = fields_at(models.KINDS[document["kind"]], path[:-1])
    if wrong in (*known, "") or path == ("kind",):
        return
    items = [(wrong if key == name else key, item) for key, item in owner.items()]
    owner.clear()
    owner.update(items)
    written = Written(document)
    place = (*path[:-1], wrong)
    (problem,) = [problem for problem in problems_of(written.text) if problem.field == field_name(place)]
    assert problem.line == written.lines[place]
    if how in ("double", "case", "add") and len(name) > 3 and len(known) < 4:
        assert "Did you mean" in problem.advice


@given(a_document_and(of=elements), st.sampled_from(WRONG_TYPES))
def test_a_value_of_another_type_is_told(mutated: tuple[dict[str, Any], FieldPath], value: object) -> None:
    document, path = mutated
    nulls = (*TOLERATED_NULLS, *TOLERATED_NULLS_OF.get(document["kind"], ()))
    if (value is None and path[-1] in nulls) or (value == {"x": "y"} and path[-1] in FREE):
        return
    if document["kind"] == "KubeArmorClusterPolicy" and path == ("spec", "selector") and value is None:
        return
    if type(value) is int and path[-1] in ("subClass", "level", "endPort", "severity", "protocol"):
        return
    owner, name = owner_and_name(document, path)
    owner[name] = value
    written = Written(document)
    told = [
        problem
        for problem in problems_of(written.text)
        if problem.field.startswith(field_name(path)) and problem.line in (written.lines[path], written.lines[path] + 1)
    ]
    assert told, written.text


@given(a_document_and(), st.data())
def test_a_wrong_value_is_told(mutated: tuple[dict[str, Any], FieldPath], data: st.DataObject) -> None:
    document, path = mutated
    owner, name = owner_and_name(document, path)
    wrong = wrong_values(document)
    if name not in wrong or path == ("spec", "labels"):
        return
    value = data.draw(st.sampled_from(wrong[name]))
    if isinstance(value, str) != isinstance(owner[name], str) and name in ("protocol", "level"):
        return  # two fields of one name and different types
    if path[-2:-1] == ("metadata",) and value == "" and name == "namespace":
        return
    owner[name] = value
    written = Written(document)
    told = [problem for problem in problems_of(written.text) if problem.field.startswith(field_name(path))]
    assert told, written.text
    assert {problem.line for problem in told} <= set(range(written.lines[path], written.lines[path] + 22))
    assert min(problem.line for problem in told) - written.lines[path] <= 2


@given(a_document_and())
def test_a_field_written_twice_is_told(mutated: tuple[dict[str, Any], FieldPath]) -> None:
    document, path = mutated
    written = Written(document, twice=path)
    (problem,) = problems_of(written.text)
    assert (problem.field, problem.line) == (field_name(path), written.second)
    assert f"first at line {written.lines[path]}" in problem.found


@given(a_document_and())
def test_a_missing_field_is_told(mutated: tuple[dict[str, Any], FieldPath]) -> None:
    document, path = mutated
    model = model_at(models.KINDS[document["kind"]], path[:-1])
    field = next(field for name, field in model.model_fields.items() if (field.alias or name) == path[-1])
    if not field.is_required():
        return
    owner, name = owner_and_name(document, path)
    del owner[name]
    written = Written(document)
    (problem,) = [problem for problem in problems_of(written.text) if problem.field == field_name(path)]
    assert problem.found == "no such field"
    assert problem.line == line_of_start(written, path[:-1])


@given(a_document_and())
def test_an_unknown_field_is_told(mutated: tuple[dict[str, Any], FieldPath]) -> None:
    document, path = mutated
    owner, _ = owner_and_name(document, path)
    owner["unheardOf"] = "x"
    written = Written(document)
    place = (*path[:-1], "unheardOf")
    (problem,) = problems_of(written.text)
    assert (problem.field, problem.line) == (field_name(place), written.lines[place])
    assert problem.advice == "Remove it"
