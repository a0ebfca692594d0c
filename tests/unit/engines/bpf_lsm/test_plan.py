# SPDX-License-Identifier: Apache-2.0
"""The table against the reference: what the walk answers is what ``decide`` says about the rules that match."""

from __future__ import annotations

import random
import struct
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guest_agent.engines.bpf_lsm import automaton, plan
from guest_agent.engines.bpf_lsm.plan import (
    PlanError,
    Table,
    TableError,
    compile_table,
    directory_change,
    fingerprint,
    lookup,
    source_of,
)  # fmt: skip
from hauberk.policy.globs import matches, to_bytes
from hauberk.policy.rules import (
    OPERATIONS_OF,
    PATH_KINDS,
    PATH_SECTIONS,
    Action,
    ObjectKind,
    Operation,
    Origin,
    Rule,
    RuleSet,
    Section,
    Verdict,
    decide,
    implied_rules,
)  # fmt: skip

PATH_OPERATIONS = tuple(operation for section in sorted(PATH_SECTIONS) for operation in OPERATIONS_OF[section])
ORIGIN = Origin("test", "spec.file.matchPaths[0]")
SOURCES = ("/a/b", "/b", "/c/a")
NAMES = st.sampled_from(("a", "b", "c", "ab", "a.so", "é", "a b"))
PATHS = st.lists(NAMES, min_size=1, max_size=4).map(lambda names: "/" + "/".join(names))
PATTERNS = st.lists(
    st.sampled_from(("/", "a", "b", "*", "**", "?", "[a-c]", "[^a]", "{a,b}", "{,/c}", "\\*", ".so")),
    min_size=1,
    max_size=6,
).map(lambda parts: "/" + "".join(parts))
VALUES = {
    ObjectKind.PATH: PATHS,
    ObjectKind.DIRECTORY: st.one_of(st.just("/"), PATHS.map(lambda path: path + "/")),
    ObjectKind.PATTERN: PATTERNS,
    ObjectKind.EXECNAME: NAMES,
}


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    """Any rule over a small world of names."""
    kind = draw(st.sampled_from(sorted(PATH_KINDS)))
    section = draw(st.sampled_from(sorted(PATH_SECTIONS)))
    return Rule(
        section,
        kind,
        draw(VALUES[kind]),
        draw(st.sampled_from(list(Action))),
        ORIGIN,
        recursive=kind is ObjectKind.DIRECTORY and draw(st.booleans()),
        read_only=section is Section.FILE and draw(st.booleans()),
        owner_only=draw(st.booleans()),
        sources=tuple(draw(st.lists(st.sampled_from(SOURCES), unique=True, max_size=2))) if draw(st.booleans()) else (),
        operations=draw(st.sampled_from(((), (), (), OPERATIONS_OF[section][1:]))),
        implied=draw(st.sampled_from((False, False, False, True))),
    )


RULE_SETS = st.builds(RuleSet, st.lists(rules(), max_size=8).map(tuple), st.sampled_from(list(Verdict)))
NEAR = st.lists(
    st.sampled_from(("/a", "/b", "/c", "/ab", "/a.so", "/é", "a", "/", "*", ".so", "/x\n", "\udcff")),
    min_size=1,
    max_size=6,
).map(lambda parts: to_bytes("/" + "".join(parts).lstrip("/")))


def rule(
    kind: ObjectKind,
    value: str,
    action: Action = Action.BLOCK,
    section: Section = Section.FILE,
    **more: Any,  # noqa: ANN401
) -> Rule:
    """Make a rule; ``more`` are fields of Rule."""
    return Rule(section, kind, value, action, ORIGIN, **more)


def answers(rule_set: RuleSet, table: Table, path: bytes) -> tuple[list[Verdict], list[Verdict]]:
    """Everything the table says about a path, and everything the reference says."""
    matching = [one for one in rule_set.rules if matches(one, path)]
    found: list[Verdict] = []
    expected: list[Verdict] = []
    for operation in PATH_OPERATIONS:
        for owner in (False, True):
            for number, source in enumerate((None, *table.sources)):
                found.append(lookup(table.blob, path, number, operation, owner))
                expected.append(decide(rule_set, matching, operation, source=source, owner=owner).verdict)
    return found, expected


