"""Records in few bytes are the same records, and are checked like those in JSON."""

from __future__ import annotations

import os
from contextlib import suppress

import msgspec
import pytest
from builders import announcement, record
from hypothesis import given
from hypothesis import strategies as st
from mutation import memory_within

from hefl.errors import MalformedError
from hefl.params import RECORDS_AT_ONCE
from hefl.protocol.compact_records import decode_records, encode_records, from_bytes, to_bytes
from hefl.protocol.messages import MAX_ANSWER_BYTES
from hefl.protocol.records import MemberEntry, Participant, Record


def of_ten() -> Record:
    """A record of ten clients, everything random where it is in a run."""
    people = tuple(
        Participant(name=f"hospital-{i}", num_examples=1000 + 37 * i, join_nonce=os.urandom(16).hex())
        for i in range(10)
    )
    made = announcement(engine="packed", participants=people, nonce=os.urandom(32).hex(), head=os.urandom(32).hex())
    members = tuple(MemberEntry(name=p.name, seed=os.urandom(32).hex(), weight=p.num_examples) for p in people)
    return Record(announcement=made, members=members, digest=os.urandom(32).hex(), tag=os.urandom(74).hex())


def test_what_comes_back_is_the_same_record() -> None:
    for whole in (of_ten(), record(announcement()), record(announcement(), ["bob"])):
        assert from_bytes(to_bytes(whole)) == whole
        assert from_bytes(to_bytes(whole)).head == whole.head
    several = [of_ten() for _ in range(RECORDS_AT_ONCE)]
    assert decode_records(encode_records(several)) == tuple(several)
    assert decode_records(encode_records([])) == ()


def test_a_record_of_ten_clients_has_less_than_a_thousand_bytes() -> None:
    assert len(to_bytes(of_ten())) < 1000


def test_more_records_than_an_answer_may_have_are_refused() -> None:
    with pytest.raises(MalformedError, match="length <= 32"):
        decode_records(encode_records([record(announcement())] * (RECORDS_AT_ONCE + 1)))


@pytest.mark.parametrize("place", [2, -1, 2**40])
def test_a_member_that_is_no_participant_is_refused(place: int) -> None:
    parts = msgspec.msgpack.decode(to_bytes(record(announcement())))
    parts[12][1][0] = place
    with pytest.raises(MalformedError):
        from_bytes(msgspec.msgpack.encode(parts))


@given(st.data())
def test_damaged_bytes_are_refused_or_are_another_record(data: st.DataObject) -> None:
    good = to_bytes(record(announcement()))
    at = data.draw(st.integers(0, len(good) - 1))
    bad = good[:at] + bytes([good[at] ^ data.draw(st.integers(1, 255))]) + good[at + 1 :]
    with suppress(MalformedError):
        assert from_bytes(bad) != record(announcement())
    for cut in (good[:at], b"", good + b"\0"):
        with pytest.raises(MalformedError):
            from_bytes(cut)


def test_an_answer_of_many_short_parts_takes_no_memory() -> None:
    """Each of a few bytes there would be a hundred here."""
    fields = msgspec.msgpack.decode(to_bytes(record(announcement())))
    fields[11] = [["", 0, b""]] * (MAX_ANSWER_BYTES // 4)
    for parts in ([b""] * (MAX_ANSWER_BYTES // 2), [msgspec.msgpack.encode(fields)]):
        answer = msgspec.msgpack.encode(parts)
        with memory_within(MAX_ANSWER_BYTES * 2), pytest.raises(MalformedError, match="length <="):
            decode_records(answer)
