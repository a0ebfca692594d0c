# SPDX-License-Identifier: Apache-2.0
"""What people write for what they ask about, and which rules it falls under."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hauberk.policy import globs, objects
from hauberk.policy.index import RuleIndex
from hauberk.policy.objects import Call, Device, Name, Object, QuestionError, Socket, Word
from hauberk.policy.rules import Action, ObjectKind, Operation, Origin, Peer, Rule, Section

SOCKET, RESOLVE, CAPABILITY, SYSCALL = (
    Operation.SOCKET, Operation.RESOLVE, Operation.CAPABILITY, Operation.SYSCALL,
)  # fmt: skip
PRESET, ATTACH, SEND, READ = Operation.PRESET, Operation.ATTACH, Operation.SEND, Operation.READ


@pytest.mark.parametrize(
    ("operation", "text", "expected"),
    [
        (SOCKET, "tcp", Socket(frozenset(("tcp", "stream")))),
        (SOCKET, "UDP", Socket(frozenset(("udp", "dgram")))),
        (SOCKET, "icmp", Socket(frozenset(("icmp", "raw")))),
        (SOCKET, "dgram/icmpv6", Socket(frozenset(("icmpv6", "dgram")))),
        (SOCKET, "seqpacket/sctp", Socket(frozenset(("sctp", "seqpacket")))),
        (SOCKET, "dccp", Socket(frozenset(("dccp",)))),
        (RESOLVE, "WWW.Example.com.", Name("www.example.com")),
        (RESOLVE, "_srv.x", Name("_srv.x")),
        (CAPABILITY, "net_raw", Word("net_raw")),
        (CAPABILITY, "CAP_SYS_ADMIN", Word("sys_admin")),
        (PRESET, "protectProc", Word("protectProc")),
        (SYSCALL, "unlink", Call("unlink")),
        (SYSCALL, "unlink /etc/a b", Call("unlink", "/etc/a b")),
        (ATTACH, "mass-storage", Device(8)),
        (ATTACH, "8/6/80@2", Device(8, 6, 80, 2)),
        (ATTACH, "0x03/1", Device(3, 1)),
        (ATTACH, "AUDIO", Device(1)),
        (ATTACH, "Audio/Video", Device(16)),
        (ATTACH, "AUDIO/VIDEO/1/2@3", Device(16, 1, 2, 3)),
        (ATTACH, "AUDIO/1", Device(1, 1)),
        (SEND, "10.0.0.1", Peer("10.0.0.1")),
        (SEND, "10.0.0.1 TCP/443", Peer("10.0.0.1", "tcp", 443)),
        (SEND, "fd00:0::1 udp/53 on wg0", Peer("fd00::1", "udp", 53, "wg0")),
        (SEND, "10.0.0.1 on eth0", Peer("10.0.0.1", interface="eth0")),
        (SEND, "10.0.0.1 icmp/8", Peer("10.0.0.1", "icmp", icmp_type=8)),
        (SEND, "::ffff:10.0.0.1 icmp/8", Peer("::ffff:a00:1", "icmp", icmp_type=8)),
        (SEND, "fd00::1 ICMPv6/128 on eth0", Peer("fd00::1", "icmpv6", None, "eth0", 128)),
        (SEND, "fd00::1 icmpv6", Peer("fd00::1", "icmpv6")),
        (SEND, "10.0.0.1 tcp", Peer("10.0.0.1", "tcp")),
        (SEND, "10.0.0.1 tcp/0", Peer("10.0.0.1", "tcp", 0)),
        (SEND, "10.0.0.1 vrrp", Peer("10.0.0.1", "vrrp")),
        (SEND, "10.0.0.1 89", Peer("10.0.0.1", "89")),
        (SEND, "10.0.0.1 udp/67 from 68", Peer("10.0.0.1", "udp", 67, source_port=68)),
        (SEND, "10.0.0.1 name WWW.Example.com.,b", Peer("10.0.0.1", names=("www.example.com", "b"))),
        (SEND, "10.0.0.1 entity world,cluster", Peer("10.0.0.1", entities=("world", "cluster"))),
        (SEND, "10.0.0.1 labels tier=,app=web", Peer("10.0.0.1", labels=(("app", "web"), ("tier", "")))),
        (SEND, "10.0.0.1 Namespace shop", Peer("10.0.0.1", labels=(), namespace="shop")),
        (
            SEND,
            " 10.0.0.1  namespace shop labels a=b on e ",
            Peer("10.0.0.1", interface="e", labels=(("a", "b"),), namespace="shop"),
        ),
        (READ, "/a b", "/a b"),
        (READ, "/", "/"),
    ],
)
def test_what_a_text_means(operation: Operation, text: str, expected: Object) -> None:
    assert objects.read(operation, text) == expected


@pytest.mark.parametrize(
    ("operation", "text", "words"),
    [
        (SOCKET, "all", "a protocol or socket type"),
        (SOCKET, "", "a protocol or socket type"),
        (SOCKET, "tcp/udp", "a protocol or socket type"),
        (SOCKET, "http", "a protocol or socket type"),
        (RESOLVE, "", "a domain name"),
        (RESOLVE, "a..b", "a domain name"),
        (RESOLVE, "*.a", "a domain name"),
        (CAPABILITY, "root", "one of chown"),
        (PRESET, "Exec", "one of anonymousMapExec"),
        (SYSCALL, "", "a system call"),
        (SYSCALL, "unlink etc", "an absolute path"),
        (SYSCALL, "un-link", "a system call"),
        (ATTACH, "ALL", "a device such as"),
        (ATTACH, "0", "a device such as"),
        (ATTACH, "8/256", "a device such as"),
        (ATTACH, "8/6/80/1", "a device such as"),
        (ATTACH, "8@x", "a device such as"),
        (ATTACH, "8@", "a device such as"),
        (ATTACH, "STICK", "a device such as"),
        (SEND, "10.0.0.1/8", "a peer such as"),
        (SEND, "example.com", "a peer such as"),
        (SEND, "10.0.0.1 tcp/", "a peer such as"),
        (SEND, "10.0.0.1 tcp/0443", "a peer such as"),
        (SEND, "10.0.0.1 htcp/443", "a peer such as"),
        (SEND, "10.0.0.1 icmp/256", "a peer such as"),
        (SEND, "10.0.0.1 icmpv6/128", "a peer such as"),
        (SEND, "fd00::1 icmp/8", "a peer such as"),
        (SEND, "fe80::1%eth0", "a peer such as"),
        (SEND, "10.0.0.1 vrrp/1", "a peer such as"),
        (SEND, "10.0.0.1 256", "a peer such as"),
        (SEND, "10.0.0.1 on", "a peer such as"),
        (SEND, "10.0.0.1 on a on b", "a peer such as"),
        (SEND, "10.0.0.1 from 65536", "a peer such as"),
        (SEND, "10.0.0.1 labels a", "a peer such as"),
        (SEND, "10.0.0.1 labels a=b,", "a peer such as"),
        (SEND, "10.0.0.1 namespace ../a", "a peer such as"),
        (SEND, "10.0.0.1 on a b", "a peer such as"),
        (SEND, "10.0.0.1 name a..b", "a domain name"),
        (SEND, "10.0.0.1 entity all", "one of world"),
        (SEND, "10.0.0.1 entity wrold", "one of world"),
        (SEND, "10.0.0.1 tcp/65536", "a peer such as"),
        (SEND, "", "a peer such as"),
        (READ, "x", "an absolute path"),
        (READ, "/x/", "an absolute path"),
        (READ, "/x//y", "an absolute path"),
        (READ, "/x/../y", "an absolute path"),
        (READ, "/x\0", "an absolute path"),
    ],
)
def test_what_means_nothing_is_refused(operation: Operation, text: str, words: str) -> None:
    with pytest.raises(QuestionError, match=words) as caught:
        objects.read(operation, text)
    said = str(caught.value)
    assert f"found {text!r}" in said or "found the path" in said or f"found {text.rsplit(maxsplit=1)[-1]!r}" in said


@given(st.sampled_from(Operation), st.text(max_size=12))
def test_every_text_is_read_or_refused(operation: Operation, text: str) -> None:
    with contextlib.suppress(QuestionError):
        objects.read(operation, text)


def test_a_file_is_no_other_object() -> None:
    rule = Rule(Section.CAPABILITIES, ObjectKind.CAPABILITY, "bpf", Action.BLOCK, Origin("p", "f"))
    assert not objects.matches(rule, "/bpf")
    assert RuleIndex((rule,)).matching_object("/bpf") == ()
    assert RuleIndex((rule,)).matching_object(Word("bpf")) == (rule,)


def test_a_rule_without_its_match_matches_nothing() -> None:
    kinds: dict[Section, tuple[ObjectKind, Object]] = {
        Section.SYSCALLS: (ObjectKind.SYSCALL, Call("unlink")),
        Section.DEVICE: (ObjectKind.DEVICE, Device(8)),
        Section.EGRESS: (ObjectKind.PEER, Peer("10.0.0.1")),
    }
    for section, (kind, asked) in kinds.items():
        rule = Rule(section, kind, "x", Action.BLOCK, Origin("p", "f"))
        assert not objects.matches(rule, asked)
        assert RuleIndex((rule,)).matching_object(asked) == ()
        assert not any(rule.specificity())


def test_files_are_found_by_the_same_index() -> None:
    rule = Rule(Section.FILE, ObjectKind.DIRECTORY, "/etc/", Action.BLOCK, Origin("p", "f"))
    assert RuleIndex((rule,)).matching_object("/etc/passwd") == (rule,)


@pytest.mark.parametrize(
    ("name", "asked_for"),
    [
        ("example.com", ("example.com",)),
        ("a.cluster.local", ("a.cluster.local", "a")),
        ("a.svc.cluster.local", ("a.svc.cluster.local", "a", "a.svc")),
        ("a.b.svc.cluster.local", ("a.b.svc.cluster.local", "a.b", "a", "a.b.svc")),
        ("cluster.local", ("cluster.local",)),
    ],
)
def test_what_a_resolver_in_kubernetes_asks_for(name: str, asked_for: tuple[str, ...]) -> None:
    assert objects.names(name) == asked_for


def test_what_is_no_file_names_no_path() -> None:
    for kind in ObjectKind:
        rule = Rule(Section.FILE, kind, "/x", Action.BLOCK, Origin("p", "f"))
        assert globs.matches(rule, "/x") is (kind in {ObjectKind.PATH, ObjectKind.PATTERN, ObjectKind.DIRECTORY})


WORDS = st.text("ab.-", min_size=1, max_size=3)
PEERS = st.builds(
    Peer,
    st.ip_addresses().map(str),
    st.sampled_from(["", "esp", "47"]),
    interface=st.sampled_from(["", "eth0", "on"]),
    names=st.lists(st.sampled_from(["a", "www.example.com"]), unique=True).map(tuple),
    entities=st.lists(st.sampled_from(["world", "host", "cluster"]), unique=True).map(tuple),
    labels=st.none() | st.dictionaries(WORDS, WORDS | st.just(""), max_size=2).map(lambda d: tuple(sorted(d.items()))),
    source_port=st.none() | st.integers(0, 65535),
) | st.builds(
    Peer, st.ip_addresses(v=4).map(str), st.sampled_from(["tcp", "udp", "sctp"]), st.none() | st.integers(0, 65535)
) | st.builds(
    Peer, st.ip_addresses(v=6).map(str), st.just("icmpv6"), icmp_type=st.none() | st.integers(0, 255), interface=WORDS,
    labels=st.just((("app", "web"),)), namespace=st.sampled_from(["", "shop"]),
)  # fmt: skip


def as_read(peer: Peer) -> Peer:
    """Give a peer as a text can say it: a workload of which nothing is known is in the default namespace."""
    if peer.labels == () and not peer.namespace:
        peer = dataclasses.replace(peer, namespace="default")
    if peer.address.startswith("::ffff:") and peer.protocol == "icmpv6":
        peer = dataclasses.replace(peer, address="fd00::1")
    return peer


@given(PEERS.map(as_read))
def test_a_peer_is_read_as_it_is_written(peer: Peer) -> None:
    text = objects.peer_text(peer)
    assert objects.read(SEND, text) == peer
    values = {
        "address": peer.address,
        "protocol": peer.protocol or None,
        "port": peer.port,
        "icmpType": peer.icmp_type,
        "interface": peer.interface or None,
        "sourcePort": peer.source_port,
        "names": list(peer.names) or None,
        "entities": list(peer.entities) or None,
        "labels": dict(peer.labels or ()) or None,
        "namespace": peer.namespace or None,
    }
    described = objects.peer_from_json({name: value for name, value in values.items() if value is not None})
    assert objects.read(SEND, described) == peer


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"port": 443},
        {"address": "10.0.0.1", "colour": "red"},
        {"address": 7.5},
        {"address": True},
        {"address": "10.0.0.1 on eth0"},
        {"address": "10.0.0.1", "interface": "eth0 name x"},
        {"address": "10.0.0.1", "names": ["a,b"]},
        {"address": "10.0.0.1", "names": []},
        {"address": "10.0.0.1", "labels": {"a": "b c"}},
        {"address": "10.0.0.1", "port": 443},
        {"address": "10.0.0.1", "protocol": None},
    ],
)
def test_an_object_that_describes_no_peer_is_refused(value: dict[str, object]) -> None:
    with pytest.raises(QuestionError, match=r"expected .*(address|protocol|interface|names|labels)"):
        objects.read(SEND, objects.peer_from_json(value))