@settings(max_examples=250, suppress_health_check=[HealthCheck.too_slow])
@given(RULE_SETS, st.lists(NEAR, min_size=1, max_size=8), st.booleans())
def test_the_walk_answers_what_decide_says(rule_set: RuleSet, paths: list[bytes], implied: bool) -> None:  # noqa: FBT001
    """Every operation, owner and source, on paths near the rules and on the rules' own values."""
    if implied:
        rule_set = replace(rule_set, rules=rule_set.rules + implied_rules(rule_set.rules))
    table = compile_table(rule_set)
    own = [to_bytes(one.value.rstrip("/") or "/") for one in rule_set.rules if one.value.startswith("/")]
    for path in {*paths, *own, *(value + b"/a" for value in own), *map(to_bytes, SOURCES), b"/", b"/usr/lib/a.so"}:
        found, expected = answers(rule_set, table, path)
        assert found == expected, path


@given(RULE_SETS, st.randoms(use_true_random=False))
def test_the_bytes_depend_on_the_rules_alone(rule_set: RuleSet, shuffler: random.Random) -> None:
    """Neither order, repetition nor origin of the rules changes the table or its fingerprint."""
    shuffled = [replace(one, origin=Origin("other", ""), message="x") for one in rule_set.rules * 2]
    shuffler.shuffle(shuffled)
    other = RuleSet(tuple(shuffled), rule_set.posture)
    assert compile_table(rule_set) == compile_table(other)
    assert fingerprint(rule_set) == fingerprint(other)


@given(RULE_SETS, RULE_SETS)
def test_equal_fingerprints_mean_equal_tables(first: RuleSet, second: RuleSet) -> None:
    """The cache key distinguishes whatever compiles differently."""
    if compile_table(first).blob != compile_table(second).blob:
        assert fingerprint(first) != fingerprint(second)


@given(RULE_SETS, PATHS)
def test_sources_are_named_where_they_are_executed(rule_set: RuleSet, path: str) -> None:
    """The exec automaton says which source a path becomes, and the file automaton never does."""
    table = compile_table(rule_set)
    assert sorted(table.sources) == sorted({source for one in rule_set.rules for source in one.sources})
    for candidate in (path, *SOURCES, path + "x"):
        number = table.sources.index(candidate) + 1 if candidate in table.sources else 0
        assert source_of(table.blob, to_bytes(candidate)) == number


def parts(
    blob: bytes,
) -> tuple[tuple[int, ...], list[tuple[int, ...]], list[tuple[int, ...]], list[tuple[int, ...]], list[int]]:
    """Read a blob by the documented layout, independently of the simulator."""
    header = struct.unpack_from("<16I", blob)
    _, _, _, _, _, states, off_states, off_outputs, off_cells, cells, off_verdicts, classes, sources, _, _, _ = header
    return (
        header,
        [struct.unpack_from("<2I", blob, 8 * (off_states + index)) for index in range(states)],
        [struct.unpack_from("<4H", blob, 8 * (off_outputs + index)) for index in range(states)],
        [struct.unpack_from("<2I", blob, 8 * (off_cells + index)) for index in range(cells)],
        list(struct.unpack_from(f"<{classes * sources}Q", blob, 8 * off_verdicts)),
    )


