from __future__ import annotations

import hashlib
import json
from typing import Any

import msgspec
import pytest
from builders import HEAD, RUN, announcement, canonical_json, record

from hefl.identity import Identity
from hefl.params import MAX_CLIENTS, MAX_NUM_EXAMPLES
from hefl.protocol.records import Announcement, MemberEntry, Participant, Record, canonical, genesis

IDENTITY = Identity("0f" * 16, 3)


def sha256(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()


def decoded(value: dict[str, Any], cls: type[Any]) -> Any:
    return msgspec.json.decode(json.dumps(value).encode(), type=cls)


# --- hashes -----------------------------------------------------------------------------------------------------------


def test_a_runs_first_head_hashes_federation_generation_and_run() -> None:
    body = bytes.fromhex("0f" * 16) + (3).to_bytes(4, "big") + bytes.fromhex(RUN)
    assert genesis(IDENTITY, RUN) == sha256(b"hefl/v1/genesis", body)


@pytest.mark.parametrize(
    ("identity", "run"), [(Identity("0e" * 16, 3), RUN), (Identity("0f" * 16, 4), RUN), (IDENTITY, "00" * 16)]
)
def test_another_federation_generation_or_run_starts_from_another_head(identity: Identity, run: str) -> None:
    assert genesis(identity, run) != genesis(IDENTITY, RUN)


def test_ctx_hashes_the_head_and_the_announcement() -> None:
    value = announcement()
    assert value.ctx.hex() == sha256(b"hefl/v1/ctx", bytes.fromhex(HEAD), canonical_json(value))


def test_the_next_head_hashes_the_record() -> None:
    value = record(announcement())
    assert value.head == sha256(b"hefl/v1/head", canonical_json(value))


def test_what_is_hashed_is_json_without_white_space_and_with_sorted_fields() -> None:
    value = record(announcement())
    assert canonical(value) == canonical_json(value)


def test_a_message_sent_and_received_hashes_to_the_same() -> None:
    value = record(announcement())
    back = msgspec.json.decode(msgspec.json.encode(value), type=Record)
    assert back == value
    assert (back.head, back.announcement.ctx) == (value.head, value.announcement.ctx)


@pytest.mark.parametrize(
    "change",
    [
        {"run": "00" * 16},
        {"round": 2},
        {"attempt": 2},
        {"exchange": "closing"},
        {"engine": "plaintext"},
        {"nonce": "00" * 32},
        {"head": "00" * 32},
        {"values": 4},
        {"deadline_s": 61.0},
        {"participants": announcement({"alice": 31, "bob": 10}).participants},
        {"participants": announcement({"alice": 30}).participants},
        {"participants": announcement({"alice": 31, "bob": 10}).participants},
    ],
)
def test_ctx_binds_every_field_of_an_announcement(change: dict[str, Any]) -> None:
    assert announcement(**change).ctx != announcement().ctx


def test_ctx_binds_each_participants_join_nonce() -> None:
    first, second = announcement().participants
    other = msgspec.structs.replace(second, join_nonce="00" * 16)
    assert announcement(participants=(first, other)).ctx != announcement().ctx


@pytest.mark.parametrize(
    "change",
    [
        {"digest": "00" * 32},
        {"tag": "00"},
        {"members": record(announcement(), ["alice"]).members},
        {"announcement": announcement(round=2)},
        {"members": (MemberEntry(name="alice", seed="11" * 32, weight=30),)},
    ],
)
def test_a_head_binds_every_field_of_its_record(change: dict[str, Any]) -> None:
    value = record(announcement())
    assert msgspec.structs.replace(value, **change).head != value.head


# --- what engines need ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exchange", ["training", "closing"])
def test_participants_weigh_their_num_examples(exchange: str) -> None:
    value = announcement({"alice": 30, "bob": 10}, exchange=exchange)
    attempt = value.as_attempt()
    assert (attempt.ctx, attempt.values) == (value.ctx, 3)
    assert list(attempt.weights.items()) == [("alice", 30), ("bob", 10)]


def test_initial_arrays_weigh_one() -> None:
    assert announcement({"alice": 30}, exchange="initial", round=0).as_attempt().weights == {"alice": 1}


def test_a_records_members_have_their_seeds_as_bytes() -> None:
    (member,) = record(announcement(), ["bob"]).as_members()
    assert (member.name, member.seed, member.weight) == ("bob", bytes(32), 10)


# --- what does not decode ---------------------------------------------------------------------------------------------

PARTICIPANT = {"name": "alice", "num_examples": 30, "join_nonce": "00" * 16}


@pytest.mark.parametrize("weight", [0, -1, True, False, 30.0, 1.5, "30", None, MAX_NUM_EXAMPLES + 1])
def test_a_weight_that_is_no_positive_integer_is_refused(weight: Any) -> None:
    with pytest.raises(msgspec.ValidationError, match="num_examples"):
        decoded({**PARTICIPANT, "num_examples": weight}, Participant)
    with pytest.raises(msgspec.ValidationError, match="weight"):
        decoded({"name": "alice", "seed": "00" * 32, "weight": weight}, MemberEntry)


@pytest.mark.parametrize("weight", [1, MAX_NUM_EXAMPLES])
def test_weights_up_to_the_bound_decode(weight: int) -> None:
    assert decoded({**PARTICIPANT, "num_examples": weight}, Participant).num_examples == weight


@pytest.mark.parametrize("name", ["", "Alice", "-a", "a b", "a/b", "..", "a" * 33, "\u00e4", "a\x00", 7, None])
def test_a_name_of_another_form_is_refused(name: Any) -> None:
    with pytest.raises(msgspec.ValidationError, match="name"):
        decoded({**PARTICIPANT, "name": name}, Participant)


@pytest.mark.parametrize("name", ["a", "0", "client-1", "a" * 32])
def test_a_name_of_the_right_form_decodes(name: str) -> None:
    assert decoded({**PARTICIPANT, "name": name}, Participant).name == name


ANNOUNCEMENT: dict[str, Any] = msgspec.to_builtins(announcement())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("run", "00" * 15),
        ("run", "GG" * 16),
        ("round", -1),
        ("round", 2**31),
        ("attempt", 0),
        ("exchange", "gossip"),
        ("weighting", "nobody"),
        ("nonce", "00" * 33),
        ("head", "0A" * 32),
        ("values", 0),
        ("values", 2**40),
        ("deadline_s", 0),
        ("deadline_s", -1.0),
        ("participants", []),
        ("participants", [PARTICIPANT] * (MAX_CLIENTS + 1)),
        ("participants", [{**PARTICIPANT, "admin": True}]),
        ("participants", [PARTICIPANT, PARTICIPANT]),
        ("participants", [{**PARTICIPANT, "name": "bob"}, PARTICIPANT]),
        ("round", 0),
        ("exchange", "initial"),
        ("engine", 1),
        ("extra", 1),
    ],
)
def test_an_announcement_out_of_bounds_is_refused(field: str, value: Any) -> None:
    assert decoded(ANNOUNCEMENT, Announcement) == announcement()
    with pytest.raises(msgspec.ValidationError):
        decoded({**ANNOUNCEMENT, field: value}, Announcement)


def test_initial_arrays_are_announced_to_one_participant_of_round_0_only() -> None:
    initial = {**ANNOUNCEMENT, "round": 0, "exchange": "initial", "participants": [PARTICIPANT]}
    assert decoded(initial, Announcement).round == 0
    for change in ({"round": 1}, {"exchange": "training"}, {"participants": ANNOUNCEMENT["participants"]}):
        with pytest.raises(msgspec.ValidationError, match="initial arrays"):
            decoded({**initial, **change}, Announcement)


@pytest.mark.parametrize("field", ANNOUNCEMENT)
def test_an_announcement_without_one_of_its_fields_is_refused(field: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=field):
        decoded({k: v for k, v in ANNOUNCEMENT.items() if k != field}, Announcement)


@pytest.mark.parametrize(
    ("field", "value"),
    [("members", []), ("digest", "00"), ("tag", "0"), ("tag", "zz"), ("tag", "00" * 1024), ("extra", 1)],
)
def test_a_record_out_of_bounds_is_refused(field: str, value: Any) -> None:
    good = msgspec.to_builtins(record(announcement()))
    assert decoded(good, Record) == record(announcement())
    with pytest.raises(msgspec.ValidationError):
        decoded({**good, field: value}, Record)
