# SPDX-License-Identifier: Apache-2.0
"""KubeArmor's kinds of policies: every field is accepted, every mistake told at its line."""

from __future__ import annotations

import gc

import pytest

from hauberk.errors import PolicyError, Problem
from hauberk.policy import models
from hauberk.policy.models import loading, messages
from tests.unit.policy.documents_of_each_kind import CLUSTER, CONTAINER, HOST, NETWORK, OF_KUBEARMOR, QUOTA


def examine(text: str) -> tuple[list[models.Policy], list[Problem]]:
    return models.examine([("p.yaml", text.encode())])


@pytest.mark.parametrize("text", OF_KUBEARMOR, ids=["container", "host", "cluster", "network", "quota"])
def test_every_field_is_accepted(text: str) -> None:
    policies, problems = examine(text)
    assert problems == []
    (policy,) = policies
    assert f"kind: {policy.kind}\n" in text


def test_policies_of_different_kinds_may_share_a_name() -> None:
    texts = [text.replace("  namespace: prod\n", "") for text in OF_KUBEARMOR]
    same = "---\n".join(
        line for text in texts for line in [text.replace(text.split("name: ")[1].split("\n")[0], "n", 1)]
    )
    policies, problems = examine(same)
    named = [number for number, line in enumerate(same.splitlines(), 1) if line == "  name: n"]
    first = named[[policy.kind for policy in policies].index("KubeArmorNetworkPolicy")]
    assert [problem.found for problem in problems] == [
        f"a second KubeArmorNetworkPolicy named 'n' (first at p.yaml:{first})"
    ]
    assert {policy.name for policy in policies} == {"n"}


def test_values_keep_the_documents_spelling() -> None:
    policies = models.load([("p.yaml", "---\n".join(OF_KUBEARMOR).encode())])
    container, host, cluster, network, quota = (policy.model for policy in policies)
    assert isinstance(container, models.KubeArmorPolicy)
    assert container.spec.network is not None
    assert [rule.protocol for rule in container.spec.network.matchProtocols] == ["tcp", "UDP, icmp"]
    assert container.spec.process is not None
    assert container.spec.process.matchPaths[0].allowedArgs == ["-c", "true"]
    assert [rule.pts for rule in container.spec.process.matchPaths] == [False, None]
    assert isinstance(host, models.KubeArmorHostPolicy)
    assert host.spec.device is not None
    assert [rule.class_ for rule in host.spec.device.matchDevice] == ["MASS-STORAGE", "hid", "0x0e", "14", "ALL"]
    assert isinstance(cluster, models.KubeArmorClusterPolicy)
    assert [expression.key for expression in cluster.spec.selector.matchExpressions] == ["namespace", "label"]
    assert isinstance(network, models.KubeArmorNetworkPolicy)
    assert [peer.ipBlock.cidr for peer in network.spec.ingress[0].from_] == ["10.0.0.0/8", "fd00::/8"]
    assert network.spec.ingress[0].ports[1].protocol == "tcp"
    assert isinstance(quota, models.KubeArmorNetworkPolicy)
    assert quota.spec.egress[0].to == []


