# SPDX-License-Identifier: Apache-2.0
"""What people write for what they ask about, and which rules it falls under."""

from __future__ import annotations

import contextlib

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
        (SEND, "10.0.0.1 tcp/0", "a peer such as"),
        (SEND, "10.0.0.1 tcp/65536", "a peer such as"),
        (SEND, "10.0.0.1 icmp/1", "a peer such as"),
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
    assert f"found {text!r}" in str(caught.value) or "found the path" in str(caught.value)


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
        assert rule.specificity() == (0,) or section is Section.SYSCALLS


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
