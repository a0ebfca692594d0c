# SPDX-License-Identifier: Apache-2.0
"""What a resolver's answer is read as: what it says of the name asked for, and nothing that it does not."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest_agent.network import names
from guest_agent.network.names import Answer, read
from tests.unit.agent.dns_messages import (
    AAAA,
    ANY,
    CNAME,
    QUESTION,
    TXT,
    A,
    Record,
    address,
    alias,
    message,
    name,
    pointer,
)  # fmt: skip

WWW = "www.example.com"


def test_addresses_with_their_time() -> None:
    given_answer = message(WWW, A, address(QUESTION, "192.0.2.1", 60), address(QUESTION, "192.0.2.2", 30))
    assert read(given_answer) == Answer(WWW, (("192.0.2.1", 60), ("192.0.2.2", 30)))
    given_answer = message(WWW, AAAA, address(QUESTION, "2001:db8::1", 0))
    assert read(given_answer) == Answer(WWW, (("2001:db8::1", 0),))
    both = message(WWW, ANY, address(QUESTION, "192.0.2.1", 7), address(QUESTION, "2001:db8::1", 8))
    assert read(both) == Answer(WWW, (("192.0.2.1", 7), ("2001:db8::1", 8)))


def test_letters_come_back_as_they_were_asked_for_and_are_compared_in_lower_case() -> None:
    assert read(message("wWw.eXample.COM", A, address(name("WWW.example.com"), "192.0.2.1"))) == Answer(
        WWW, (("192.0.2.1", 300),)
    )


def test_aliases_lead_on_and_the_shortest_time_on_the_way_counts() -> None:
    records = (
        address(name("c.example.net"), "192.0.2.1", 500),
        alias(QUESTION, "b.example.net", 400),
        alias(name("b.example.net"), "c.example.net", 20),
        address(name("b.example.net"), "192.0.2.2", 450),
        address(name("b.example.net"), "192.0.2.1", 450),
    )
    assert read(message(WWW, A, *records)) == Answer(WWW, (("192.0.2.1", 20), ("192.0.2.2", 400)))


def test_nothing_is_learned_of_names_that_were_not_asked_for() -> None:
    stray = address(name("bank.example"), "192.0.2.66")
    assert read(message(WWW, A, stray)) is None
    assert read(message(WWW, A, stray, address(QUESTION, "192.0.2.1"))) == Answer(WWW, (("192.0.2.1", 300),))
    backwards = alias(name("bank.example"), WWW)
    assert read(message(WWW, A, backwards, stray)) is None
    second_alias = (alias(QUESTION, "b.example.net"), alias(QUESTION, "bank.example"), stray)
    assert read(message(WWW, A, *second_alias)) is None


def test_records_beside_the_answer_section_are_not_read() -> None:
    answer = message(WWW, A, address(QUESTION, "192.0.2.66"))
    authority = answer[:6] + struct.pack("!HH", 0, 1) + answer[10:]
    assert read(authority) is None


@pytest.mark.parametrize(
    ("flags", "questions", "of_network", "kind"),
    [
        (0x0100, 1, 1, A),  # a question
        (0x8183, 1, 1, A),  # no such name
        (0x8182, 1, 1, A),  # the server failed
        (0xA180, 1, 1, A),  # a notification
        (0x8180, 0, 1, A),
        (0x8180, 2, 1, A),
        (0x8180, 1, 3, A),  # not of the Internet
        (0x8180, 1, 1, TXT),
        (0x8180, 1, 1, CNAME),
    ],
)
def test_what_is_no_answer_to_one_question_for_addresses(
    flags: int, questions: int, of_network: int, kind: int
) -> None:
    record = address(name(WWW), "192.0.2.1")
    assert read(message(WWW, kind, record, flags=flags, questions=questions, of_network=of_network)) is None


def test_only_the_type_that_was_asked_for() -> None:
    assert read(message(WWW, A, address(QUESTION, "2001:db8::1"))) is None
    assert read(message(WWW, AAAA, address(QUESTION, "192.0.2.1"))) is None
    wrong_lengths = (Record(QUESTION, A, 9, b"\x7f\0\0"), Record(QUESTION, AAAA, 9, b"\x7f\0\0\1"))
    assert read(message(WWW, ANY, *wrong_lengths)) is None
    assert read(message(WWW, A, Record(QUESTION, A, 9, b"\xc0\0\2\1", of_network=3))) is None
    assert read(message(WWW, ANY, Record(QUESTION, ANY, 9, b"\xc0\0\2\1"))) is None  # no record is of that type


@pytest.mark.parametrize("text", ["0.0.0.0", "224.0.0.1", "255.255.255.255", "::", "ff02::1", "::ffff:192.0.2.1"])  # noqa: S104
def test_addresses_that_no_packet_to_a_peer_has(text: str) -> None:
    assert read(message(WWW, ANY, address(QUESTION, text))) is None


@pytest.mark.parametrize("asked", ["", "a b.example.com", "*.example.com", "\xe9.example", "a\0.example"])
def test_names_that_no_pattern_can_match(asked: str) -> None:
    assert read(message(asked, A, address(QUESTION, "192.0.2.1"))) is None


def test_a_label_with_a_dot_in_it_is_not_two() -> None:
    header = message("x", A, address(QUESTION, "192.0.2.1"))
    asked = b"\x0bwww.example\x03com\0"
    assert read(header.replace(name("x"), asked, 1)) is None


def test_a_time_that_is_too_long_is_none() -> None:
    assert read(message(WWW, A, address(QUESTION, "192.0.2.1", 2**31 - 1))) == Answer(WWW, (("192.0.2.1", 2**31 - 1),))
    assert read(message(WWW, A, address(QUESTION, "192.0.2.1", 2**31))) == Answer(WWW, (("192.0.2.1", 0),))


def test_a_cut_answer_says_what_it_says_in_full() -> None:
    whole = message(WWW, A, address(QUESTION, "192.0.2.1"), address(QUESTION, "192.0.2.2"))
    first = Answer(WWW, (("192.0.2.1", 300),))
    size = len(address(QUESTION, "192.0.2.2").encode())
    found = [read(whole[:length]) for length in range(len(whole) + 1)]
    assert found[-1] == Answer(WWW, (("192.0.2.1", 300), ("192.0.2.2", 300)))
    assert found[-1 - size : -1] == [first] * size
    assert found[: -1 - size] == [None] * (len(whole) - size)


def test_pointers_only_lead_backwards() -> None:
    start = 12 + len(name(WWW)) + 4
    to_itself = address(pointer(start), "192.0.2.1")
    forwards = address(pointer(start + 20), "192.0.2.1")
    loop = address(b"\1a" + pointer(start), "192.0.2.1")
    for record in (to_itself, forwards, loop):
        assert read(message(WWW, A, record)) is None
    shared = address(b"\3www" + pointer(16), "192.0.2.1")
    assert read(message(WWW, A, shared)) == Answer(WWW, (("192.0.2.1", 300),))


def test_long_chains_of_pointers_and_aliases_end() -> None:
    start = 12 + len(name(WWW)) + 4
    pointers = Record(QUESTION, TXT, 1, b"".join(pointer(12 if not n else start + 12 + 2 * (n - 1)) for n in range(40)))
    for count, found in ((names.MAXIMUM_POINTERS, True), (names.MAXIMUM_POINTERS + 1, False)):
        last = address(pointer(start + 12 + 2 * (count - 2)), "192.0.2.1")
        assert (read(message(WWW, A, pointers, last)) is not None) is found
    for count, found in ((names.MAXIMUM_ALIASES, True), (names.MAXIMUM_ALIASES + 1, False)):
        hops = [WWW, *(f"h{n}.example" for n in range(count))]
        records = [alias(name(one), following) for one, following in pairwise(hops)]
        answer = message(WWW, A, *records, address(name(hops[-1]), "192.0.2.1"))
        assert (read(answer) is not None) is found


def test_a_name_has_at_most_255_octets_wherever_they_stand() -> None:
    for rest, whole in ((189, True), (190, False)):
        tail = f"{'b' * 63}.{'c' * 63}.{'d' * (rest - 128)}"  # with a label of 63 before it: 253 or 254 characters
        longest = f"{'a' * 63}.{tail}"
        written = message(longest, A, address(QUESTION, "192.0.2.1"))
        assert (read(written) is not None) is whole
        start = len(message(tail, A))  # of the alias behind the question, whose name the question has read already
        led = (alias(QUESTION, "x.example"), Record(name("x.example"), CNAME, 9, b"\x3f" + b"a" * 63 + QUESTION))
        behind = address(pointer(start + len(led[0].encode()) + len(name("x.example")) + 10), "192.0.2.1")
        assert (read(message(tail, A, *led, behind)) is not None) is whole


def test_labels_without_end_are_no_name() -> None:
    header = message("x", A)[:12]
    assert read(header + b"\1a" * 2000) is None
    assert read(header + b"\1a" * 126 + b"\0" + b"\0\1\0\1") is None  # whole, and says nothing
    assert read(header + b"\x40" + b"a" * 64 + b"\0\0\1\0\1") is None  # a kind of label that is none


def test_aliases_in_a_circle_end() -> None:
    records = (alias(QUESTION, "b.example"), alias(name("b.example"), WWW), address(name("b.example"), "192.0.2.1"))
    assert read(message(WWW, A, *records)) == Answer(WWW, (("192.0.2.1", 300),))


def test_an_alias_that_is_more_than_a_name_is_none() -> None:
    behind = address(name("b.example"), "192.0.2.1")
    assert read(message(WWW, A, Record(QUESTION, CNAME, 9, name("b.example") + b"x"), behind)) is None
    assert read(message(WWW, A, Record(QUESTION, CNAME, 9, b"\x3f"), behind)) is None
    assert read(message(WWW, A, Record(QUESTION, CNAME, 9, name("b b.example")), behind)) is None


def test_so_many_records_and_bytes_are_read_and_no_more() -> None:
    many = [address(QUESTION, f"10.0.{n >> 8}.{n & 255}") for n in range(1, 200)]
    found = read(message(WWW, A, *many))
    assert found is not None
    assert len(found.addresses) == names.MAXIMUM_RECORDS
    far = [Record(QUESTION, TXT, 1, b"x" * names.MAXIMUM_BYTES), address(QUESTION, "192.0.2.1")]
    assert read(message(WWW, A, *far)) is None


@given(st.binary(max_size=600))
def test_bytes_that_are_no_answer_raise_nothing(payload: bytes) -> None:
    read(payload)
    found = read(struct.pack("!6H", 1, 0x8180, 1, 9, 0, 0) + name(WWW) + struct.pack("!HH", ANY, 1) + payload)
    assert found is None or found.name == WWW