@given(RULE_SETS)
def test_the_layout_keeps_its_promises(rule_set: RuleSet) -> None:
    """Sinks, below classes, guards, flags and distinct rows, by plain iteration over the whole alphabet."""
    table = compile_table(rule_set)
    header, states, outputs, cells, verdicts = parts(table.blob)
    (
        magic,
        version,
        file_start,
        exec_start,
        sinks,
        n_states,
        off_states,
        off_outputs,
        off_cells,
        n_cells,
        off_verdicts,
    ) = header[:11]
    n_classes, n_sources, flags = header[11:14]
    assert (magic, version, header[14:]) == (0x314B4248, 1, (0, 0))
    assert (off_states, off_outputs, off_cells, off_verdicts) == (
        8, 8 + n_states, 8 + 2 * n_states, 8 + 2 * n_states + n_cells,
    )  # fmt: skip
    assert len(table.blob) == 8 * (off_verdicts + n_classes * n_sources)
    assert (table.states, table.classes, len(table.sources) + 1) == (n_states, n_classes, n_sources)

    def following(state: int) -> set[int]:
        base, default = states[state]
        taken = cells[base : base + 256]  # room for every byte behind every base
        assert len(taken) == 256
        return {target if check == state else default for check, target in taken[1:]}

    successors = [following(state) for state in range(n_states)]
    assert all(target < n_states for targets in successors for target in targets)
    for state in range(n_states):
        assert (successors[state] == {state}) == (state < sinks)
    assert all(check < n_states or check == 0xFFFFFFFF for check, _ in cells)
    dead = [state for state in range(sinks) if outputs[state][:2] == (0, 0)]
    assert dead in ([], [0])

    def row(number: int) -> tuple[tuple[int, ...], ...]:
        words = verdicts[number * n_sources : (number + 1) * n_sources]
        return tuple(tuple(word >> bit & 3 for bit in range(0, 64, 2)) for word in words)

    all_rows = [row(number) for number in range(n_classes)]
    assert len(set(all_rows)) == n_classes
    assert all(entry in (0, 1, 2) for one in all_rows for column in one for entry in column)

    reached: list[set[int]] = [set(targets) for targets in successors]
    changed = True
    while changed:
        changed = False
        for state in range(n_states):
            more = set().union(*(reached[target] for target in reached[state])) - reached[state]
            if more:
                reached[state] |= more
                changed = True
    assert reached[file_start] | reached[exec_start] | {file_start, exec_start} == set(range(n_states))
    for state in range(n_states):
        reached_rows = [all_rows[outputs[target][0]] for target in reached[state]]
        worst = tuple(tuple(map(max, *columns, columns[0])) for columns in zip(*reached_rows, strict=True))
        assert all_rows[outputs[state][2]] == worst
        guarded = [any(2 in column[entries] for column in worst) for entries in (slice(4, 8), slice(4))]
        assert outputs[state][3] == guarded[0] + 2 * guarded[1]

    def says_more(start: int, entries: slice) -> bool:
        return any(any(column[entries]) for state in {start} | reached[start] for column in all_rows[outputs[state][0]])

    assert bool(flags & 1) == says_more(file_start, slice(4, 8))
    assert bool(flags & 2) == says_more(exec_start, slice(0, 4))
    assert bool(flags & 4) == (bool(flags & 3) or any(not one.implied for one in rule_set.rules))


def test_without_rules_everything_is_allowed_by_one_state() -> None:
    """The smallest table: one sink, no transition used, no flags."""
    table = compile_table(RuleSet(()))
    assert (table.states, table.classes, table.sources) == (1, 1, ())
    assert parts(table.blob)[0][13] == 0
    assert all(lookup(table.blob, b"/any", 0, operation, False) is Verdict.ALLOW for operation in PATH_OPERATIONS)  # noqa: FBT003


def test_implied_rules_alone_set_no_flag() -> None:
    """A workload without policy keeps its freedom to mount, although libraries are implied to be mappable."""
    assert parts(compile_table(RuleSet(implied_rules(()))).blob)[0][13] == 0


def test_thousands_of_equal_rules_are_two_classes() -> None:
    """Classes are distinct answers, not distinct rules."""
    table = compile_table(RuleSet(tuple(rule(ObjectKind.PATH, f"/data/{number}/file") for number in range(3000))))
    assert table.classes == 2
    for path, expected in (
        (b"/data/2999/file", Verdict.DENY),
        (b"/data/3000/file", Verdict.ALLOW),
        (b"/data/2999", Verdict.ALLOW),
    ):
        assert lookup(table.blob, path, 0, Operation.READ, False) is expected  # noqa: FBT003


def test_ten_thousand_exact_paths_fit() -> None:
    """The mass case: all of them are found, their neighbours are not."""
    generator = random.Random(1)  # noqa: S311 - made-up paths, always the same
    names = [
        f"{generator.randrange(40)}/module{generator.randrange(400)}/item{generator.randrange(99)}"
        for _ in range(10_500)
    ]
    paths = sorted({f"/srv/{name}.conf" for name in names})[:10_000]
    table = compile_table(RuleSet(tuple(rule(ObjectKind.PATH, path) for path in paths)))
    assert len(table.blob) <= plan.MAXIMUM_TABLE_BYTES
    for path in paths[::97]:
        assert lookup(table.blob, path.encode(), 0, Operation.WRITE, True) is Verdict.DENY  # noqa: FBT003
        assert lookup(table.blob, path.encode() + b"x", 0, Operation.WRITE, True) is Verdict.ALLOW  # noqa: FBT003
        assert lookup(table.blob, path.encode()[:-1], 0, Operation.WRITE, True) is Verdict.ALLOW  # noqa: FBT003


