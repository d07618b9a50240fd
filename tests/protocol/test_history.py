"""A client follows one history, and refuses every other that a server may show it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from builders import announcement, record

from hefl.errors import TamperError
from hefl.identity import Identity
from hefl.protocol.history import Chain
from hefl.protocol.records import Announcement, MemberEntry, Record, genesis

IDENTITY, RUN = Identity("ab" * 16, 1), "cd" * 16
SEED = bytes(range(32))


def following(chain: Chain, **changes: Any) -> Announcement:
    """The announcement that an honest server makes next."""
    fields: dict[str, Any] = {"run": chain.run, "head": chain.head, "round": chain.round + 1, "exchange": "training"}
    if chain.round == -1:
        fields |= {"exchange": "initial", "weights": {"alice": 30}}
    fields |= changes
    return announcement(fields.pop("weights", None), **fields)


def grown(rounds: int, **changes: Any) -> tuple[Chain, list[Record]]:
    """A history of so many records, from genesis on."""
    chain, records = Chain.begin(IDENTITY, RUN), []
    for _ in range(rounds):
        records.append(record(following(chain, **changes)))
        chain = chain.extended(records[-1], "carol")
    return chain, records


def refused(check: str, function: Any, *arguments: Any) -> None:
    with pytest.raises(TamperError) as caught:
        function(*arguments)
    assert caught.value.check == check
    assert caught.value.exit_code == 4


def test_a_chain_begins_in_genesis_and_ends_in_the_last_records_head() -> None:
    assert Chain.begin(IDENTITY, RUN).head == genesis(IDENTITY, RUN)
    chain, records = grown(3)
    assert (chain.round, chain.head) == (2, records[-1].head)
    chain.check_shown(records[-1])
    chain.check_announcement(following(chain))


def test_it_survives_being_stored() -> None:
    chain, _ = grown(2)
    chain = chain.answering(following(chain), SEED)
    assert msgspec.json.decode(msgspec.json.encode(chain), type=Chain) == chain


@pytest.mark.parametrize(
    ("change", "check"),
    [
        ({"run": "ef" * 16}, "run"),
        ({"head": "00" * 32}, "head"),
        ({"round": 4}, "head"),
        ({"round": 2}, "head"),
    ],
)
def test_what_does_not_continue_the_history_is_refused(change: dict[str, Any], check: str) -> None:
    chain, _ = grown(3)
    refused(check, chain.check_announcement, following(chain, **change))
    refused(check, chain.extended, record(following(chain, **change)), "carol")


def test_a_record_in_the_middle_cannot_be_left_out_or_changed() -> None:
    _, records = grown(4)
    chain, _ = grown(2)
    refused("head", chain.extended, records[3], "carol")
    other = msgspec.structs.replace(records[2], digest="99" * 32)
    forked = chain.extended(other, "carol")
    refused("head", forked.extended, records[3], "carol")


def test_a_server_that_shows_fewer_rounds_or_another_last_one_is_refused() -> None:
    chain, records = grown(3)
    refused("history", chain.check_shown, records[1])
    refused("history", chain.check_shown, None)
    refused("history", chain.check_shown, msgspec.structs.replace(records[2], digest="99" * 32))


def test_an_attempt_only_rises() -> None:
    chain, _ = grown(2)
    second = following(chain, attempt=2)
    answered = chain.answering(second, SEED)
    answered.check_announcement(second)
    answered.check_announcement(following(chain, attempt=3))
    refused("attempt-rises", answered.check_announcement, following(chain, attempt=1))
    refused("attempt-rises", answered.check_announcement, following(chain, attempt=2, nonce="66" * 32))
    refused("attempt-rises", answered.extended, record(following(chain, attempt=1)), "alice")


def members(of: Announcement, seeds: dict[str, bytes]) -> Record:
    entries = tuple(
        MemberEntry(name=p.name, seed=seeds[p.name].hex(), weight=p.num_examples)
        for p in of.participants
        if p.name in seeds
    )
    return msgspec.structs.replace(record(of), members=entries)


def test_ones_own_update_is_in_a_sum_as_it_was_made_or_not_at_all() -> None:
    chain = msgspec.structs.replace(grown(2)[0], joined=0)
    asked = following(chain)
    again = chain.answering(asked, bytes(32)).answering(asked, SEED)  # a restarted client encrypts anew
    for seeds in ({"alice": SEED, "bob": b"b" * 32}, {"alice": bytes(32), "bob": b"b" * 32}, {"bob": b"b" * 32}):
        assert again.extended(members(asked, seeds), "alice").round == 2
    refused("own-seed", again.extended, members(asked, {"alice": b"x" * 32}), "alice")
    refused("own-seed", chain.answering(asked).extended, members(asked, {"alice": SEED}), "alice")
    refused("own-seed", chain.extended, members(asked, {"alice": SEED}), "alice")


def test_what_ones_name_did_before_one_came_is_not_ones_own() -> None:
    chain, _ = grown(2)
    asked = following(chain)
    assert chain.extended(members(asked, {"alice": SEED}), "alice").round == 2
    came = msgspec.structs.replace(chain, joined=2)
    assert came.extended(members(asked, {"alice": SEED}), "alice").round == 2


def test_a_run_is_left_for_another_where_it_has_ended_nothing_was_seen_or_its_keys_were_rotated_away() -> None:
    chain, _ = grown(2)
    other, rotated = "ef" * 16, Identity(IDENTITY.federation, 2)
    assert not chain.is_left_for(IDENTITY, other)
    assert not chain.is_left_for(rotated, RUN)
    assert chain.is_left_for(rotated, other)
    assert Chain.begin(IDENTITY, RUN).is_left_for(IDENTITY, other)
    ended = msgspec.structs.replace(chain, ended=True)
    assert ended.is_left_for(IDENTITY, other)
    # A run that goes on after its end has not ended.
    assert not ended.extended(record(following(ended)), "carol").is_left_for(IDENTITY, other)