# (document, text in it, what replaces it, field, part of the line, parts of the message)
MUTATIONS = [
    (CONTAINER, "/home/*/bin/**", "/home/*/bin/", "spec.process.matchPatterns[0].pattern", ["no '/' at their end"]),
    (CONTAINER, "protocol: tcp", "protocol: tpc", "spec.network.matchProtocols[0].protocol", ["Did you mean 'tcp'?"]),
    (CONTAINER, "protocol: tcp", "protocol: Tcp", "spec.network.matchProtocols[0].protocol", ["Did you mean 'tcp'?"]),
    (CONTAINER, "protocol: tcp", "protocol: tcp,", "spec.network.matchProtocols[0].protocol", ['found ""']),
    (CONTAINER, "UDP, icmp", "tcp," * 256 + "udp", "spec.network.matchProtocols[1].protocol", ["at most 256"]),
    (CONTAINER, "UDP, icmp", "UDP, ICPM", "spec.network.matchProtocols[1].protocol", ['found "ICPM"', "'icmp'?"]),
    (CONTAINER, "domain: example.com", "domain: '*.example.com'", "spec.network.matchDNSQueries[0].domain",
     ["wildcards"]),
    (CONTAINER, "domain: example.com", "domain: -a.example", "spec.network.matchDNSQueries[0].domain", ["domain name"]),
    (CONTAINER, "domain: example.com", "domain: a..b", "spec.network.matchDNSQueries[0].domain", ["domain name"]),
    (CONTAINER, "domain: example.com", f"domain: {'a.' * 130}b", "spec.network.matchDNSQueries[0].domain", ["domain"]),
    (CONTAINER, "net_raw", "net_rwa", "spec.capabilities.matchCapabilities[0].capability", ["Did you mean 'net_raw'?"]),
    (CONTAINER, "net_raw", "CAP_NET_RAW", "spec.capabilities.matchCapabilities[0].capability", ["lower case"]),
    (CONTAINER, "[unlink, unlinkat]", "[unlink, unlinkta]", "spec.syscalls.matchSyscalls[0].syscall[1]",
     ["Did you mean 'unlinkat'?"]),
    (CONTAINER, "[openat2]", "[qqqqqqq]", "spec.syscalls.matchPaths[0].syscall[0]", ["syscalls(2)"]),
    (CONTAINER, "[unlink, unlinkat]", "unlink", "spec.syscalls.matchSyscalls[0].syscall", ["expected a list"]),
    (CONTAINER, "message: calls", "action: Audit", "spec.syscalls.action", ["audited whatever the action is"]),
    (CONTAINER, "path: /etc/\n", "path: /etc\n", "spec.syscalls.matchPaths[0].path", ["with a '/' at its end"]),
    (CONTAINER, "path: /etc/\n", "path: /etc/*\n", "spec.syscalls.matchPaths[0].path", ["wildcards"]),
    (CONTAINER, "path: /etc/\n", "path: etc/\n", "spec.syscalls.matchPaths[0].path", ["absolute path"]),
    (CONTAINER, "- path: /bin/rm", "- recursive: true", "spec.syscalls.matchSyscalls[0].fromSource[0]",
     ["neither path"]),
    (CONTAINER, "- path: /bin/rm", "- path: /bin/rm\n            dir: /x/",
     "spec.syscalls.matchSyscalls[0].fromSource[0]", ["both path and dir"]),
    (CONTAINER, "- path: /bin/rm", "- path: /bin/rm\n            recursive: true",
     "spec.syscalls.matchSyscalls[0].fromSource[0].recursive", ["recursive with dir alone"]),
    (CONTAINER, "filelessExec", "filelesExec", "spec.presets[0].name", ["Did you mean 'filelessExec'?"]),
    (CONTAINER, "    - name: protectEnv\n", "    - severity: 3\n      name: exec\n", "spec.presets[1].severity",
     ["unknown field"]),
    (CONTAINER, "apparmor: |\n    deny /etc/ssl/** w,", "apparmor: ' '", "spec.apparmor", ["AppArmor"]),
    (CONTAINER, '["-c", "true"]', '["-c", "a\\0"]', "spec.process.matchPaths[0].allowedArgs[1]", ["NUL"]),
    (CONTAINER, '["-c", "true"]', f"[{'a, ' * 21}]", "spec.process.matchPaths[0].allowedArgs", ["at most 20 elements"]),
    (CONTAINER, '["-c", "true"]', "[]", "spec.process.matchPaths[0].allowedArgs", ["at least one element"]),
    (CONTAINER, "pts: false", "pts: no", "spec.process.matchPaths[0].pts", ["true or false"]),
    (CONTAINER, "  apparmor:", "  device: {}\n  apparmor:", "spec.device", ["KubeArmorHostPolicy"]),
    (CONTAINER, "status:", "name: x\nstatus:", "name", ["Indent it below metadata"]),
    (CONTAINER, "status:", "severity: 3\nstatus:", "severity", ["Indent it below spec"]),
    (CONTAINER, "kind: KubeArmorPolicy", "kind: KubeArmorPolicyList", "kind", ["each of its items as a document"]),
    (CONTAINER, "kind: KubeArmorPolicy", "kind: List", "kind", ["each of its items as a document"]),
    (CONTAINER, "ownerOnly: true\n        pts", "<<: {ownerOnly: true}\n        pts", "spec.process.matchPaths[0].<<",
     ["write the fields out"]),
    (CONTAINER, "  selector:", "  nodeSelector:", "spec.nodeSelector", ["select containers, with selector"]),
    (HOST, "  nodeSelector:", "  selector:", "spec.selector", ["select hosts, with nodeSelector"]),
    (HOST, "node-1,node-2", "node-1,,node-2", "spec.nodeSelector.matchLabels.kubearmor.io/hostname", ["commas"]),
    (HOST, "node-*", "node-(", "spec.nodeSelector.matchLabels.kubearmor.io/hostnamereg", ["'(' without ')'"]),
    (HOST, "  device:", "  presets: [{name: exec}]\n  device:", "spec.presets", ["Presets are for containers"]),
    (HOST, "protocol: raw", "pts: true\n        protocol: raw", "spec.network.matchProtocols[0].pts", ["terminals"]),
    (HOST, "MASS-STORAGE", "MASS-STORGE", "spec.device.matchDevice[0].class", ["Did you mean 'MASS-STORAGE'?"]),
    (HOST, '"14"', '"0"', "spec.device.matchDevice[3].class", ["1 to 255"]),
    (HOST, '"14"', '"256"', "spec.device.matchDevice[3].class", ["1 to 255"]),
    (HOST, '"14"', '"-1"', "spec.device.matchDevice[3].class", ["1 to 255"]),
    (HOST, '"14"', '"0xzz"', "spec.device.matchDevice[3].class", ["0x1 to 0xff"]),
    (HOST, '"14"', '"0x"', "spec.device.matchDevice[3].class", ["0x1 to 0xff"]),
    (HOST, '"14"', "14", "spec.device.matchDevice[3].class", ["found 14, expected text", "quotes"]),
    (HOST, "subClass: 6", "subClass: 256", "spec.device.matchDevice[0].subClass", ["a whole number from 0 to 255"]),
    (HOST, "protocol: 80", "protocol: -1", "spec.device.matchDevice[0].protocol", ["a whole number from 0 to 255"]),
    (HOST, "level: 1", "level: 0", "spec.device.matchDevice[0].level", ["a whole number from 1 to 6"]),
    (HOST, "class: ALL", "class_: ALL", "spec.device.matchDevice[4].class_", ["Did you mean 'class'?"]),
    (HOST, "level: 1", "lvl: 1", "spec.device.matchDevice[0].lvl", ["Did you mean 'level'?"]),
    (HOST, "class: ALL", "clas: ALL", "spec.device.matchDevice[4].clas", ["Did you mean 'class'?"]),
    (CLUSTER, "key: namespace", "key: namespaces", "spec.selector.matchExpressions[0].key",
     ["Did you mean 'namespace'?"]),
    (CLUSTER, "[app=web]", "[web]", "spec.selector.matchExpressions[1].values[0]", ["key=value"]),
    (CLUSTER, "[app=web]", '["app = web"]', "spec.selector.matchExpressions[1].values[0]", ["key=value"]),
    (CLUSTER, "[app=web]", "[app==web]", "spec.selector.matchExpressions[1].values[0]", ["key=value"]),
    (CLUSTER, "[app=web]", "[app!=web]", "spec.selector.matchExpressions[1].values[0]", ["key=value"]),
    (CONTAINER, "[tier=test]", '["tier=test "]', "spec.selector.matchExpressions[0].values[0]", ["key=value"]),
    (CONTAINER, "[tier=test]", "[kubearmor.io/container.name=a]", "spec.selector.matchExpressions[0].values[0]",
     ["Write it in matchLabels"]),
    (CONTAINER, '"[a, b]"', '"[a-z]+-[0-9]"', "spec.selector.matchLabels.kubearmor.io/container.name", ["'(?:'"]),
    (CLUSTER, "monitoring]", "'*']", "spec.selector.matchExpressions[0].values[1]", ["name of a namespace"]),
    (CLUSTER, "monitoring]", "a=b]", "spec.selector.matchExpressions[0].values[1]", ["name of a namespace"]),
    (CLUSTER, "    matchExpressions:", "    matchLabels: {a: b}\n    matchExpressions:", "spec.selector.matchLabels",
     ["Cluster policies select with matchExpressions"]),
    (NETWORK, "10.0.0.0/8", "10.0.0.0/33", "spec.ingress[0].from[0].ipBlock.cidr", ["10.0.0.0/8"]),
    (NETWORK, "10.0.0.0/8", "10.0.0.0/255.0.0.0", "spec.ingress[0].from[0].ipBlock.cidr", ["prefix length"]),
    (NETWORK, "10.0.0.0/8", "10.0.0/8", "spec.ingress[0].from[0].ipBlock.cidr", ["network"]),
    (NETWORK, "10.0.0.0/8", "example.com", "spec.ingress[0].from[0].ipBlock.cidr", ["network"]),
    (NETWORK, "fd00::/8", "fe80::1%eth0/64", "spec.ingress[0].from[1].ipBlock.cidr", ["network"]),
    (NETWORK, "cidr: 10.0.0.0/8", "cdir: 10.0.0.0/8", "spec.ingress[0].from[0].ipBlock.cdir", ["Did you mean 'cidr'?"]),
    (NETWORK, "- from:", "- form:", "spec.ingress[0].form", ["Did you mean 'from'?"]),
    (NETWORK, "- from:", "- to:", "spec.ingress[0].to", ["unknown field 'to'"]),
    (NETWORK, '"wg*"', '"w*g"', "spec.ingress[0].iface[1]", ["network interface"]),
    (NETWORK, '"wg*"', '"a b"', "spec.ingress[0].iface[1]", ["network interface"]),
    (NETWORK, '"wg*"', '"sixteen-letters-"', "spec.ingress[0].iface[1]", ["at most 15 bytes"]),
    (NETWORK, '"443"', "443", "spec.ingress[0].ports[0].port", ["found 443, expected text"]),
    (NETWORK, '"443"', '"0"', "spec.ingress[0].ports[0].port", ["1 to 65535"]),
    (NETWORK, '"443"', '"65536"', "spec.ingress[0].ports[0].port", ["1 to 65535"]),
    (NETWORK, '"443"', '"80-90"', "spec.ingress[0].ports[0].port", ["endPort"]),
    (NETWORK, "port: ssh", "port: sshh", "spec.ingress[0].ports[1].port", ["Did you mean 'ssh'?"]),
    (NETWORK, "port: ssh", "port: '22}; drop'", "spec.ingress[0].ports[1].port", ["well-known service"]),
    (NETWORK, "endPort: 8080", "endPort: 7999", "spec.ingress[0].ports[2].endPort", ["a port from 8000 on"]),
    (NETWORK, "endPort: 8080", "endPort: 65536", "spec.ingress[0].ports[2].endPort", ["from 1 to 65535"]),
    (NETWORK, "protocol: sctp", "protocol: scpt", "spec.ingress[0].ports[2].protocol", ["Did you mean 'sctp'?"]),
    (NETWORK, "protocol: sctp", "protocol: icmp", "spec.ingress[0].ports[2].protocol", ["TCP or UDP or SCTP"]),
    (NETWORK, "limit: 500MB", "limit: 500mb", "spec.egress[1].limit", ["KB, MB, GB"]),
    (NETWORK, "limit: 500MB", "limit: 9223372036854775808GB", "spec.egress[1].limit", ["at most"]),
    (NETWORK, "duration: 1h30m", "duration: 1h30", "spec.egress[1].duration", ["each with its unit"]),
    (NETWORK, "duration: 1h30m", "duration: 500ms", "spec.egress[1].duration", ["whole seconds"]),
    (NETWORK, "duration: 1h30m", "duration: -1h", "spec.egress[1].duration", ["each with its unit"]),
    (NETWORK, "limit: 500MB\n      duration: 1h30m", "limit: 500MB", "spec.egress[1].limit",
     ["limit alone, expected duration with limit"]),
    (NETWORK, "limit: 500MB\n      ", "", "spec.egress[1].duration", ["duration alone, expected limit with duration"]),
    (NETWORK, "severity: 2", "severity: 20", "spec.ingress[0].severity", ["from 1 to 10"]),
    (NETWORK, "  severity: 3", "  selector: {matchLabels: {a: b}}\n  severity: 3", "spec.selector",
     ["both nodeSelector"]),
    (QUOTA, "    - limit: 64K\n      duration: 45s\n      action", "    - action", "spec.egress[0]",
     ["without a quota"]),
    (QUOTA, "level: Policy", "level: policys", "spec.level", ["Did you mean 'policy'?"]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "old", "new", "field", "parts"), MUTATIONS)