def test_a_privileged_source_maps_only_what_cannot_be_written() -> None:
    """The file rules are part of the exec automaton where decide(MAP) asks for WRITE."""
    rule_set = RuleSet(
        (
            rule(ObjectKind.DIRECTORY, "/secret/", Action.ALLOW, recursive=True, sources=("/bin/vault",)),
            rule(ObjectKind.DIRECTORY, "/usr/lib/", recursive=True, read_only=True),
            rule(ObjectKind.DIRECTORY, "/tmp/", Action.ALLOW, recursive=True),
        )
    )
    blob = compile_table(rule_set).blob
    vault = source_of(blob, b"/bin/vault")
    for path in (b"/usr/lib/x.so", b"/tmp/x.so", b"/other/x.so"):
        matching = [one for one in rule_set.rules if matches(one, path)]
        expected = decide(rule_set, matching, Operation.MAP, source="/bin/vault", owner=False).verdict
        assert lookup(blob, path, vault, Operation.MAP, False) is expected  # noqa: FBT003
    assert lookup(blob, b"/tmp/x.so", vault, Operation.MAP, False) is Verdict.DENY  # noqa: FBT003
    assert lookup(blob, b"/tmp/x.so", 0, Operation.MAP, False) is Verdict.ALLOW  # noqa: FBT003


SECRET = RuleSet((rule(ObjectKind.DIRECTORY, "/secret/", recursive=True), rule(ObjectKind.PATH, "/data/key/private")))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (b"/tmp/a", b"/tmp/b", Verdict.ALLOW),  # the rest means the same behind both
        (b"/tmp/a", b"/srv/b/c", Verdict.ALLOW),
        (b"/secret/a", b"/secret/b", Verdict.DENY),  # the names themselves may not be written
        (b"/tmp/a", b"/secret/a", Verdict.DENY),
        (b"/data/key", b"/tmp/key", Verdict.DENY),  # would take the denied path out of the rule's reach
        (b"/data", b"/tmp/data", Verdict.DENY),
        (b"/tmp/key", b"/data/key", Verdict.DENY),  # would put something where it may not be written
        (b"/data/other", b"/tmp/other", Verdict.ALLOW),
    ],
)
def test_renaming_a_directory_is_a_change_of_what_is_below(old: bytes, new: bytes, expected: Verdict) -> None:
    """Both names, and what each hides below it."""
    for owner in (False, True):
        assert directory_change(compile_table(SECRET).blob, old, new, 0, owner) is expected


def test_renaming_may_cross_rules_that_deny_nothing() -> None:
    """Audit rules differ between the two places; the rename is told, and not refused."""
    blob = compile_table(RuleSet((rule(ObjectKind.DIRECTORY, "/watched/", Action.AUDIT, recursive=True),))).blob
    assert directory_change(blob, b"/tmp/a", b"/watched/a", 0, False) is Verdict.AUDIT  # noqa: FBT003
    assert directory_change(blob, b"/watched/a", b"/tmp/a", 0, False) is Verdict.AUDIT  # noqa: FBT003
    assert directory_change(blob, b"/tmp/a", b"/tmp/b", 0, False) is Verdict.ALLOW  # noqa: FBT003


def test_renaming_cannot_carry_a_program_past_a_process_rule() -> None:
    """The exec automaton is asked as well, although no file rule exists."""
    blob = compile_table(RuleSet((rule(ObjectKind.PATH, "/opt/tools/nc", section=Section.PROCESS),))).blob
    assert directory_change(blob, b"/opt/tools", b"/tmp/tools", 0, True) is Verdict.DENY  # noqa: FBT003
    assert directory_change(blob, b"/opt/other", b"/tmp/tools", 0, True) is Verdict.ALLOW  # noqa: FBT003


def test_renaming_depends_on_the_source() -> None:
    """A source that is refused below the new name may not move a directory there; others may."""
    table = compile_table(RuleSet((rule(ObjectKind.PATTERN, "/vault/*/key", sources=("/bin/curl",)),)))
    curl = source_of(table.blob, b"/bin/curl")
    assert directory_change(table.blob, b"/tmp/a", b"/vault/a", curl, True) is Verdict.DENY  # noqa: FBT003
    assert directory_change(table.blob, b"/tmp/a", b"/vault/a", 0, True) is Verdict.ALLOW  # noqa: FBT003
    # Out of there, nobody may: what it holds would no longer be kept from that source.
    assert directory_change(table.blob, b"/vault/a", b"/tmp/a", 0, True) is Verdict.DENY  # noqa: FBT003


