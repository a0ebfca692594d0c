# SPDX-License-Identifier: Apache-2.0
"""Policies become rules: inheritance, origins, and which rules a workload gets."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given

from guest_agent.workloads.interchange import rule_from_json, rule_to_json
from hauberk.policy import models, normalise
from hauberk.policy.coverage import ENFORCED_SECTIONS
from hauberk.policy.documents import field_name
from hauberk.policy.rules import (
    GRANTING_SECTIONS,
    POSTURES,
    Action,
    DeviceMatch,
    ObjectKind,
    PeerMatch,
    Section,
    SyscallMatch,
    Verdict,
)
from hauberk.policy.selectors import Scope, Selector, WorkloadIdentity, name_list
from tests.unit.policy.documents_of_each_kind import CLUSTER, CONTAINER, HOST, NETWORK, QUOTA
from tests.unit.policy.test_models import VALID
from tests.unit.policy.test_models_mutations import DOCUMENTS
from tests.unit.policy.yaml_with_lines import Written

if TYPE_CHECKING:
    from hauberk.policy.models import Policy
    from hauberk.policy.rules import Rule


def load(text: str) -> tuple[Policy, ...]:
    return models.load([("p.yaml", text.encode())])


def test_the_normal_form_of_a_policy_with_every_field() -> None:
    (policy,) = load(VALID)
    rules = normalise.rules(policy)
    assert [(rule.section, rule.kind, rule.value) for rule in rules] == [
        (Section.PROCESS, ObjectKind.PATH, "/bin/sh"),
        (Section.PROCESS, ObjectKind.EXECNAME, "bash"),
        (Section.PROCESS, ObjectKind.DIRECTORY, "/tmp/"),
        (Section.PROCESS, ObjectKind.PATTERN, "/home/*/bin/**"),
        (Section.FILE, ObjectKind.PATH, "/etc/shadow"),
        (Section.FILE, ObjectKind.DIRECTORY, "/"),
        (Section.FILE, ObjectKind.PATTERN, "/**/*.key"),
    ]
    assert [rule.origin.line for rule in rules] == [27, 35, 37, 40, 43, 46, 50]
    assert [rule.origin.column for rule in rules] == [9] * 7
    assert {rule.origin.file for rule in rules} == {"p.yaml"}
    assert {rule.origin.policy for rule in rules} == {"prod/everything"}
    assert rules[1].origin.field == "spec.process.matchPaths[1]"
    assert rules[6].origin.field == "spec.file.matchPatterns[0]"
    assert [rule.sources for rule in rules] == [("/usr/bin/nginx",), (), (), (), (), ("/bin/cat",), ()]
    assert [rule.recursive for rule in rules] == [False, False, True, False, False, False, False]
    assert [rule.read_only for rule in rules] == [False, False, False, False, True, False, True]
    assert [rule.owner_only for rule in rules] == [True, False, False, False, False, False, True]


def test_inheritance_rule_then_section_then_spec() -> None:
    (policy,) = load(VALID)
    rules = normalise.rules(policy)
    own, section, spec = rules[0], rules[1], rules[4]
    assert (own.action, own.severity, own.tags, own.message) == (Action.ALLOW, 10, ("z",), "rule")
    assert (section.action, section.severity, section.tags, section.message) == (Action.BLOCK, 6, ("x", "y"), "spec")
    assert (spec.action, spec.severity, spec.tags, spec.message) == (Action.AUDIT, 5, ("x", "y"), "spec")


SHORT = """\
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata: {name: NAME}
spec:
  selector: {matchLabels: {app: web}}
  file: {matchPaths: [{path: /x, fromSource: [{path: /a}, {path: /a}]}]}