def test_a_mistake_is_told_at_its_line(text: str, old: str, new: str, field: str, parts: list[str]) -> None:
    assert text.count(old) >= 1
    changed = text.replace(old, new, 1)
    policies, problems = examine(changed)
    assert policies == []
    (problem,) = [problem for problem in problems if problem.field == field]
    first = text[: text.index(old)].count("\n") + 1
    assert first <= problem.line <= first + new.count("\n")
    for part in parts:
        assert part in str(problem)


@pytest.mark.parametrize(
    ("text", "old", "field", "line", "words"),
    [
        (HOST, HOST[HOST.index("  process:") :], "spec", 6, "a policy without rules"),
        (HOST, "    matchLabels:\n" + HOST.split("matchLabels:\n")[1].split("  severity")[0], "spec.nodeSelector", 6,
         "expected a mapping"),
        (CLUSTER, CLUSTER[CLUSTER.index("  process:") :], "spec", 6, "a policy without rules"),
        (NETWORK, NETWORK[NETWORK.index("  ingress:") :], "spec", 6, "a policy without rules"),
        (NETWORK, NETWORK.split("spec:\n")[1].split("  severity")[0], "spec", 6, "neither nodeSelector nor selector"),
    ],
)  # fmt: skip
def test_a_policy_that_lacks_a_part_is_refused(text: str, old: str, field: str, line: int, words: str) -> None:
    policies, problems = examine(text.replace(old, "", 1))
    assert policies == []
    (problem,) = problems
    assert (problem.field, problem.line) == (field, line)
    assert words in str(problem)