def test_renaming_weighs_the_owner_only_rules_below_for_both() -> None:
    """Who owns the directory says nothing about who owns what is in it."""
    blob = compile_table(
        RuleSet((rule(ObjectKind.PATTERN, "/mail/*/box", Action.ALLOW, owner_only=True),), Verdict.ALLOW)
    ).blob
    assert lookup(blob, b"/mail/a", 0, Operation.WRITE, True) is Verdict.ALLOW  # noqa: FBT003
    assert directory_change(blob, b"/tmp/a", b"/mail/a", 0, True) is Verdict.DENY  # noqa: FBT003


def test_too_many_sources_are_refused() -> None:
    """256 columns are "any other" and 255 names."""

    def with_sources(number: int) -> RuleSet:
        return RuleSet(tuple(rule(ObjectKind.PATH, "/x", sources=(f"/bin/{index}",)) for index in range(number)))

    assert len(compile_table(with_sources(255)).sources) == 255
    with pytest.raises(PlanError, match=r"256 different sources .* more than 255"):
        compile_table(with_sources(256))


@pytest.mark.parametrize("source", ["bin/sh", "/bin/", "", "/bin/\0"])
def test_a_source_that_is_no_path_is_refused(source: str) -> None:
    """A source that could never be met would silently grant or deny nothing."""
    with pytest.raises(PlanError, match="expected the absolute path of an executable"):
        compile_table(RuleSet((rule(ObjectKind.PATH, "/x", sources=(source,)),)))


def test_a_malformed_pattern_is_refused_by_name() -> None:
    """The error names the rule."""
    with pytest.raises(PlanError, match=r"test spec\.file\.matchPaths\[0\] \(pattern '/a\{b'\): .*without '\}'"):
        compile_table(RuleSet((rule(ObjectKind.PATTERN, "/a{b"),)))


def test_a_table_beyond_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never cut down: refused, with its size."""
    rule_set = RuleSet(tuple(rule(ObjectKind.PATH, f"/{number * 7919}") for number in range(50)))
    size = len(compile_table(rule_set).blob)
    monkeypatch.setattr(plan, "MAXIMUM_TABLE_BYTES", size)
    assert len(compile_table(rule_set).blob) == size
    monkeypatch.setattr(plan, "MAXIMUM_TABLE_BYTES", size - 1)
    with pytest.raises(PlanError, match=f"the table would have {size} bytes .* more than {size - 1} "):
        compile_table(rule_set)


def test_too_many_classes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A class number has 16 bits; it never wraps."""
    rule_set = RuleSet((rule(ObjectKind.PATH, "/a"), rule(ObjectKind.PATH, "/b", Action.AUDIT)))
    monkeypatch.setattr(plan, "MAXIMUM_CLASSES", 2)
    with pytest.raises(PlanError, match=r"3 classes of paths apart, more than 2 "):
        compile_table(rule_set)


def test_multiplying_wildcards_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names limit and pattern, and what to do."""
    monkeypatch.setattr(automaton, "MAXIMUM_SUBSETS", 2000)
    with pytest.raises(PlanError, match=r"more than 2000 states .*pattern '/\*\*a.*use directories"):
        compile_table(RuleSet((rule(ObjectKind.PATTERN, "/**a" + "?" * 14),)))


@pytest.mark.parametrize("damage", [lambda blob: blob[:40], lambda blob: b"X" + blob[1:], lambda blob: blob + bytes(8)])
def test_a_damaged_blob_is_refused(damage: Any) -> None:  # noqa: ANN401
    """The simulator does not read past what it was given."""
    with pytest.raises(TableError, match=r"compile .* again"):
        lookup(damage(compile_table(SECRET).blob), b"/x", 0, Operation.READ, False)  # noqa: FBT003


def test_an_unknown_source_is_refused() -> None:
    """A column that does not exist is no answer."""
    with pytest.raises(TableError, match="found source 1, expected 0 to 0"):
        lookup(compile_table(SECRET).blob, b"/x", 1, Operation.READ, False)  # noqa: FBT003


def test_describe_gives_the_sizes() -> None:
    """What ``hauberk policy render`` shows."""
    table = compile_table(RuleSet((rule(ObjectKind.PATH, "/x", sources=("/bin/sh",)),)))
    sizes = table.describe()
    header, states, _, cells, _ = parts(table.blob)
    assert sizes == {
        "format": 1,
        "digest": table.digest,
        "bytes": len(table.blob),
        "states": len(states),
        "sinks": header[4],
        "transitions": len(cells),
        "transitionsUsed": sum(check != 0xFFFFFFFF for check, _ in cells),
        "classes": 2,
        "sources": ["/bin/sh"],
        "decides": {"file": True, "process": False, "rules": True},
    }
