# SPDX-License-Identifier: Apache-2.0
"""Precedence of everything that is not a file, and of what narrows rules: which one decides, in whatever order."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hauberk.policy import objects
from hauberk.policy.index import RuleIndex
from hauberk.policy.normalise import device_text
from hauberk.policy.packets import text as peer_text
from hauberk.policy.rules import (
    OPERATIONS_OF,
    Action,
    Circumstances,
    Decision,
    DeviceMatch,
    LabelRequirement,
    ObjectKind,
    Operation,
    Origin,
    Peer,
    PeerGroup,
    PeerMatch,
    PeerSelector,
    Rule,
    RuleSet,
    Section,
    SyscallMatch,
    Verdict,
    decide,
)

ALLOW, AUDIT, DENY = Verdict.ALLOW, Verdict.AUDIT, Verdict.DENY

KINDS = {
    Section.NETWORK: ObjectKind.PROTOCOL,
    Section.DNS: ObjectKind.DOMAIN,
    Section.CAPABILITIES: ObjectKind.CAPABILITY,
    Section.PRESETS: ObjectKind.PRESET,
}


def word(section: Section, text: str, number: int = 0) -> Rule:
    """Read a rule such as ``Block tcp from=/bin/a pts=false``."""
    action, value, *more = text.split()
    return Rule(
        section,
        KINDS[section],
        value,
        Action(action),
        Origin("p", f"rule[{number}]", "p.yaml", number + 1),
        sources=tuple(one[5:] for one in more if one.startswith("from=")),
        terminal=False if "pts=false" in more else None,
    )


def device(action: str, number: int = 0, **parts: int) -> Rule:
    match = DeviceMatch(**parts)
    origin = Origin("p", f"rule[{number}]", "p.yaml", number + 1)
    return Rule(Section.DEVICE, ObjectKind.DEVICE, device_text(match), Action(action), origin, match=match)


def packets(action: str, section: Section = Section.EGRESS, number: int = 0, **parts: Any) -> Rule:  # noqa: ANN401
    match = PeerMatch(**parts)
    origin = Origin("p", f"rule[{number}]", "p.yaml", number + 1)
    return Rule(section, ObjectKind.PEER, peer_text(match), Action(action), origin, match=match)


def ask(rules: tuple[Rule, ...], operation: Operation, text: str, posture: Verdict = DENY, **who: Any) -> Decision:  # noqa: ANN401
    asked = objects.read(operation, text)
    matching = [rule for rule in rules if objects.matches(rule, asked)]
    assert RuleIndex(rules).matching_object(asked) == tuple(matching)
    known = Circumstances(
        terminal=who.get("terminal"),
        beyond_quota=who.get("beyond_quota", False),
        peer=asked if isinstance(asked, Peer) else None,
    )
    return decide(RuleSet(rules, posture), matching, operation, source=who.get("source"), owner=True, known=known)


NETWORK_TABLE = [
    ([], "tcp", {}, ALLOW),
    (["Block tcp"], "tcp", {}, DENY),
    (["Block tcp"], "udp", {}, ALLOW),
    (["Block stream"], "tcp", {}, DENY),  # a TCP socket is a stream socket
    (["Block stream"], "udp", {}, ALLOW),
    (["Block tcp"], "stream", {}, ALLOW),  # a stream socket without TCP, such as one of the Unix family
    (["Block raw"], "icmp", {}, DENY),
    (["Block icmp"], "dgram/icmp", {}, DENY),  # ping without rights
    (["Block raw"], "dgram/icmp", {}, ALLOW),
    (["Block packet"], "raw/packet", {}, DENY),
    (["Block all"], "seqpacket", {}, DENY),
    (["Audit all"], "sctp", {}, AUDIT),
    (["Allow tcp"], "udp", {}, DENY),
    (["Allow tcp"], "udp", {"posture": AUDIT}, AUDIT),
    (["Allow tcp"], "tcp", {}, ALLOW),
    # a protocol before a type before all
    (["Allow tcp", "Block all"], "tcp", {}, ALLOW),
    (["Allow tcp", "Block all"], "udp", {}, DENY),
    (["Allow tcp", "Block stream"], "tcp", {}, ALLOW),
    (["Allow stream", "Block tcp"], "tcp", {}, DENY),
    (["Allow dgram", "Block all"], "udp", {}, ALLOW),
    (["Allow raw", "Block packet"], "raw/packet", {}, DENY),  # two types: the stronger action
    # a source before that
    (["Block tcp", "Allow all from=/bin/a"], "tcp", {"source": "/bin/a"}, ALLOW),
    (["Block tcp", "Allow all from=/bin/a"], "tcp", {"source": "/bin/b"}, DENY),
    (["Allow tcp from=/bin/a"], "tcp", {}, DENY),
    (["Allow tcp", "Audit tcp"], "tcp", {}, AUDIT),
    (["Audit tcp", "Block tcp"], "tcp", {}, DENY),
]


@pytest.mark.parametrize(("texts", "asked", "who", "verdict"), NETWORK_TABLE)
def test_precedence_of_sockets(texts: list[str], asked: str, who: dict[str, Any], verdict: Verdict) -> None:
    rules = tuple(word(Section.NETWORK, text, number) for number, text in enumerate(texts))
    assert ask(rules, Operation.SOCKET, asked, **who).verdict is verdict
    assert ask(rules[::-1], Operation.SOCKET, asked, **who).verdict is verdict


DNS_TABLE = [
    (["Block example.com"], "example.com", {}, DENY),
    (["Block example.com"], "www.example.com", {}, DENY),
    (["Block example.com"], "a.b.example.com", {}, DENY),
    (["Block example.com"], "badexample.com", {}, ALLOW),
    (["Block example.com"], "example.com.evil.org", {}, ALLOW),
    (["Block www.example.com"], "example.com", {}, ALLOW),
    (["Block example.com"], "WWW.Example.COM.", {}, DENY),  # names have no case
    (["Block com"], "example.com", {}, DENY),
    (["Allow example.com"], "example.com", {}, ALLOW),
    (["Allow example.com"], "example.org", {}, DENY),
    # the search list of a pod's resolver
    (["Allow example.com"], "example.com.prod.svc.cluster.local", {}, ALLOW),
    (["Allow example.com"], "example.com.svc.cluster.local", {}, ALLOW),
    (["Allow example.com"], "example.com.cluster.local", {}, ALLOW),
    (["Block example.com"], "www.example.com.prod.svc.cluster.local", {}, DENY),
    (["Allow db"], "db.prod.svc.cluster.local", {}, ALLOW),
    (["Allow prod.svc.cluster.local"], "db.prod.svc.cluster.local", {}, ALLOW),
    (["Allow example.com"], "example.com.domain.name", {}, DENY),
    # more labels before fewer
    (["Block example.com", "Allow www.example.com"], "www.example.com", {}, ALLOW),
    (["Block example.com", "Allow www.example.com"], "x.example.com", {}, DENY),
    (["Allow example.com", "Block www.example.com"], "a.www.example.com", {}, DENY),
    (["Allow com from=/bin/a", "Block example.com"], "example.com", {"source": "/bin/a"}, ALLOW),
]


@pytest.mark.parametrize(("texts", "asked", "who", "verdict"), DNS_TABLE)
def test_precedence_of_names(texts: list[str], asked: str, who: dict[str, Any], verdict: Verdict) -> None:
    rules = tuple(word(Section.DNS, text, number) for number, text in enumerate(texts))
    assert ask(rules, Operation.RESOLVE, asked, **who).verdict is verdict
    assert ask(rules[::-1], Operation.RESOLVE, asked, **who).verdict is verdict


def test_names_and_sockets_are_lists_of_their_own() -> None:
    socket, name = word(Section.NETWORK, "Allow tcp"), word(Section.DNS, "Allow example.com")
    assert ask((socket,), Operation.RESOLVE, "example.org").verdict is ALLOW
    assert ask((name,), Operation.SOCKET, "udp").verdict is ALLOW
    assert ask((socket, name), Operation.RESOLVE, "example.org").verdict is DENY


def test_precedence_of_capabilities() -> None:
    rules = tuple(word(Section.CAPABILITIES, text) for text in ("Block net_raw", "Allow net_raw from=/bin/ping"))
    assert ask(rules, Operation.CAPABILITY, "net_raw", source="/bin/ping").verdict is ALLOW
    assert ask(rules, Operation.CAPABILITY, "CAP_NET_RAW", source="/bin/x").verdict is DENY
    assert ask(rules, Operation.CAPABILITY, "chown").verdict is DENY  # an allow-list now
    assert ask(rules[:1], Operation.CAPABILITY, "chown").verdict is ALLOW


def test_presets_are_never_an_allow_list() -> None:
    rules = (word(Section.PRESETS, "Block exec"), word(Section.PRESETS, "Audit protectEnv"))
    verdicts = [ask(rules, Operation.PRESET, name).verdict for name in ("exec", "protectEnv", "filelessExec")]
    assert verdicts == [DENY, AUDIT, ALLOW]
    assert not RuleSet((word(Section.PRESETS, "Allow exec"),)).is_allow_list(Section.PRESETS)


def call(*names: str, action: Action = Action.AUDIT, sources: tuple[str, ...] = (), **parts: Any) -> Rule:  # noqa: ANN401
    match = SyscallMatch(names, **parts)
    return Rule(
        Section.SYSCALLS, ObjectKind.SYSCALL, ", ".join(names), action, Origin("p", "f"), sources=sources, match=match
    )


@pytest.mark.parametrize(
    ("rule", "asked", "source", "verdict"),
    [
        (call("unlink"), "unlink", None, AUDIT),
        (call("unlink", "rename"), "rename /x", None, AUDIT),
        (call("unlink"), "open", None, ALLOW),
        (call("unlink", path="/etc/"), "unlink /etc", None, AUDIT),
        (call("unlink", path="/etc/"), "unlink /etc/x", None, ALLOW),
        (call("unlink", path="/etc/", recursive=True), "unlink /etc/x/y", None, AUDIT),
        (call("unlink", path="/etc/", recursive=True), "unlink /etcetera", None, ALLOW),
        (call("unlink", path="/etc/x"), "unlink /etc/x", None, AUDIT),
        (call("unlink", path="/etc/x"), "unlink", None, ALLOW),
        (call("unlink", sources=("/bin/a",)), "unlink", "/bin/a", AUDIT),
        (call("unlink", sources=("/bin/a",)), "unlink", "/bin/b", ALLOW),
        (call("unlink", sources=("/bin/a",)), "unlink", None, ALLOW),
        (call("unlink", source_directories=(("/bin/", False),)), "unlink", "/bin/a", AUDIT),
        (call("unlink", source_directories=(("/bin/", False),)), "unlink", "/bin/b/a", ALLOW),
        (call("unlink", source_directories=(("/bin/", True),)), "unlink", "/bin/b/a", AUDIT),
        (call("unlink", source_directories=(("/bin/", True),)), "unlink", None, ALLOW),
        (call("unlink", action=Action.BLOCK), "unlink", None, AUDIT),  # whatever the policy says
        (call("unlink", action=Action.ALLOW), "open", None, ALLOW),
    ],
)
def test_calls_are_only_ever_audited(rule: Rule, asked: str, source: str | None, verdict: Verdict) -> None:
    decision = ask((rule,), Operation.SYSCALL, asked, source=source)
    assert decision.verdict is verdict
    assert all("limited to source" in why for _, why in decision.lost)


DEVICE_TABLE = [
    ([("Block", {"device_class": 8})], "MASS-STORAGE", DENY),
    ([("Block", {"device_class": 8})], "8/6/80@2", DENY),
    ([("Block", {"device_class": 8})], "HID", ALLOW),
    ([("Block", {})], "0x5d", DENY),  # ALL
    ([("Block", {"device_class": 8, "subclass": 6})], "8", ALLOW),
    ([("Block", {"device_class": 8, "subclass": 6})], "8/6", DENY),
    ([("Block", {"level": 2})], "8@1", ALLOW),
    ([("Allow", {"device_class": 3})], "8", DENY),
    # KubeArmor's specificities: class 100, level 100, subclass 10, protocol 1
    ([("Allow", {"device_class": 8, "level": 1}), ("Block", {"device_class": 8, "subclass": 6, "protocol": 80})],
     "8/6/80@1", ALLOW),
    ([("Allow", {"device_class": 8, "subclass": 6}), ("Block", {"device_class": 8, "protocol": 80})],
     "8/6/80", ALLOW),
    ([("Allow", {"device_class": 8, "protocol": 80}), ("Block", {"device_class": 8})], "8/6/80", ALLOW),
    ([("Block", {"device_class": 8, "subclass": 6, "protocol": 80, "level": 2}),
      ("Allow", {"device_class": 8, "subclass": 6, "level": 2})], "8/6/80@2", DENY),
    # and where theirs are equal: a class before everything, a class before a level
    ([("Allow", {"device_class": 8}), ("Block", {})], "8", ALLOW),
    ([("Block", {"device_class": 8}), ("Allow", {})], "8", DENY),
    ([("Allow", {"device_class": 8}), ("Block", {"level": 1})], "8@1", ALLOW),
    ([("Allow", {"device_class": 8, "level": 1}), ("Block", {"level": 1})], "8@1", ALLOW),
    ([("Allow", {"device_class": 8}), ("Audit", {"device_class": 8})], "8", AUDIT),
]  # fmt: skip


@pytest.mark.parametrize(("parts", "asked", "verdict"), DEVICE_TABLE)
def test_precedence_of_devices(parts: list[tuple[str, dict[str, int]]], asked: str, verdict: Verdict) -> None:
    rules = tuple(device(action, number, **values) for number, (action, values) in enumerate(parts))
    assert ask(rules, Operation.ATTACH, asked).verdict is verdict
    assert ask(rules[::-1], Operation.ATTACH, asked).verdict is verdict


HTTPS, WEB = (443, 443, "tcp"), (80, 443, "tcp")
WORLD = PeerGroup("entity", "world")
WEB_PODS = PeerGroup.of_workloads(PeerSelector((LabelRequirement("app", "In", ("web",)),), ("shop",)))
PEER_TABLE = [
    ([("Block", {})], "10.0.0.1", DENY),
    ([("Block", {"cidrs": ("10.0.0.0/8",)})], "10.0.0.1", DENY),
    ([("Block", {"cidrs": ("10.0.0.0/8",)})], "11.0.0.1", ALLOW),
    ([("Block", {"cidrs": ("10.0.0.0/8",)})], "::ffff:10.0.0.1", DENY),
    # a rule about one family says nothing about the other
    ([("Block", {"cidrs": ("1.1.1.1/32",)})], "fd00::1", ALLOW),
    ([("Block", {"cidrs": ("0.0.0.0/0",)})], "fd00::1", ALLOW),
    ([("Allow", {"cidrs": ("10.0.0.0/8",)})], "fd00::1", DENY),
    ([("Block", {"cidrs": ("fd00::/8", "10.0.0.0/8")})], "fd00::1", DENY),
    ([("Block", {"ports": (HTTPS,)})], "10.0.0.1 tcp/443", DENY),
    ([("Block", {"ports": (HTTPS,)})], "10.0.0.1 udp/443", ALLOW),
    ([("Block", {"ports": (HTTPS,)})], "10.0.0.1 tcp/80", ALLOW),
    ([("Block", {"ports": (HTTPS,)})], "10.0.0.1", ALLOW),
    ([("Block", {"interfaces": ("eth0",)})], "10.0.0.1 on eth0", DENY),
    ([("Block", {"interfaces": ("eth0",)})], "10.0.0.1 on eth1", ALLOW),
    ([("Block", {"interfaces": ("eth*",)})], "10.0.0.1 on eth1", DENY),
    ([("Block", {"interfaces": ("eth*",)})], "10.0.0.1", ALLOW),
    # Block, then Audit, then Allow, however exactly a rule names the packet
    ([("Block", {"cidrs": ("10.0.0.0/8",)}), ("Allow", {"cidrs": ("10.1.0.0/16",)})], "10.1.0.1", DENY),
    ([("Block", {"cidrs": ("10.0.0.0/8",)}), ("Audit", {"cidrs": ("10.1.0.0/16",)})], "10.1.0.1", DENY),
    ([("Audit", {}), ("Allow", {"cidrs": ("10.1.0.0/16",), "ports": (HTTPS,)})], "10.1.0.1 tcp/443", AUDIT),
    ([("Audit", {}), ("Allow", {"cidrs": ("10.1.0.0/16",)})], "10.2.0.1", AUDIT),
    ([("Block", {"cidrs": ("10.0.0.0/8",)}), ("Allow", {"cidrs": ("11.0.0.0/8",)})], "11.2.0.1", ALLOW),
    ([("Allow", {"cidrs": ("0.0.0.0/0",)}), ("Block", {})], "10.0.0.1", DENY),
    ([("Allow", {"ports": (HTTPS,)}), ("Block", {"ports": (WEB,)})], "10.0.0.1 tcp/443", DENY),
    ([("Allow", {"interfaces": ("eth0",)}), ("Block", {"interfaces": ("eth*",)})], "10.0.0.1 on eth0", DENY),
    ([("Allow", {"cidrs": ("10.0.0.0/8",)}), ("Block", {"cidrs": ("10.0.0.0/8",)})], "10.0.0.1", DENY),
    # exceptions are those of the rule, not of the others
    ([("Allow", {"cidrs": ("10.0.0.0/8",), "exceptions": ("10.1.0.0/16",)})], "10.2.0.1", ALLOW),
    ([("Allow", {"cidrs": ("10.0.0.0/8",), "exceptions": ("10.1.0.0/16",)})], "10.1.0.1", DENY),
    (
        [("Allow", {"cidrs": ("10.0.0.0/8",), "exceptions": ("10.1.0.0/16",)}), ("Allow", {"ports": (HTTPS,)})],
        "10.1.0.1 tcp/443",
        ALLOW,
    ),
    ([("Block", {"cidrs": ("0.0.0.0/0", "::/0"), "exceptions": ("fd00::/8",)})], "fd00::1", ALLOW),
    ([("Block", {"cidrs": ("0.0.0.0/0", "::/0"), "exceptions": ("fd00::/8",)})], "fc00::1", DENY),
    # ICMP and whole protocols
    ([("Allow", {"icmp": ((4, 8),)})], "10.0.0.1 icmp/8", ALLOW),
    ([("Allow", {"icmp": ((4, 8),)})], "10.0.0.1 icmp/0", DENY),
    ([("Allow", {"icmp": ((4, 8),)})], "10.0.0.1 icmp", DENY),
    ([("Allow", {"icmp": ((4, None),)})], "10.0.0.1 icmp", ALLOW),
    ([("Allow", {"icmp": ((4, 128),)})], "fd00::1 icmpv6/128", DENY),
    ([("Allow", {"icmp": ((6, 128),)})], "fd00::1 icmpv6/128", ALLOW),
    ([("Allow", {"icmp": ((6, 128),), "ports": (HTTPS,)})], "10.0.0.1 tcp/443", ALLOW),
    ([("Allow", {"icmp": ((6, 128),)})], "10.0.0.1 tcp/443", DENY),
    ([("Allow", {"ports": ((0, 65535, "tcp"),)})], "10.0.0.1 tcp", ALLOW),
    ([("Allow", {"ports": ((0, 65535, "tcp"),)})], "10.0.0.1 tcp/0", ALLOW),
    ([("Allow", {"ports": ((1, 65535, "tcp"),)})], "10.0.0.1 tcp", DENY),
    ([("Allow", {"ports": ((0, 65535, "vrrp"),)})], "10.0.0.1 vrrp", ALLOW),
    ([("Allow", {"ports": ((0, 65535, "vrrp"),)})], "10.0.0.1 esp", DENY),
    # groups: what is said of the peer; beside networks, one of both suffices
    ([("Allow", {"groups": (PeerGroup("name", "*.example.com"),)})], "10.0.0.1 name www.example.com", ALLOW),
    ([("Allow", {"groups": (PeerGroup("name", "*.example.com"),)})], "10.0.0.1 name a.b.example.com", DENY),
    ([("Allow", {"groups": (PeerGroup("name", "*.example.com"),)})], "10.0.0.1", DENY),
    ([("Allow", {"groups": (WORLD,)})], "10.0.0.1 entity world", ALLOW),
    ([("Allow", {"groups": (WORLD,)})], "10.0.0.1 entity host", DENY),
    ([("Block", {"groups": (WORLD,), "cidrs": ("10.0.0.0/8",)})], "10.0.0.1", DENY),
    ([("Block", {"groups": (WORLD,), "cidrs": ("10.0.0.0/8",)})], "11.0.0.1 entity world", DENY),
    ([("Block", {"groups": (WORLD,), "cidrs": ("10.0.0.0/8",)})], "11.0.0.1 entity cluster", ALLOW),
    (
        [("Block", {"groups": (WORLD,), "cidrs": ("10.0.0.0/8",), "exceptions": ("10.0.0.0/9",)})],
        "10.0.0.1 entity world",
        DENY,
    ),
    ([("Allow", {"groups": (WEB_PODS,)})], "10.0.0.1 labels app=web namespace shop", ALLOW),
    ([("Allow", {"groups": (WEB_PODS,)})], "10.0.0.1 labels app=web", DENY),
    ([("Allow", {"groups": (WEB_PODS,)})], "10.0.0.1 namespace shop", DENY),
    ([("Allow", {"groups": (WEB_PODS,)})], "10.0.0.1", DENY),
    # nothing allows nothing, and isolates
    ([("Allow", {"nothing": True})], "10.0.0.1", DENY),
    ([("Block", {"nothing": True})], "10.0.0.1", ALLOW),
    ([("Allow", {"nothing": True}), ("Allow", {"cidrs": ("10.0.0.0/8",)})], "10.0.0.1", ALLOW),
    # what no policy is about
    ([("Block", {})], "127.0.0.1 on lo", ALLOW),
    ([("Block", {"interfaces": ("lo",)})], "127.0.0.1 on lo", ALLOW),
    ([("Block", {})], "fe80::1 icmpv6/135", DENY),
]


@pytest.mark.parametrize(("parts", "asked", "verdict"), PEER_TABLE)
def test_precedence_of_packets(parts: list[tuple[str, dict[str, Any]]], asked: str, verdict: Verdict) -> None:
    rules = tuple(packets(action, number=number, **values) for number, (action, values) in enumerate(parts))
    assert ask(rules, Operation.SEND, asked).verdict is verdict
    assert ask(rules[::-1], Operation.SEND, asked).verdict is verdict


def test_each_direction_is_a_list_of_its_own() -> None:
    out = packets("Allow", cidrs=("10.0.0.0/8",))
    assert ask((out,), Operation.SEND, "11.0.0.1").verdict is DENY
    assert ask((out,), Operation.RECEIVE, "11.0.0.1").verdict is ALLOW
    block = packets("Block", Section.INGRESS, cidrs=("11.0.0.0/8",))
    assert ask((out, block), Operation.RECEIVE, "11.0.0.1").verdict is DENY
    assert ask((block,), Operation.SEND, "11.0.0.1").verdict is ALLOW


def test_a_list_that_only_audit_rules_make_reports_what_is_not_on_it() -> None:
    asks = packets("Audit", cidrs=("11.0.0.0/8",))
    assert not ask((asks,), Operation.SEND, "10.0.0.1").rule
    reports = replace(asks, default_deny=True)
    assert ask((reports,), Operation.SEND, "10.0.0.1").verdict is AUDIT
    allows = packets("Allow", number=1, cidrs=("10.0.0.0/8",))
    assert ask((reports, replace(allows, default_deny=False)), Operation.SEND, "12.0.0.1").verdict is AUDIT
    assert ask((reports, allows), Operation.SEND, "12.0.0.1").verdict is DENY
    assert ask((reports, allows), Operation.RECEIVE, "12.0.0.1").verdict is ALLOW


@pytest.mark.parametrize(
    ("action", "within", "beyond"), [("Allow", ALLOW, DENY), ("Block", ALLOW, DENY), ("Audit", ALLOW, AUDIT)]
)
def test_a_quota_narrows_a_rule(action: str, within: Verdict, beyond: Verdict) -> None:
    rules = (packets(action, quota=(1000, 60, "policy")),)
    assert ask(rules, Operation.SEND, "10.0.0.1", beyond_quota=False).verdict is within
    assert ask(rules, Operation.SEND, "10.0.0.1", beyond_quota=True).verdict is beyond
    assert ask(rules, Operation.SEND, "10.0.0.1", beyond_quota=None).verdict is beyond


def test_a_quota_grants_nothing_and_hides_no_other_quota() -> None:
    rules = (packets("Block", quota=(1000, 60, "pod")), packets("Allow", cidrs=("10.0.0.0/8",)))
    assert ask(rules, Operation.SEND, "11.0.0.1").verdict is DENY
    assert ask(rules, Operation.SEND, "10.0.0.1").verdict is ALLOW
    second = packets("Block", quota=(10, 60, "pod"), number=1)
    decision = ask((rules[0], second), Operation.SEND, "10.0.0.1")
    assert [why for _, why in decision.lost] == ["says nothing about send within the quota"] * 2


PROGRAM = {"section": Section.PROCESS, "kind": ObjectKind.PATH, "value": "/usr/bin/python3"}


def run(action: str, **parts: Any) -> Rule:  # noqa: ANN401
    return Rule(**PROGRAM, action=Action(action), origin=Origin("p", "f"), **parts)  # type: ignore[arg-type]


def execute(rules: tuple[Rule, ...], operation: Operation = Operation.EXECUTE, **known: Any) -> Verdict:  # noqa: ANN401
    matching = [rule for rule in rules if rule.value == "/usr/bin/python3"]
    circumstances = Circumstances(**known)
    return decide(RuleSet(rules), matching, operation, source=None, owner=True, known=circumstances).verdict


LISTED = ("-m", "random")


@pytest.mark.parametrize(
    ("action", "listed", "other"), [("Block", ALLOW, DENY), ("Allow", ALLOW, DENY), ("Audit", ALLOW, AUDIT)]
)
def test_allowed_arguments(action: str, listed: Verdict, other: Verdict) -> None:
    rules = (run(action, allowed_arguments=LISTED),)
    assert execute(rules, arguments=("-m", "random")) is listed
    assert execute(rules, arguments=("random",)) is listed
    assert execute(rules, arguments=("-m", "pydoc")) is other
    assert execute(rules, arguments=("-m", "random", "x")) is other
    assert execute(rules, arguments=("-m",) * 50) is listed  # however many
    assert execute(rules, arguments=("-m" * 500,)) is other  # however long
    assert execute(rules, arguments=()) is other  # a program without arguments is another one
    assert execute(rules, arguments=None) is other  # not known
    assert execute(rules, Operation.MAP, arguments=LISTED) is other  # who maps a program chooses what it is passed


def test_allowed_arguments_grant_nothing() -> None:
    elsewhere = Rule(Section.PROCESS, ObjectKind.PATH, "/bin/x", Action.ALLOW, Origin("p", "f"))
    assert execute((run("Block", allowed_arguments=LISTED), elsewhere), arguments=LISTED) is DENY
    assert execute((run("Allow", allowed_arguments=LISTED), elsewhere), arguments=LISTED) is ALLOW


@pytest.mark.parametrize(
    ("action", "without", "with_one"), [("Block", ALLOW, DENY), ("Allow", ALLOW, DENY), ("Audit", ALLOW, AUDIT)]
)
def test_pts_false_is_for_those_without_a_terminal(action: str, without: Verdict, with_one: Verdict) -> None:
    rules = (run(action, terminal=False),)
    assert execute(rules, terminal=False) is without
    assert execute(rules, terminal=True) is with_one
    assert execute(rules, terminal=None) is with_one
    socket = (word(Section.NETWORK, f"{action} tcp pts=false"),)
    assert ask(socket, Operation.SOCKET, "tcp", terminal=False).verdict is without
    assert ask(socket, Operation.SOCKET, "tcp", terminal=True).verdict is with_one


def test_a_block_rule_with_pts_grants_nothing() -> None:
    rules = (word(Section.NETWORK, "Block tcp pts=false"), word(Section.NETWORK, "Allow udp"))
    assert ask(rules, Operation.SOCKET, "tcp", terminal=False).verdict is DENY


def test_what_can_be_written_with_a_terminal_is_not_mapped_by_a_source_with_rights() -> None:
    grant = Rule(Section.FILE, ObjectKind.PATH, "/secret", Action.ALLOW, Origin("p", "f"), sources=("/bin/s",))
    library = {"section": Section.FILE, "kind": ObjectKind.PATH, "value": "/l", "origin": Origin("p", "f")}
    audit = Rule(**library, action=Action.AUDIT, terminal=False)  # type: ignore[arg-type]
    block = Rule(**library | {"kind": ObjectKind.DIRECTORY, "value": "/"}, action=Action.BLOCK, recursive=True)  # type: ignore[arg-type]
    for rules, verdict in (((grant, block), ALLOW), ((grant, block, audit), DENY)):
        decision = decide(RuleSet(rules), rules[1:], Operation.MAP, source="/bin/s", owner=True)
        assert decision.verdict is verdict


@pytest.mark.parametrize(
    ("section", "postures", "expected"),
    [
        (Section.FILE, (), DENY),
        (Section.FILE, ((Section.FILE, AUDIT),), AUDIT),
        (Section.PROCESS, ((Section.FILE, AUDIT),), AUDIT),
        (Section.PROCESS, ((Section.FILE, AUDIT), (Section.PROCESS, ALLOW)), ALLOW),
        (Section.NETWORK, ((Section.FILE, AUDIT),), DENY),
        (Section.DNS, ((Section.NETWORK, AUDIT),), AUDIT),
        (Section.INGRESS, ((Section.NETWORK, AUDIT),), AUDIT),
        (Section.EGRESS, ((Section.NETWORK, AUDIT), (Section.EGRESS, ALLOW)), ALLOW),
        (Section.DEVICE, ((Section.NETWORK, AUDIT),), DENY),
        (Section.CAPABILITIES, ((Section.CAPABILITIES, AUDIT),), AUDIT),
    ],
)
def test_postures_of_sections(
    section: Section, postures: tuple[tuple[Section, Verdict], ...], expected: Verdict
) -> None:
    assert RuleSet((), DENY, postures).posture_of(section) is expected


def test_the_posture_of_the_section_decides() -> None:
    rules = (word(Section.NETWORK, "Allow tcp"),)
    rule_set = RuleSet(rules, DENY, ((Section.NETWORK, AUDIT),))
    assert decide(rule_set, (), Operation.SOCKET, source=None, owner=True).verdict is AUDIT


def test_of_equal_rules_the_first_by_place_is_named() -> None:
    rules = tuple(word(Section.NETWORK, "Block tcp", number) for number in range(4))
    named = {ask(order, Operation.SOCKET, "tcp").rule for order in (rules, rules[::-1], rules[2:] + rules[:2])}
    assert named == {rules[0]}


@pytest.mark.parametrize(
    ("rules", "operation", "asked", "why"),
    [
        ((word(Section.NETWORK, "Block tcp"), word(Section.NETWORK, "Block all")), Operation.SOCKET, "tcp",
         "names the kind of socket less exactly"),
        ((word(Section.DNS, "Block b.c"), word(Section.DNS, "Block c")), Operation.RESOLVE, "a.b.c",
         "names a wider domain"),
        ((call("unlink", path="/x"), call("unlink")), Operation.SYSCALL, "unlink /x", "not limited to a path"),
        ((device("Block", device_class=8, level=1), device("Block", device_class=8)), Operation.ATTACH, "8@1",
         "less about class and level"),
        ((device("Block", device_class=8, subclass=1), device("Block", device_class=8)), Operation.ATTACH, "8/1",
         "names no subclass"),
        ((device("Block", device_class=8, protocol=1), device("Block", device_class=8)), Operation.ATTACH, "8/1/1",
         "names no protocol"),
        ((device("Block", device_class=8), device("Block", level=1)), Operation.ATTACH, "8@1",
         "names a level and no class"),
        ((packets("Block"), packets("Allow", cidrs=("10.0.0.0/8",))), Operation.SEND, "10.0.0.1", "weaker action"),
        ((packets("Audit"), packets("Allow", ports=(HTTPS,))), Operation.SEND, "10.0.0.1 tcp/443", "weaker action"),
        ((word(Section.CAPABILITIES, "Block bpf from=/a"), word(Section.CAPABILITIES, "Block bpf")),
         Operation.CAPABILITY, "bpf", "not limited to the source"),
        ((word(Section.PRESETS, "Block exec"), word(Section.PRESETS, "Audit exec")), Operation.PRESET, "exec",
         "the weaker action"),
    ],
)  # fmt: skip
def test_why_a_rule_lost(rules: tuple[Rule, ...], operation: Operation, asked: str, why: str) -> None:
    decision = ask(rules[::-1], operation, asked, source="/a")
    assert decision.rule is rules[0]
    ((loser, reason),) = decision.lost
    assert loser is rules[1]
    assert why in reason


# ---- properties ----

SOURCES = st.sampled_from([(), ("/bin/a",), ("/bin/b",)])
ACTIONS = st.sampled_from(Action)
CIDRS = st.lists(st.sampled_from(["10.0.0.0/8", "10.1.0.0/16", "0.0.0.0/0", "fd00::/8"]), max_size=2).map(tuple)
PORTS = st.lists(st.sampled_from([HTTPS, WEB, (53, 53, "udp")]), max_size=2).map(tuple)
SMALL = st.none() | st.integers(1, 2)
WORDS = {
    Section.NETWORK: ["tcp", "udp", "stream", "raw", "icmp", "all"],
    Section.DNS: ["a.b", "b", "c.a.b", "svc.cluster.local"],
    Section.CAPABILITIES: ["net_raw", "bpf"],
    Section.PRESETS: ["exec", "protectEnv"],
}


@st.composite
def rules_of(draw: st.DrawFn) -> Rule:
    """Any rule that is not about files, over a small world."""
    section = draw(st.sampled_from([one for one in Section if OPERATIONS_OF[one] and one.value not in _PATHS]))
    match: DeviceMatch | PeerMatch | SyscallMatch | None = None
    kind, value = KINDS.get(section), ""
    if section is Section.DEVICE:
        kind, match = ObjectKind.DEVICE, DeviceMatch(draw(SMALL), draw(SMALL), draw(SMALL), draw(SMALL))
    elif section is Section.SYSCALLS:
        path = draw(st.none() | st.sampled_from(["/etc/", "/etc/x"]))
        kind, match = ObjectKind.SYSCALL, SyscallMatch(("unlink",), path, draw(st.booleans()))
    elif kind is None:
        quota = draw(st.none() | st.just((1, 1, "pod")))
        kind, match = (
            ObjectKind.PEER,
            PeerMatch(draw(CIDRS), draw(st.sampled_from([(), ("eth0",)])), draw(PORTS), quota),
        )
    else:
        value = draw(st.sampled_from(WORDS[section]))
    return Rule(
        section, kind, value, draw(ACTIONS), Origin("p", str(draw(st.integers(0, 9)))),
        sources=() if section in (Section.DEVICE, Section.INGRESS, Section.EGRESS) else draw(SOURCES),
        terminal=draw(st.sampled_from([None, None, False])), match=match,
    )  # fmt: skip


_PATHS = ("process", "file")
QUESTIONS = st.sampled_from(
    [
        (Operation.SOCKET, "tcp"), (Operation.SOCKET, "dgram/icmp"), (Operation.RESOLVE, "c.a.b"),
        (Operation.RESOLVE, "a.b.x.svc.cluster.local"), (Operation.CAPABILITY, "net_raw"), (Operation.PRESET, "exec"),
        (Operation.SYSCALL, "unlink /etc/x"), (Operation.ATTACH, "1/2/1@1"), (Operation.ATTACH, "2"),
        (Operation.SEND, "10.1.0.1 tcp/443 on eth0"), (Operation.RECEIVE, "fd00::1 udp/53"),
    ]
)  # fmt: skip
WHO = st.fixed_dictionaries(
    {
        "source": st.sampled_from([None, "/bin/a", "/bin/c"]),
        "terminal": st.sampled_from([None, False, True]),
        "beyond_quota": st.booleans(),
    }
)


@given(st.lists(rules_of(), max_size=7), st.randoms(use_true_random=False), QUESTIONS, WHO)
def test_order_never_matters(
    rules: list[Rule],
    random: Any,  # noqa: ANN401
    question: tuple[Operation, str],
    who: dict[str, Any],
) -> None:
    shuffled = list(rules)
    random.shuffle(shuffled)
    first, second = ask(tuple(rules), *question, **who), ask(tuple(shuffled), *question, **who)
    assert first.verdict is second.verdict
    assert first.reason == second.reason
    assert (first.rule is None) is (second.rule is None)
    if first.rule and second.rule:
        assert first.rule.origin == second.rule.origin


@given(st.lists(rules_of(), max_size=6), rules_of(), QUESTIONS, WHO)
def test_one_more_block_rule_never_allows_more(
    rules: list[Rule], extra: Rule, question: tuple[Operation, str], who: dict[str, Any]
) -> None:
    block = Rule(extra.section, extra.kind, extra.value, Action.BLOCK, extra.origin, sources=extra.sources,
                 terminal=extra.terminal, match=extra.match)  # fmt: skip
    before = ask(tuple(rules), *question, **who)
    after = ask((*rules, block), *question, **who)
    assert after.verdict >= before.verdict


@given(st.lists(rules_of(), max_size=6), QUESTIONS, WHO)
def test_what_an_allow_list_lets_pass_some_rule_allows_or_audits(
    rules: list[Rule], question: tuple[Operation, str], who: dict[str, Any]
) -> None:
    decision = ask(tuple(rules), *question, **who)
    sections = {section for section, operations in OPERATIONS_OF.items() if question[0] in operations}
    if decision.verdict is not DENY and any(RuleSet(tuple(rules)).is_allow_list(section) for section in sections):
        assert decision.rule is not None
        assert decision.rule.action is not Action.BLOCK


@given(st.lists(rules_of(), max_size=6), QUESTIONS, WHO)
def test_knowing_less_never_allows_more(
    rules: list[Rule], question: tuple[Operation, str], who: dict[str, Any]
) -> None:
    """A rule set of one action answers no more kindly where less is known."""
    for action in (Action.ALLOW, Action.BLOCK):
        alike = tuple(
            Rule(rule.section, rule.kind, rule.value, action, rule.origin, sources=rule.sources,
                 terminal=rule.terminal, match=rule.match)
            for rule in rules
        )  # fmt: skip
        unknown = ask(alike, *question, **who | {"terminal": None, "beyond_quota": None})
        assert unknown.verdict >= ask(alike, *question, **who).verdict


@st.composite
def path_rules(draw: st.DrawFn) -> Rule:
    """Any rule about one small directory, with every condition there is."""
    kind, value = draw(
        st.sampled_from(
            [(ObjectKind.PATH, "/d/x"), (ObjectKind.DIRECTORY, "/d/"), (ObjectKind.PATTERN, "/d/*"),
             (ObjectKind.EXECNAME, "x"), (ObjectKind.DIRECTORY, "/")]
        )
    )  # fmt: skip
    section = draw(st.sampled_from([Section.PROCESS, Section.FILE]))
    return Rule(
        section, kind, value, draw(ACTIONS), Origin("p", str(draw(st.integers(0, 9)))), recursive=draw(st.booleans()),
        read_only=section is Section.FILE and draw(st.booleans()), owner_only=draw(st.booleans()),
        sources=draw(SOURCES), terminal=draw(st.sampled_from([None, False])),
        allowed_arguments=draw(st.sampled_from([(), ("-a",)])) if section is Section.PROCESS else (),
    )  # fmt: skip


ACCESSES = st.fixed_dictionaries(
    {
        "operation": st.sampled_from([Operation.EXECUTE, Operation.READ, Operation.WRITE, Operation.MAP]),
        "source": st.sampled_from([None, "/bin/a", "/bin/c"]),
        "owner": st.booleans(),
        "terminal": st.sampled_from([None, False, True]),
        "arguments": st.sampled_from([None, (), ("-a",), ("-b",)]),
    }
)


def access(rules: tuple[Rule, ...], said: dict[str, Any]) -> Decision:
    known = Circumstances(arguments=said["arguments"], terminal=said["terminal"])
    matching = RuleIndex(rules).matching("/d/x")
    return decide(RuleSet(rules), matching, said["operation"], source=said["source"], owner=said["owner"], known=known)


@given(st.lists(path_rules(), max_size=6), st.randoms(use_true_random=False), ACCESSES)
def test_the_order_of_rules_with_conditions_never_matters(
    rules: list[Rule],
    random: Any,  # noqa: ANN401
    said: dict[str, Any],
) -> None:
    shuffled = list(rules)
    random.shuffle(shuffled)
    assert access(tuple(rules), said).verdict is access(tuple(shuffled), said).verdict


@given(st.lists(path_rules(), max_size=6), path_rules(), ACCESSES)
def test_one_more_block_rule_about_files_never_allows_more(
    rules: list[Rule], extra: Rule, said: dict[str, Any]
) -> None:
    """But for what a source with rights of its own maps, which depends on what nobody can write."""
    block = replace(extra, action=Action.BLOCK)
    before, after = access(tuple(rules), said), access((*rules, block), said)
    rights = RuleSet((*rules, block)).privileged_sources()
    if said["operation"] is not Operation.MAP or said["source"] not in rights:
        assert after.verdict >= before.verdict


@given(st.lists(path_rules(), max_size=6), ACCESSES)
def test_a_condition_only_ever_takes_away(rules: list[Rule], said: dict[str, Any]) -> None:
    """What an Allow rule without its conditions refuses, it refuses with them."""
    allowing = tuple(replace(rule, action=Action.ALLOW) for rule in rules)
    plain = tuple(
        replace(rule, read_only=False, owner_only=False, terminal=None, allowed_arguments=()) for rule in allowing
    )
    assert access(allowing, said).verdict >= access(plain, said).verdict


def test_what_a_block_rule_makes_unwritable_a_source_with_rights_may_map() -> None:
    grant = Rule(Section.FILE, ObjectKind.PATH, "/secret", Action.ALLOW, Origin("p", "f"), sources=("/bin/s",))
    everything = Rule(Section.FILE, ObjectKind.DIRECTORY, "/", Action.ALLOW, Origin("p", "f"), recursive=True)
    block = Rule(Section.FILE, ObjectKind.PATH, "/d/x", Action.BLOCK, Origin("p", "f"), read_only=True)
    said = {"operation": Operation.MAP, "source": "/bin/s", "owner": True, "terminal": False, "arguments": None}
    assert access((grant, everything), said).verdict is DENY
    assert access((grant, everything, block), said).verdict is ALLOW