def test_an_empty_node_selector_is_refused() -> None:
    start = HOST.index("    matchLabels:")
    text = HOST[:start] + "    matchLabels: {}\n" + HOST[HOST.index("  severity: 1") :]
    (problem,) = examine(text)[1]
    assert (problem.field, problem.line) == ("spec.nodeSelector", 7)
    assert 'kubearmor.io/hostname: "*"' in str(problem)


WARNINGS = [
    (CONTAINER, "dir: /tmp/", "dir: /tmp", "spec.process.matchDirectories[0].dir", 'Write "/tmp/"'),
    (CONTAINER, "fromSource: [{dir: /usr/bin/}]", "fromSource: [{dir: /usr/bin}]",
     "spec.syscalls.matchPaths[1].fromSource[0].dir", 'Write "/usr/bin/"'),
    (CONTAINER, "[{path: /bin/ping}]", "", "spec.capabilities.matchCapabilities[0].fromSource", "every source"),
    (CONTAINER, "path: /etc/shadow", "path: /etc/*", "spec.file.matchPaths[0].path", "taken for a pattern"),
    (CONTAINER, "path: /etc/shadow", "path: '/etc/{shadow,gshadow}'", "spec.file.matchPaths[0].path", "these very"),
    (CONTAINER, "path: /usr/bin/nginx", "path: '/usr/bin/nginx[12]'", "spec.process.matchPaths[0].fromSource[0].path",
     "these very"),
    (CONTAINER, "execname: bash", "execname: 'python[23]'", "spec.process.matchPaths[1].execname", "these very"),
    (CONTAINER, "dir: /tmp/", "dir: '/{tmp,run}/'", "spec.process.matchDirectories[0].dir", "these very"),
    (CONTAINER, '"[a, b]"', '"[]"', "spec.selector.matchLabels.kubearmor.io/container.name", "every container"),
    (CONTAINER, '"[a, b]"', '""', "spec.selector.matchLabels.kubearmor.io/container.name", "every container"),
    (CONTAINER, "filelessExec\n      action: Block", "exec\n      action: Allow", "spec.presets[0].action",
     "Write Block"),
    (HOST, "\n        fromSource: [{path: /usr/bin/ping}]", "", "spec.network.matchProtocols[0]", "every program"),
    (HOST, "\n        fromSource: [{path: /usr/sbin/modprobe}]", "", "spec.capabilities.matchCapabilities[0]", "every"),
    (HOST, "  name: host", "  name: host\n  namespace: prod", "metadata.namespace", "selects nothing"),
    (NETWORK, "10.0.0.0/8", "10.1.2.3/8", "spec.ingress[0].from[0].ipBlock.cidr", 'Write "10.0.0.0/8"'),
    (NETWORK, "fd00::/8", "fd00::1/8", "spec.ingress[0].from[1].ipBlock.cidr", "/128"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "old", "new", "field", "words"), WARNINGS)
