# SPDX-License-Identifier: Apache-2.0
"""Reading YAML: places, what is refused, and that nothing small becomes large."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hauberk.policy import documents
from hauberk.policy.documents import Place, field_name, read

if TYPE_CHECKING:
    from hauberk.errors import Problem


def read_text(text: str) -> tuple[list[documents.Document], list[Problem]]:
    problems: list[Problem] = []
    return read(text.encode(), "p.yaml", problems), problems


def test_values_and_their_places() -> None:
    found, problems = read_text("# note\na:\n  - x: 1\n    y: [true, null]\nb: \"q\"\n---\n---\nc: 'd'\n")
    assert problems == []
    first, second = found
    assert first.value == {"a": [{"x": 1, "y": [True, None]}], "b": "q"}
    assert second.value == {"c": "d"}
    assert first.place(("a", 0, "x")) == Place(3, 8)
    assert first.place(("a", 0, "x"), of_key=True) == Place(3, 5)
    assert first.place(("a", 0, "y", 1)) == Place(4, 15)
    assert first.place(("a", 0, "nothing", "here")) == Place(3, 5)
    assert first.place(("nothing",)) == Place(2, 1)
    assert second.place(("c",)) == Place(8, 4)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("null", None), ("~", None), ("true", True), ("False", False), ("12", 12), ("-3", -3), ("+4", 4),
        ("1.5", 1.5), ("1e3", 1000.0), ("'12'", "12"), ('"true"', "true"), ("!!str 12", "12"), ("! 12", "12"),
        ("Grüße 🎈", "Grüße 🎈"),
        ("!!int 12", 12), ("!!bool true", True),
        # what other readers take for numbers, dates or truth values stays text
        ("yes", "yes"), ("off", "off"), ("010", "010"), ("0x1f", "0x1f"),
        ("1:30", "1:30"), ("2024-01-01", "2024-01-01"),
        ("<<", "<<"), ("1_000", "1_000"), ("99999999999999999999999", "99999999999999999999999"),
    ],
)  # fmt: skip
def test_scalars(text: str, value: object) -> None:
    found, problems = read_text(f"a: {text}\n")
    assert problems == []
    assert found[0].value == {"a": value}
    assert type(found[0].value["a"]) is type(value)


@pytest.mark.parametrize(
    ("text", "line", "column", "words"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, 1, "the key 'a' a second time (first at line 1)"),
        ("a:\n  b: 1\n  'b': 2\n", 3, 3, "the key 'b' a second time"),
        ("1: x\n", 1, 1, "a number as a key"),
        ("true: x\n", 1, 1, "a truth value as a key"),
        ("? [a]\n: x\n", 1, 3, "a list as a key"),
        ("~: x\n", 1, 1, "null as a key"),
        ("a: !!python/object:os.system x\n", 1, 4, "the tag"),
        ("a: !custom x\n", 1, 4, "the tag '!custom'"),
        ("a: !!set {x}\n", 1, 4, "the tag"),
        ("a: !!omap [x: 1]\n", 1, 4, "the tag"),
        ("a: !!int x\n", 1, 4, "'x' tagged int"),
        ("a: !!binary aGk=\n", 1, 4, "the tag"),
        ("a: *b\n", 1, 4, "the alias *b without an anchor"),
        ("a: &x [*x]\n", 1, 8, "the alias *x inside of what it stands for"),
        ("a: [1\nb: 2\n", 2, 2, "broken YAML"),
        ("a: 1\n b: 2\n", 2, 3, "broken YAML"),
        ("x: [\n...\na: 1\n", 2, 1, "broken YAML"),
        ("a: 1\n]\n", 2, 1, "broken YAML"),
        ('a: "\\ud800"\n', 1, 7, "broken YAML"),
        ("a: \x01\n", 0, 0, "broken YAML"),
        ("", 0, 0, "no document"),
        ("# only a comment\n---\n", 0, 0, "no document"),
    ],
)
def test_what_is_refused_and_where(text: str, line: int, column: int, words: str) -> None:
    found, problems = read_text(text)
    assert found == []
    assert [(problem.line, problem.column) for problem in problems] == [(line, column)]
    assert words in str(problems[0])
    assert problems[0].file == "p.yaml"


def test_problems_of_all_documents_are_collected() -> None:
    found, problems = read_text("a: 1\na: 2\n---\nok: 1\n---\n1: x\n2: y\n---\nz: [\n")
    assert [document.value for document in found] == [{"ok": 1}]
    assert [problem.line for problem in problems] == [2, 6, 7, 10]


def test_an_alias_stands_for_its_value() -> None:
    found, problems = read_text("a: &x {k: v}\nb: *x\n")
    assert problems == []
    assert found[0].value == {"a": {"k": "v"}, "b": {"k": "v"}}
    assert found[0].place(("b",)) == Place(2, 4)
    assert found[0].place(("b", "k")) == Place(1, 11)


def test_anchors_end_with_their_document() -> None:
    _, problems = read_text("a: &x 1\n---\nb: *x\n")
    assert [problem.line for problem in problems] == [3]


def test_exploding_aliases_are_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    found, problems = read_text("\n".join(lines))
    assert found == []
    assert len(problems) == 1
    assert "aliases counted in full" in str(problems[0])
    assert problems[0].line < 8


@pytest.mark.parametrize("quote", ["", "'"])
def test_a_long_text_counts_with_its_length_in_each_alias(quote: str) -> None:
    aliases = ", ".join(["*x"] * 600)
    found, problems = read_text(f"a: &x {quote}{'x' * 64 * 1024}{quote}\nb: [{aliases}]\n")
    assert found == []
    (problem,) = problems
    assert "aliases counted in full" in str(problem)
    assert len(read_text(f"a: &x {quote}x{quote}\nb: [{aliases}]\n")[0]) == 1


@pytest.mark.parametrize("opening", ["[", "{a: ", "- "])
def test_deep_nesting_is_refused(opening: str) -> None:
    found, problems = read_text("a: " + opening * 900 if opening != "- " else opening * 900)
    assert found == []
    assert len(problems) == 1
    assert "deep" in str(problems[0])


def test_directives_without_end_are_refused_unread() -> None:
    text = "".join(f"%TAG !a{number}! x\n" for number in range(documents.MAXIMUM_DIRECTIVES + 1))
    problems: list[Problem] = []
    assert read(f"{text}--- a\n".encode(), "p.yaml", problems) == []
    assert "'%TAG'" in str(problems[0])


def test_a_large_file_is_refused_unread() -> None:
    problems: list[Problem] = []
    assert read(b"#" * (documents.MAXIMUM_BYTES + 1), "p.yaml", problems) == []
    assert "more than 16777216 bytes" in str(problems[0])


def test_many_values_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MAXIMUM_VALUES", 1000)
    assert read_text("- 1\n" * 999)[1] == []
    _, problems = read_text("- 1\n" * 1000)
    assert len(problems) == 1
    assert "more than 1000 values" in str(problems[0])
    assert "Split the file" in str(problems[0])
    monkeypatch.setattr(documents, "MAXIMUM_DOCUMENT_VALUES", 100)
    assert read_text(("- 1\n" * 99 + "---\n") * 9)[1] == []
    _, problems = read_text("- 1\n" * 100)
    assert "Split the policy" in str(problems[0])


def test_problems_within_a_document_name_the_field() -> None:
    _, problems = read_text("a:\n- x: *no\n- {b: 1, b: 2}\n- !odd c\n---\na: {1: !odd x}\n")
    assert [problem.field for problem in problems] == ["a[0].x", "a[1].b", "a[2]", "a", "a.?"]
    _, problems = read_text("a: {*no : {b: *no}}")
    assert [problem.field for problem in problems] == ["a", "a.?.b"]


def test_many_problems_end_the_reading() -> None:
    found, problems = read_text("{1: a}\n---\n" * 5000)
    assert found == []
    assert len(problems) == documents.MAXIMUM_PROBLEMS + 1
    assert "1000 problems so far" in str(problems[-1])


def test_messages_hold_nothing_that_a_terminal_obeys() -> None:
    text = '{"\\e[31m\\n::error::x": 1, "\\e[31m\\n::error::x": 2}'
    (problem,) = read_text(text)[1]
    assert str(problem).isprintable()
    assert field_name(("a\n\x9b", 0)) == "a\\n\\x9b[0]"
    assert len(field_name(("x" * 10_000,))) == 100


def test_text_that_is_not_utf8_is_refused_at_its_byte() -> None:
    problems: list[Problem] = []
    assert read(b"a: 1\nb: \xff\n", "p.yaml", problems) == []
    assert (problems[0].line, problems[0].column) == (2, 4)
    assert "0xff" in str(problems[0])
    problems.clear()
    assert read("a: 1".encode("utf-16"), "p.yaml", problems) == []
    assert len(problems) == 1


def test_the_pure_python_parser_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    import yaml  # noqa: PLC0415

    text = "a: &x [1, {b: 'c'}]\nd: *x\n---\ne: |\n  text\n"
    paths = [("a",), ("a", 0), ("a", 1, "b"), ("d", 1, "b"), ("e",)]

    def read_all() -> list[object]:
        return [(document.value, [document.place(path) for path in paths]) for document in read_text(text)[0]]

    with_c = read_all()
    monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    assert read_all() == with_c


@pytest.mark.parametrize("text", ["\ufeffa: 1\n", "a: 1\r\n", "%YAML 1.2\n---\na: 1\n...\n", '{"a":\t1}'])
def test_what_editors_and_other_programs_write_is_read(text: str) -> None:
    found, problems = read_text(text)
    assert problems == []
    assert [document.value for document in found] == [{"a": 1}]


def test_half_a_character_is_refused_by_either_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    import yaml  # noqa: PLC0415

    text = 'a: "\\ud800"\n'
    found, problems = read_text(text)
    assert (found, problems[0].line) == ([], 1)
    monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    found, problems = read_text(text)
    assert (found, problems[0].line, problems[0].field) == ([], 1, "a")
    assert str(problems[0]).isascii()


def test_field_names() -> None:
    assert field_name(("spec", "process", "matchPaths", 0, "path")) == "spec.process.matchPaths[0].path"
    assert field_name(()) == ""


@given(st.text(alphabet="ab:- \n[]{},&*!'\"#|>?%\t1~", max_size=60))
def test_any_text_is_read_or_refused_with_a_place(text: str) -> None:
    found, problems = read_text(text)
    assert found or problems
    lines = text.count("\n") + 2
    assert all(0 <= problem.line <= lines for problem in problems)


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    problems: list[Problem] = []
    assert read(data, "p.yaml", problems) or problems