"""


def test_an_action_nobody_gives_is_block_and_sources_are_listed_once() -> None:
    (policy,) = load(SHORT)
    (rule,) = normalise.rules(policy)
    assert (rule.action, rule.severity, rule.tags, rule.message) == (Action.BLOCK, 0, (), "")
    assert rule.sources == ("/a",)
    assert rule.origin.policy == "NAME"


def test_a_path_with_wildcards_is_the_pattern_that_it_is() -> None:
    (policy,) = load(SHORT.replace("path: /x,", "path: /home/*/x,"))
    (rule,) = normalise.rules(policy)
    assert (rule.kind, rule.value, rule.sources) == (ObjectKind.PATTERN, "/home/*/x", ("/a",))


def test_an_empty_tag_list_overrides_an_inherited_one() -> None:
    (policy,) = load(SHORT.replace("spec:\n", "spec:\n  tags: [a]\n").replace("path: /x,", "path: /x, tags: [],"))
    assert normalise.rules(policy)[0].tags == ()


def test_the_selector() -> None:
    (policy,) = load(VALID)
    assert normalise.selector(policy.model) == Selector((("app", "web"),), (), ("tier=test",), "[a, b]")


def test_a_workload_gets_the_rules_of_the_policies_that_cover_it() -> None:
    policies = load(SHORT + "---\n" + SHORT.replace("NAME", "OTHER").replace("app: web", "app: api"))
    found = normalise.rule_set(policies, WorkloadIdentity(labels={"app": "web"}), Verdict.AUDIT)
    assert found is not None
    assert {rule.origin.policy for rule in found.rules} == {"NAME", "(implied)"}
    assert found.posture is Verdict.AUDIT


def test_an_uncovered_workload_gets_none_instead_of_an_empty_rule_set() -> None:
    assert normalise.rule_set(load(SHORT), WorkloadIdentity(labels={"app": "api"})) is None


def test_implied_rules_are_added_to_those_of_all_policies_together() -> None:
    granting = SHORT.replace("path: /x,", "path: /x, action: Allow,")
    found = normalise.build(load(granting + "---\n" + SHORT.replace("NAME", "OTHER")))
    assert found.posture is Verdict.DENY
    assert found.privileged_sources() == {"/a"}
    assert any(rule.implied and rule.value == "/a" and rule.read_only for rule in found.rules)


@pytest.mark.parametrize(
    ("word", "verdict"), [("block", Verdict.DENY), ("audit", Verdict.AUDIT), ("allow", Verdict.ALLOW)]
)
def test_the_words_for_a_posture(word: str, verdict: Verdict) -> None:
    assert POSTURES[word] is verdict


def normal(text: str) -> tuple[Rule, ...]:
    (policy,) = load(text)
    return normalise.rules(policy)


def by_section(text: str) -> dict[Section, list[Rule]]:
    found: dict[Section, list[Rule]] = {}
    for rule in normal(text):
        found.setdefault(rule.section, []).append(rule)
    return found


def test_a_container_policy_has_rules_in_every_section_of_its_kind() -> None:
    found = by_section(CONTAINER)
    assert list(found) == [
        Section.PROCESS, Section.FILE, Section.NETWORK, Section.DNS, Section.CAPABILITIES, Section.SYSCALLS,
        Section.PRESETS, Section.APPARMOR,
    ]  # fmt: skip
    values = {section: [(rule.kind, rule.value, rule.action) for rule in rules] for section, rules in found.items()}
    protocol, domain = ObjectKind.PROTOCOL, ObjectKind.DOMAIN
    assert values[Section.NETWORK] == [
        (protocol, "tcp", Action.ALLOW), (protocol, "udp", Action.AUDIT), (protocol, "icmp", Action.AUDIT),
    ]  # fmt: skip
    assert values[Section.DNS] == [
        (domain, "example.com", Action.AUDIT), (domain, "a.example", Action.AUDIT),
        (domain, "_b.example", Action.AUDIT),
    ]  # fmt: skip
    assert [(value, action) for _, value, action in values[Section.CAPABILITIES]] == [
        ("net_raw", Action.AUDIT), ("sys_admin", Action.AUDIT), ("bpf", Action.AUDIT),
    ]  # fmt: skip
    assert values[Section.PRESETS] == [
        (ObjectKind.PRESET, "filelessExec", Action.BLOCK), (ObjectKind.PRESET, "protectEnv", Action.AUDIT),
    ]  # fmt: skip
    assert values[Section.APPARMOR] == [(ObjectKind.PROFILE, "deny /etc/ssl/** w,\n", Action.AUDIT)]


def test_words_of_one_list_share_their_place() -> None:
    first, second = by_section(CONTAINER)[Section.NETWORK][1:]
    assert first.origin == second.origin
    assert first.origin.field == "spec.network.matchProtocols[1]"


def test_names_and_sockets_are_written_in_one_section_and_inherit_from_it() -> None:
    found = by_section(CONTAINER)
    assert {rule.severity for section in (Section.NETWORK, Section.DNS) for rule in found[section]} == {4}
    assert found[Section.DNS][1].origin.field == "spec.network.matchDNSQueries[1]"
    assert found[Section.NETWORK][0].sources == ("/usr/bin/curl",)


def test_conditions_of_rules_about_programs() -> None:
    shell, bash, directory, _ = by_section(CONTAINER)[Section.PROCESS]
    assert (shell.allowed_arguments, shell.terminal) == (("-c", "true"), False)
    assert (bash.allowed_arguments, bash.terminal) == ((), None)
    assert directory.terminal is None  # pts: true asks for nothing
    assert by_section(CONTAINER)[Section.NETWORK][0].terminal is None
    held = CONTAINER.replace("pts: true\n        fromSource: [{path: /usr/bin/curl}]", "pts: false")
    assert by_section(held)[Section.NETWORK][0].terminal is False


def test_calls_are_audited_whatever_the_policy_says() -> None:
    rules = by_section(CONTAINER.replace("  action: Audit\n", "  action: Block\n"))[Section.SYSCALLS]
    assert {rule.action for rule in rules} == {Action.AUDIT}
    assert [rule.value for rule in rules] == ["unlink, unlinkat", "openat2 on /etc/", "chmod on /etc/passwd"]
    assert [rule.match for rule in rules] == [
        SyscallMatch(("unlink", "unlinkat"), source_directories=(("/opt/", True),)),
        SyscallMatch(("openat2",), "/etc/", recursive=True),
        SyscallMatch(("chmod",), "/etc/passwd", source_directories=(("/usr/bin/", False),)),
    ]
    assert [rule.sources for rule in rules] == [("/bin/rm",), (), ()]
    assert {(rule.severity, rule.tags, rule.message) for rule in rules} == {(2, ("calls",), "calls")}


@pytest.mark.parametrize(
    ("written", "action"),
    [("Audit", Action.AUDIT), ("Block", Action.BLOCK), ("Allow", Action.BLOCK)],
)
def test_presets_are_audited_or_blocked(written: str, action: Action) -> None:
    text = CONTAINER.replace(
        "    - name: filelessExec\n      action: Block", f"    - name: exec\n      action: {written}"
    )
    assert by_section(text)[Section.PRESETS][0].action is action


def test_a_host_policy_has_devices() -> None:
    found = by_section(HOST)
    assert Section.DEVICE in found
    assert Section.PRESETS not in found
    stick, keyboard, hexadecimal, decimal, everything = found[Section.DEVICE]
    assert stick.match == DeviceMatch(8, 6, 80, 1)
    assert stick.value == "MASS-STORAGE subclass 6 protocol 80 level 1"
    assert (stick.action, stick.severity, stick.tags, stick.message) == (Action.BLOCK, 8, ("stick",), "stick")
    assert (keyboard.match, keyboard.value, keyboard.action) == (DeviceMatch(3), "HID", Action.AUDIT)
    assert hexadecimal.match == decimal.match == DeviceMatch(14)
    assert (everything.match, everything.value) == (DeviceMatch(), "ALL")
    assert stick.origin.field == "spec.device.matchDevice[0]"
    assert by_section(HOST.replace('"14"', '"93"'))[Section.DEVICE][3].value == "class 93"


def test_a_network_policy_has_packets_in_two_directions() -> None:
    found = by_section(NETWORK)
    (ingress,), (dns, quota) = found[Section.INGRESS], found[Section.EGRESS]
    assert ingress.match == PeerMatch(
        ("10.0.0.0/8", "fd00::/8"),
        ("eth0", "wg*"),
        ((443, 443, "tcp"), (22, 22, "tcp"), (8000, 8080, "sctp")),
    )
    assert ingress.value == "10.0.0.0/8, fd00::/8 tcp/443, tcp/22, sctp/8000-8080 on eth0, wg*"
    assert (ingress.action, ingress.severity, ingress.tags, ingress.message) == (Action.BLOCK, 2, ("in",), "in")
    assert ingress.origin.field == "spec.ingress[0]"
    assert dns.match == PeerMatch(("192.0.2.7/32",), (), ((53, 53, "udp"),))
    assert (dns.action, dns.severity) == (Action.ALLOW, 3)
    assert quota.match == PeerMatch(quota=(500 * 2**20, 5400, "pod"))
    assert quota.value == "any up to 524288000 bytes in 5400 s for each pod"


def test_a_quota_without_unit_is_in_gigabytes_and_its_level_in_lower_case() -> None:
    found = by_section(QUOTA)
    assert found[Section.INGRESS][0].quota == (5 * 2**30, 86400, "policy")


def test_bits_behind_a_prefix_do_not_count() -> None:
    (ingress,) = by_section(NETWORK.replace("10.0.0.0/8", "10.1.2.3/8"))[Section.INGRESS]
    assert isinstance(ingress.match, PeerMatch)
    assert ingress.match.cidrs[0] == "10.0.0.0/8"


@pytest.mark.parametrize("text", [CONTAINER, HOST, CLUSTER, NETWORK, QUOTA])
def test_every_rule_knows_its_place(text: str) -> None:
    lines = text.splitlines()
    for rule in normal(text):
        assert rule.origin.file == "p.yaml"
        first = lines[rule.origin.line - 1][rule.origin.column - 1 :]
        assert first, rule
        list_name = rule.origin.field.split(".")[-1].split("[")[0]
        assert f"{list_name}:" in "\n".join(lines[: rule.origin.line])


@pytest.mark.parametrize("text", [CONTAINER, HOST, CLUSTER, NETWORK, QUOTA])
def test_the_normal_form_survives_the_way_to_the_agent(text: str) -> None:
    for rule in normal(text):
        assert rule_from_json(json.loads(json.dumps(rule_to_json(rule)))) == rule


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (CLUSTER, Selector(within=("app=web",), cluster=True, excluded_namespaces=("kube-system", "monitoring"))),
        (
            HOST,
            Selector(
                (("kubernetes.io/os", "linux"),),
                scope=Scope.HOST,
                host_names=(("kubearmor.io/hostname", "node-1,node-2"),),
                host_expressions=(("kubearmor.io/hostname", "node-*"),),
            ),
        ),
        (NETWORK, Selector(scope=Scope.HOST, host_names=(("kubearmor.io/hostname", "*"),))),
        (QUOTA, Selector((("app", "web"),), ("tier=front",), cluster=True)),
    ],
)
def test_selectors_of_every_kind(text: str, expected: Selector) -> None:
    (policy,) = load(text)
    assert normalise.selector(policy.model) == expected


def test_rules_of_all_sections_are_joined_under_their_postures() -> None:
    (policy,) = load(CONTAINER)
    found = normalise.build([policy], Verdict.DENY, ((Section.FILE, Verdict.AUDIT), (Section.NETWORK, Verdict.ALLOW)))
    assert found.posture_of(Section.NETWORK) is Verdict.ALLOW
    assert found.posture_of(Section.PROCESS) is Verdict.AUDIT
    # curl alone may open sockets, but no engine refuses them to others yet: its identity is not worth stealing
    assert found.privileged_sources() == {"/usr/bin/nginx"}
    assert not any(rule.implied and rule.value == "/usr/bin/curl" for rule in found.rules)


def test_rights_that_imply_rules_are_those_that_an_engine_holds() -> None:
    assert GRANTING_SECTIONS == ENFORCED_SECTIONS


def places_of_rules(document: dict[str, Any]) -> set[str]:
    """Give the fields at which a document has rules, by its own structure alone."""
    root = "spec" if "spec" in document else "specs[0]"
    spec = document["spec"] if "spec" in document else document["specs"][0]
    names = ("presets", "ingress", "ingressDeny", "egress", "egressDeny")
    lists = [(name, items) for name in names for items in [spec.get(name)] if items]
    sections = ("process", "file", "network", "capabilities", "syscalls", "device")
    for section in sections:
        lists += [
            (f"{section}.{name}", items)
            for name, items in (spec.get(section) or {}).items()
            if name.startswith("match")
        ]
    found = {f"{root}.{name}[{index}]" for name, items in lists for index in range(len(items))}
    return found | ({"spec.apparmor"} if "apparmor" in spec else set())


@given(DOCUMENTS)
def test_no_rule_is_left_out_or_changed_on_its_way(document: dict[str, Any]) -> None:
    written = Written(document)
    (policy,) = load(written.text)
    rules = normalise.rules(policy)
    assert {rule.origin.field for rule in rules} == places_of_rules(document)
    lines = {field_name(path): line for path, line in written.lines.items()}
    for rule in rules:
        assert rule_from_json(json.loads(json.dumps(rule_to_json(rule)))) == rule
        assert rule.origin.line in [line for field, line in lines.items() if field.startswith(rule.origin.field)]


@given(DOCUMENTS)
def test_a_selector_selects_somebody(document: dict[str, Any]) -> None:
    (policy,) = load(Written(document).text)
    selector = normalise.selector(policy.model)
    pairs = [pair.partition("=") for pair in selector.within[:1]]
    asked = [one for one in selector.requirements if one.operator in ("In", "Exists")]
    labels = dict(selector.labels) | {key: value for key, _, value in pairs}
    labels |= {one.key: (one.values or ("x",))[0] for one in asked}
    names = [names.split(",")[0].strip() for _, names in selector.host_names]
    written_name = selector.container_name or "x"
    chosen = [
        WorkloadIdentity(
            namespace=(selector.namespaces or (policy.model.metadata.namespace if asked else "",))[0],
            labels=labels,
            container_name=container_name,
            host=selector.scope is Scope.HOST,
            host_name=next((name for name in names if name != "*"), "node-1"),
        )
        for container_name in (written_name.replace(".*", "y"), *(name_list(written_name) or ()))
    ]
    own = policy.model.metadata.namespace
    assert any(selector.matches(own, workload) for workload in chosen)
    assert not any(selector.matches(own, replace(workload, host=not workload.host)) for workload in chosen)