def test_what_is_tolerated_is_warned_of(text: str, old: str, new: str, field: str, words: str) -> None:
    changed = text.replace(old, new, 1)
    policies, problems = examine(changed)
    assert len(policies) == 1
    (problem,) = problems
    assert problem.warning
    assert problem.field == field
    assert text[: text.index(old)].count("\n") + 1 <= problem.line <= text[: text.index(old)].count("\n") + 2
    assert words in str(problem)
    assert f"warning: {field}: found " in str(problem)
    assert models.load([("p.yaml", changed.encode())])[0].model == policies[0].model


SELECTOR = CLUSTER[CLUSTER.index("  selector:") : CLUSTER.index("  process:")]


@pytest.mark.parametrize(
    ("written", "field"),
    [
        ("", None),
        ("  selector: {}\n", None),
        ("  selector:\n", "spec.selector"),
        ("  selector:\n    matchExpressions:\n", "spec.selector.matchExpressions"),
        ("  selector: {matchExpressions: []}\n", None),
    ],
)
def test_a_cluster_policy_without_expressions_covers_all_namespaces(written: str, field: str | None) -> None:
    policies, problems = examine(CLUSTER.replace(SELECTOR, written))
    (policy,) = policies
    assert isinstance(policy.model, models.KubeArmorClusterPolicy)
    assert policy.model.spec.selector.matchExpressions == []
    assert [(problem.field, problem.warning) for problem in problems] == ([(field, True)] if field else [])


