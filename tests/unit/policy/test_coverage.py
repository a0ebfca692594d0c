# SPDX-License-Identifier: Apache-2.0
"""What no engine enforces is named, and what is held in its place never grants more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest_agent.engines.bpf_lsm.plan import compile_table, fingerprint
from guest_agent.engines.bpf_lsm.plan import lookup as ask_table
from hauberk.policy import globs, objects
from hauberk.policy.coverage import (
    ENFORCED_SECTIONS,
    ENGINE,
    NFTABLES,
    in_force,
    packets_in_force,
    report,
    unenforced,
    without,
)
from hauberk.policy.rules import (
    GRANTING_SECTIONS,
    PACKET_SECTIONS,
    Action,
    Circumstances,
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
    Verdict,
    decide,
)
from hauberk.policy.selectors import Scope

ORIGIN = Origin("shop/p", "spec.process.matchPaths[0]", "p.yaml", 7, 3)
PROGRAM = Rule(Section.PROCESS, ObjectKind.PATH, "/usr/bin/python3", Action.ALLOW, ORIGIN)
DIRECTORY = Rule(Section.PROCESS, ObjectKind.DIRECTORY, "/usr/bin/", Action.ALLOW, ORIGIN, recursive=True)
OTHER_SECTIONS = [section for section in Section if section not in ENFORCED_SECTIONS | PACKET_SECTIONS]


def verdict(rules: tuple[Rule, ...], path: str, operation: Operation) -> Verdict:
    matching = [rule for rule in rules if globs.matches(rule, path)]
    return decide(RuleSet(rules), matching, operation, source=None, owner=True).verdict


def test_process_and_file_rules_for_containers_are_enforced() -> None:
    assert ENFORCED_SECTIONS == GRANTING_SECTIONS
    for section in ENFORCED_SECTIONS:
        rule = replace(PROGRAM, section=section, sources=("/bin/a",), owner_only=True, read_only=True, terminal=True)
        assert unenforced(rule, Scope.CONTAINER) is None
        assert in_force([rule]) == (rule,)
    assert report([PROGRAM, DIRECTORY], Scope.CONTAINER) == ()


@pytest.mark.parametrize("section", OTHER_SECTIONS, ids=str)
def test_other_sections_are_named_and_not_held(section: Section) -> None:
    rule = replace(PROGRAM, section=section, value="x")
    reason = unenforced(rule, Scope.CONTAINER)
    assert reason is not None
    assert section.value in reason
    assert in_force([rule, PROGRAM]) == (PROGRAM,)
    [told] = report([rule, PROGRAM], Scope.CONTAINER)
    assert told.instead == "it has no effect"
    assert str(told).startswith("p.yaml:7:3: shop/p spec.process.matchPaths[0]: Allow ")


@pytest.mark.parametrize("section", sorted(set(Section) - PACKET_SECTIONS), ids=str)
def test_of_what_is_said_of_hosts_only_packets_are_enforced(section: Section) -> None:
    rule = replace(PROGRAM, section=section)
    [told] = report([rule], Scope.HOST)
    assert "host" in told.reason
    assert told.instead == "it has no effect"


@pytest.mark.parametrize("section", sorted(PACKET_SECTIONS), ids=str)
@pytest.mark.parametrize("scope", Scope, ids=str)
def test_rules_about_packets_are_enforced_where_there_is_the_engine(section: Section, scope: Scope) -> None:
    rule = Rule(section, ObjectKind.PEER, "10.0.0.0/8", Action.BLOCK, ORIGIN, match=PeerMatch(("10.0.0.0/8",)))
    assert report([rule], scope) == ()
    assert packets_in_force([rule, PROGRAM]) == (rule,)
    assert in_force([rule, PROGRAM]) == (PROGRAM,)
    [told] = report([rule], scope, frozenset({ENGINE}))
    assert "nftables" in told.reason
    assert told.instead == "it has no effect"


def test_rules_about_paths_need_their_engine() -> None:
    [told] = report([PROGRAM], Scope.CONTAINER, frozenset({NFTABLES}))
    assert "bpf_lsm" in told.reason
    assert told.instead == "it has no effect"


CONDITIONS = [{"allowed_arguments": ("-m", "x")}, {"terminal": False}, {"terminal": False, "allowed_arguments": ("x",)}]


@pytest.mark.parametrize("condition", CONDITIONS, ids=str)
def test_an_allow_rule_with_a_condition_refuses_and_keeps_the_allow_list(condition: dict[str, object]) -> None:
    rule = replace(PROGRAM, **condition)  # type: ignore[arg-type] # one field of a rule or two
    [told] = report([rule], Scope.CONTAINER)
    assert told.instead.startswith("what it allows is refused")
    held = in_force([rule])
    assert not any(one.conditional for one in held)
    assert RuleSet(held).is_allow_list(Section.PROCESS)
    assert verdict(held, "/usr/bin/python3", Operation.EXECUTE) is Verdict.DENY
    assert verdict(held, "/usr/bin/other", Operation.EXECUTE) is Verdict.DENY
    # a wider rule that allows does not let it through either
    wider = in_force([rule, DIRECTORY])
    assert verdict(wider, "/usr/bin/python3", Operation.EXECUTE) is Verdict.DENY
    assert verdict(wider, "/usr/bin/python3", Operation.MAP) is Verdict.DENY
    assert verdict(wider, "/usr/bin/other", Operation.EXECUTE) is Verdict.ALLOW
    assert all(one.origin == ORIGIN for one in held)


def test_block_rules_refuse_without_their_condition_and_audit_rules_go() -> None:
    block = replace(PROGRAM, action=Action.BLOCK, terminal=False)
    assert in_force([block]) == (replace(block, terminal=None),)
    assert "either side" in report([block], Scope.CONTAINER)[0].instead
    audit = replace(PROGRAM, action=Action.AUDIT, allowed_arguments=("x",))
    assert in_force([audit]) == ()
    assert "left out" in report([audit], Scope.CONTAINER)[0].instead


def test_a_profile_is_shown_in_one_line_by_its_beginning() -> None:
    rule = replace(PROGRAM, section=Section.APPARMOR, kind=ObjectKind.PROFILE, value="deny /a rw,\n" * 40)
    [told] = report([rule], Scope.CONTAINER)
    assert told.rule.startswith("Allow apparmor profile deny /a rw, deny /a")
    assert len(told.rule) < 120
    assert "\n" not in str(told)
    hostile = replace(rule, value="a\x1b[2J\nb", sources=("/bin/\x9bx",))
    assert str(report([hostile], Scope.CONTAINER)[0]).isprintable()
    assert str(report([replace(rule, origin=Origin("p", "f"))], Scope.CONTAINER)[0]).startswith("p f: ")


RULES = st.builds(
    Rule,
    section=st.sampled_from(sorted(ENFORCED_SECTIONS)),
    kind=st.just(ObjectKind.PATH),
    value=st.sampled_from(["/d/a", "/d/b"]),
    action=st.sampled_from(Action),
    origin=st.just(ORIGIN),
    read_only=st.booleans(),
    owner_only=st.booleans(),
    sources=st.sampled_from([(), ("/s",)]),
    allowed_arguments=st.sampled_from([(), ("x",)]),
    terminal=st.sampled_from([None, True, False]),
) | st.builds(
    Rule,
    section=st.sampled_from(sorted(ENFORCED_SECTIONS)),
    kind=st.just(ObjectKind.DIRECTORY),
    value=st.just("/d/"),
    action=st.sampled_from(Action),
    origin=st.just(ORIGIN),
    read_only=st.booleans(),
    terminal=st.sampled_from([None, True, False]),
)
KNOWN = [
    Circumstances(arguments=arguments, terminal=terminal)
    for arguments in ((), ("x",), ("y",))
    for terminal in (False, True)
]


@given(
    st.lists(RULES, min_size=1, max_size=5).map(tuple),
    st.sampled_from(["/d/a", "/d/b", "/d/c"]),
    st.sampled_from([Operation.EXECUTE, Operation.READ, Operation.WRITE]),
    st.sampled_from([None, "/s"]),
    st.booleans(),
)
def test_what_is_held_grants_nothing_that_is_not_written(
    rules: tuple[Rule, ...], path: str, operation: Operation, source: str | None, owner: bool  # noqa: FBT001
) -> None:  # fmt: skip
    """What the written rules refuse under some circumstances, the held ones and their table refuse under all."""

    def of(some: tuple[Rule, ...], known: Circumstances) -> Verdict:
        matching = [rule for rule in some if globs.matches(rule, path)]
        return decide(RuleSet(some), matching, operation, source=source, owner=owner, known=known).verdict

    held = in_force(rules)
    assert in_force(held) == held
    written = max(of(rules, known) for known in KNOWN)
    answer = of(held, Circumstances())
    if written is Verdict.DENY:
        assert answer is Verdict.DENY
    table = compile_table(RuleSet(rules))
    number = 1 + table.sources.index(source) if source in table.sources else 0
    assert ask_table(table.blob, path.encode(), number, operation, owner) is answer
    assert fingerprint(RuleSet(rules)) == fingerprint(RuleSet(held))


NAME, WORLD = PeerGroup("name", "a.example.com"), PeerGroup("entity", "world")
WEB = PeerGroup.of_workloads(PeerSelector((LabelRequirement("app", "In", ("web",)),)))


def packets(action: Action, **parts: object) -> Rule:
    match = PeerMatch(**parts)  # type: ignore[arg-type] # the fields of a match
    return Rule(Section.EGRESS, ObjectKind.PEER, "x", action, ORIGIN, match=match)


@pytest.mark.parametrize("group", [NAME, WEB])
@pytest.mark.parametrize("scope", Scope)
def test_only_an_allow_rule_may_name_what_is_never_known_to_be_all(group: PeerGroup, scope: Scope) -> None:
    allow = packets(Action.ALLOW, groups=(group,))
    assert unenforced(allow, scope) is None
    assert packets_in_force([allow]) == (allow,)
    block = packets(Action.BLOCK, cidrs=("10.0.0.0/8",), groups=(group, WORLD), ports=((80, 80, "tcp"),))
    [told] = report([block], scope)
    assert told.reason.endswith("so only an Allow rule may name such peers")
    assert told.instead == "it refuses every peer"
    [held] = packets_in_force([block])
    assert held.match == PeerMatch(ports=((80, 80, "tcp"),))
    assert held.message
    audit = packets(Action.AUDIT, groups=(group,))
    assert "does not tell of them" in report([audit], scope)[0].instead
    [held] = packets_in_force([audit])
    assert held.match == PeerMatch(nothing=True)
    [held] = packets_in_force([packets(Action.AUDIT, groups=(group, WORLD))])
    assert held.match == PeerMatch(groups=(WORLD,))


def test_entities_are_left_to_who_knows_them() -> None:
    block = packets(Action.BLOCK, groups=(WORLD,))
    assert unenforced(block, Scope.HOST) is None
    assert packets_in_force([block]) == (block,)
    assert without(block, [WORLD]).match == PeerMatch()
    assert without(block, [NAME]) is block
    assert without(packets(Action.ALLOW, groups=(WORLD,)), {WORLD}).match == PeerMatch(nothing=True)
    assert without(packets(Action.ALLOW, cidrs=("::/0",), groups=(WORLD,)), {WORLD}).match == PeerMatch(("::/0",))
    assert without(PROGRAM, [WORLD]) is PROGRAM


def test_the_loopback_interface_is_no_peer() -> None:
    [told] = report([packets(Action.BLOCK, interfaces=("eth0", "lo"))], Scope.HOST)
    assert told.reason == "no network policy is about the loopback interface"
    assert told.instead == "it has no effect there"
    assert report([packets(Action.ALLOW, interfaces=("lo",))], Scope.HOST) == ()


@given(
    st.lists(
        st.builds(
            replace,
            st.just(packets(Action.ALLOW)),
            action=st.sampled_from(Action),
            default_deny=st.sampled_from((None, True, False)),
            match=st.builds(
                PeerMatch,
                cidrs=st.sampled_from(((), ("10.0.0.0/8",))),
                groups=st.lists(st.sampled_from((NAME, WORLD, WEB)), max_size=2, unique=True).map(tuple),
                ports=st.sampled_from(((), ((80, 80, "tcp"),))),
                quota=st.sampled_from((None, (1, 1, "pod"))),
            ),
        ),
        max_size=5,
    ).map(tuple),
    st.sampled_from(
        ["10.0.0.1 tcp/80", "11.0.0.1", "11.0.0.1 name a.example.com", "11.0.0.1 entity world labels app=web"]
    ),
    st.booleans(),
)
def test_what_is_held_of_packets_grants_nothing_that_is_not_written(
    rules: tuple[Rule, ...], text: str, beyond: bool  # noqa: FBT001
) -> None:  # fmt: skip
    peer = objects.read(Operation.SEND, text)
    assert isinstance(peer, Peer)

    def of(some: tuple[Rule, ...], *, strangers: bool = False) -> Verdict:
        """Decide; strangers: of incomplete groups, nobody is known to be a member."""
        known = replace(peer, names=(), labels=None) if strangers else peer
        asked = Circumstances(peer=known, beyond_quota=beyond)
        matching = [rule for rule in some if objects.matches(rule, known)]
        return decide(RuleSet(some), matching, Operation.SEND, source=None, owner=True, known=asked).verdict

    held = packets_in_force(rules)
    assert packets_in_force(held) == held
    assert report(held, Scope.CONTAINER) == ()
    if of(rules) is Verdict.DENY:
        assert of(held) is Verdict.DENY
        assert of(held, strangers=True) is Verdict.DENY
    assert RuleSet(held).is_allow_list(Section.EGRESS) is RuleSet(rules).is_allow_list(Section.EGRESS)


GUIDE = Path(__file__).parents[3] / "docs" / "enforcement.md"
ROWS = {
    Section.PROCESS: "`process`",
    Section.FILE: "`file`",
    Section.NETWORK: "`network`",
    Section.DNS: "`matchDNSQueries`",
    Section.CAPABILITIES: "`capabilities`",
    Section.SYSCALLS: "`syscalls`",
    Section.PRESETS: "`presets`",
    Section.DEVICE: "`device`",
    Section.INGRESS: "`ingress`",
    Section.EGRESS: "`egress`",
    Section.APPARMOR: "`apparmor`",
}


@pytest.mark.parametrize("section", Section, ids=str)
def test_the_guide_names_the_engine_of_every_section(section: Section) -> None:
    table = GUIDE.read_text("utf-8").partition("## By which engine")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")]
    name = ROWS[section]
    _, containers, hosts = next(
        row for row in (*(row for row in rows if row[0].startswith(name)), *rows) if name in row[0]
    )
    enforced = unenforced(replace(PROGRAM, section=section), Scope.CONTAINER) is None
    assert (containers == f"`{NFTABLES if section in PACKET_SECTIONS else ENGINE}`") is enforced
    assert enforced or containers in {"", "no"}
    enforced = unenforced(replace(PROGRAM, section=section), Scope.HOST) is None
    assert hosts == f"`{NFTABLES}`" if enforced else hosts in {"", "no"}