@pytest.mark.parametrize("written", ["", "  selector: {}\n", "  selector: {matchLabels: {}}\n"])
def test_a_container_policy_without_a_selector_covers_its_namespace(written: str) -> None:
    selector = CONTAINER[CONTAINER.index("  selector:") : CONTAINER.index("  severity: 5")]
    policies, problems = examine(CONTAINER.replace(selector, written))
    assert len(policies) == 1
    (problem,) = problems
    assert (problem.field, problem.warning) == ("spec.selector", True)
    assert "every container of its namespace" in str(problem)


def test_a_network_policy_with_an_empty_selector_is_one_for_hosts() -> None:
    assert examine(NETWORK.replace("  severity: 3", "  selector: {}\n  severity: 3"))[1] == []


def test_warnings_alone_are_no_reason_to_refuse_but_problems_beside_them_are() -> None:
    tolerated = CONTAINER.replace("dir: /tmp/", "dir: /tmp")
    broken = HOST.replace("severity: 1", "severity: 100")
    with pytest.raises(PolicyError) as caught:
        models.load([("p.yaml", f"{tolerated}---\n{broken}".encode())])
    assert [problem.field for problem in caught.value.problems] == ["spec.severity"]


def test_many_problems_are_counted() -> None:
    rules = "".join(f"      - path: f{number}\n" for number in range(1000))
    start = CONTAINER.index("      - path: /etc/shadow")
    policies, problems = examine(CONTAINER[:start] + rules + CONTAINER[start:])
    assert policies == []
    assert len(problems) == 101
    assert problems[-1].found == "900 more problems in this document"


def test_many_problems_of_many_documents_are_counted() -> None:
    tolerated = "".join(f"---\n{CLUSTER.replace('name: cluster', f'name: c{number}')}" for number in range(5))
    tolerated = tolerated.replace("dir: /etc/", "dir: /etc")
    policies, problems = examine("---\na: 1\n" * 1200 + tolerated)
    assert len(policies) == 5
    assert len(problems) == 1001
    assert not any(problem.warning for problem in problems)
    assert problems[-1].found == "205 more problems in this file"


def test_words_in_a_list_count_as_rules() -> None:
    names = ",".join(f"n{number}" for number in range(256))
    start = CONTAINER.index("      - domain: example.com")
    rules = f"      - &many {{domain: '{names}'}}\n" + "      - *many\n" * 78
    policies, problems = examine(CONTAINER[:start] + rules + CONTAINER[start:])
    assert policies == []
    (problem,) = problems
    assert (problem.field, problem.found) == ("spec.network", f"{79 * 256 + 6} rules")


def test_no_more_is_worded_than_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def nothing_near(word: str, _: object) -> str:
        asked.append(word)
        return ""

    monkeypatch.setattr(messages, "suggestion", nothing_near)
    monkeypatch.setattr(loading, "MAXIMUM_FILE_PROBLEMS", 7)
    text = "---\n".join(CONTAINER.replace("[unlink, unlinkat]", "[a, b, c, d, e]") for _ in range(4))
    policies, problems = examine(text)
    assert (policies, len(problems)) == ([], 8)
    assert asked == ["a", "b", "c", "d", "e", "a", "b"]


@pytest.mark.parametrize("name", ["cidr", "dir", "path", "action", "fromSource", "selector"])
def test_labels_are_no_fields(name: str) -> None:
    text = CONTAINER.replace("      app: web", f"      app: web\n      {name}: Allow*")
    policies, problems = examine(text)
    assert (len(policies), problems) == (1, [])


def test_the_garbage_collector_is_as_it_was_afterwards() -> None:
    gc.disable()
    try:
        examine(CONTAINER)
        assert not gc.isenabled()
    finally:
        gc.enable()
    examine("broken: [")
    assert gc.isenabled()


def test_long_words_get_no_suggestion() -> None:
    (problem,) = examine(CONTAINER.replace("action: Audit", "? " + "x" * 1_000_000 + "\n  : 1"))[1]
    assert len(str(problem)) < 1000
    assert problem.advice == "Remove it"


def test_problems_of_a_document_are_told_in_the_order_of_its_lines() -> None:
    text = """\
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata: {name: a}
spec:
  severity: 11
  selector: {matchLabels: {a: b}}
  proces: {}
  file: {matchPaths: [{path: relative, readonly: true}]}
  action: block
"""
    lines = [(problem.line, problem.column) for problem in models.examine([("a.yaml", text.encode())])[1]]
    assert [line for line, _ in lines] == [5, 7, 8, 8, 9]
    assert lines == sorted(lines)
