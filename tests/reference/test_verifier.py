"""The second verifier on a recorded run: it accepts every round, finds the same model, and refuses what is altered."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import packed_reference as reference
import pytest
from federation import Federation
from hypothesis import given
from hypothesis import strategies as st
from recording import Recorded, record_run
from verifier import Opened, Round
from verifier_input import (
    Key,
    RefusedError,
    canonical,
    check_history,
    ctx_of,
    parse,
    read_frame,
    read_key,
    read_record,
)
from verifier_model import Decoder, Layout, Model, Tensor, unseal

from hefl.encoding.codec import Sum
from hefl.encoding.fixedpoint import FixedPointCodec
from hefl.models.layout import Layout as HeflLayout
from hefl.models.layout import Tensor as HeflTensor

WHO = {"alice": (10, 0.1), "bob": (25, -0.2), "carol": (7, 0.35)}
HERE = Path(__file__).parent
VECTORS = json.loads((HERE / "vectors/frames.json").read_text())


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return Federation(tmp_path_factory.mktemp("keys") / "fed", *WHO)


@pytest.fixture(scope="module")
def secret_file(keys: Federation) -> Path:
    return keys.folder / "clients/bob/secret.hefl"


@pytest.fixture(scope="module")
def key(secret_file: Path) -> Key:
    return read_key(secret_file.read_bytes())


@pytest.fixture(scope="module")
def run(keys: Federation, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return record_run(keys, tmp_path_factory.mktemp("run"), WHO, rounds=2)


@pytest.fixture(scope="module")
def wide_run(keys: Federation, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """Of several blocks and lanes, in a larger ring, with weights that only the clients know."""
    folder = tmp_path_factory.mktemp("wide")
    return record_run(keys, folder, WHO, rounds=1, precision=16, weighting="client", width=3000)


# --- what is so -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", [pytest.param("run", marks=pytest.mark.slow), "wide_run"])
def test_every_round_of_a_real_run_is_accepted_and_decodes_to_the_clients_own_model(
    which: str, key: Key, request: pytest.FixtureRequest
) -> None:
    run: Recorded = request.getfixturevalue(which)
    records = [read_record(run.records[number]) for number in sorted(run.records)]
    check_history(records, key, records[0]["announcement"]["run"])
    decoder = Decoder(unseal(base64.b64decode(run.sealed_layout), key), records[0]["announcement"]["precision_bits"])
    assert [t.kind for t in decoder.layout.tensors] == ["parameter", "buffer", "integer"]
    model: Model | None = None
    for number, record in enumerate(records):
        opened = Round(key, record, run.aggregates[number]).open()
        exchange = record["announcement"]["exchange"]
        if exchange == "closing":
            assert decoder.closing(opened) == run.metrics[number]
            continue
        before, model = model, decoder.initial(opened) if exchange == "initial" else decoder.training(opened)
        assert before is None or list(model.exponents) == list(before.following)
        assert model.metrics == run.metrics[number]
        for tensor, values, saved in zip(decoder.layout.tensors, model.arrays, run.models[number], strict=True):
            assert saved.dtype.name == tensor.dtype
            assert np.array(values, tensor.dtype).reshape(tensor.shape).tobytes() == saved.tobytes()
    assert model
    assert exchange == "closing"


def test_what_the_server_has_on_disk_is_what_was_recorded(run: Recorded) -> None:
    """A digest in its name; the last ones are kept."""
    digests = {run.records[number]["digest"]: number for number in run.aggregates}
    assert digests.keys() >= run.stored.keys() >= {run.records[max(run.aggregates)]["digest"]}
    assert all(data == run.aggregates[digests[name]] for name, data in run.stored.items())


@pytest.mark.parametrize("entry", VECTORS["sums"], ids=lambda entry: entry["what"])
def test_the_published_aggregates_open_to_the_published_sums(entry: dict[str, Any]) -> None:
    published = Key(bytes.fromhex(entry["federation"]), entry["generation"], bytes.fromhex(entry["published_test_key"]))
    opened = Round(published, entry["record"], (HERE / f"vectors/{entry['what']}.aggregate").read_bytes()).open()
    assert opened.weight == entry["total_weight"]
    assert list(opened.sums) == [entry["sum"][i % len(entry["sum"])] for i in range(len(opened.sums))]


Case = tuple[HeflLayout, int, list[int], list[tuple[int, list[np.ndarray[Any, Any]], float, int]]]


@st.composite
def trained(draw: st.DrawFn) -> Case:
    """A layout, a precision, exponents, and what some clients encode: weight, arrays, a metric, its rows."""
    types = [("parameter", t) for t in ("float16", "float32", "float64")]
    types += [("buffer", t) for t in ("float32", "float64")] + [("integer", t) for t in ("int64", "int32", "uint8")]
    kinds = draw(st.lists(st.sampled_from(types), min_size=1, max_size=4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    tensors = [HeflTensor(str(i), dtype, (5,), kind) for i, (kind, dtype) in enumerate(kinds)]  # type: ignore[arg-type]
    least = {"parameter": 0, "buffer": 10, "integer": 32}
    exponents = [least[t.kind] + (0 if t.kind == "integer" else draw(st.integers(0, 4))) for t in tensors]
    clients = []
    for weight in draw(st.lists(st.integers(1, 2**14), min_size=2, max_size=4)):
        sizes = [2.0 ** (e + draw(st.integers(-9, 2))) if e < 32 else 90.0 for e in exponents]
        arrays = [
            (rng.uniform(-1, 1, 5) * size * (t.dtype != "uint8")).astype(t.dtype)
            for t, size in zip(tensors, sizes, strict=True)
        ]
        loss = draw(st.sampled_from([0.1, -3.7, 63.9, 500.0, float("nan")]))
        clients.append((weight, arrays, loss, draw(st.integers(1, 2**40))))
    return HeflLayout(tuple(tensors), ("loss",)), draw(st.integers(8, 40)), exponents, clients


@given(trained())
def test_sums_decode_to_the_same_model_metrics_and_exponents_as_in_a_client(case: Case) -> None:
    layout, precision, exponents, clients = case
    codec = FixedPointCodec(layout, precision)
    total = sum(weight for weight, *_ in clients)
    sums = sum(
        weight * codec.encode_model(arrays, {"loss": loss}, tuple(exponents), {"loss": Fraction(rows, weight)})
        for weight, arrays, loss, rows in clients
    )
    arrays, averages, following = codec.decode_model(Sum(np.asarray(sums), total), None)
    decoder = Decoder(Layout([Tensor(t.name, t.dtype, t.shape, t.kind) for t in layout.tensors], ["loss"]), precision)
    opened = Opened({"weighting": "server"}, [int(s) for s in np.asarray(sums)], total, len(clients))
    model = decoder.training(opened)
    assert (list(model.following), model.metrics) == (list(following), averages.metrics)
    for tensor, values, array in zip(layout.tensors, model.arrays, arrays, strict=True):
        assert np.array(values, tensor.dtype).tobytes() == array.tobytes()


@given(st.floats(min_value=0, exclude_min=True, allow_infinity=False) | st.floats(1e-7, 1e-3) | st.floats(1e14, 1e18))
def test_numbers_are_hashed_in_the_form_that_the_page_names(value: float) -> None:
    assert canonical(value) == msgspec.json.encode(value)


def test_the_verifier_loads_nothing_of_hefls_and_no_numerical_library() -> None:
    code = (
        "import sys, verifier, verifier_model; print({'hefl', 'numba', 'numpy', 'tenseal', 'msgspec'} & {*sys.modules})"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"


# --- what is not so ---------------------------------------------------------------------------------------------------


class Lie:
    """A round as a server that lies would show it: whatever is changed, lengths, digests and record follow suit."""

    def __init__(self, key: Key, record: dict[str, Any], aggregate: bytes) -> None:
        true = Round(key, record, aggregate)
        self.key, self.plan, self.moduli, self.weights = key, true.plan, true.moduli, true.weights
        self.record = copy.deepcopy(record)
        self.announcement = self.record["announcement"]
        self.frame = {**vars(read_frame(aggregate))}
        self.frame["members"] = [*self.frame["members"]]
        self.blocks = [reference.unpacked(block, self.plan.bits) for block in self.frame["blocks"]]
        self.more: list[bytes] = []
        self.edit: Callable[[bytes], bytes] = lambda data: data
        self.record_more: dict[str, Any] = {}

    def bump(self, by: int = 1, places: range = range(1)) -> None:
        """Add to these coefficients, modulo each prime."""
        for j, q in enumerate(self.moduli):
            for place in places:
                at = j * self.plan.degree + place
                self.blocks[0][at] = (self.blocks[0][at] + by) % q

    def sign(self) -> None:
        """Tag it anew, as only one who has the group key can."""
        n, bits, ctx = self.plan.degree, self.plan.bits, ctx_of(self.announcement)
        limbs = [[flat[j * n : (j + 1) * n] for j in range(len(self.moduli))] for flat in self.blocks]
        tag = reference.hashed(self.key.group_key, ctx, limbs, self.moduli, bits)
        for name, seed, _ in self.frame["members"]:
            for i, pad in enumerate(reference.pads(self.key.group_key, ctx, seed, name, self.moduli, bits)):
                tag[i] = (tag[i] + self.weights[name] * pad) % self.moduli[i // 3]
        self.frame["tag"] = reference.packed(tag, bits).to_bytes(self.plan.tag_bytes, "little")

    def times(self, factor: int) -> None:
        """Multiply the whole sum, and its tag."""
        bits, tag = self.plan.bits, reference.unpacked(self.frame["tag"], self.plan.bits)
        self.blocks = [[v * factor % self.moduli[i // self.plan.degree] for i, v in enumerate(b)] for b in self.blocks]
        many = [v * factor % self.moduli[i // 3] for i, v in enumerate(tag[: 3 * len(self.moduli)])]
        self.frame["tag"] = reference.packed(many, bits).to_bytes(self.plan.tag_bytes, "little")

    def rotate(self) -> None:
        """Multiply by X."""
        n = self.plan.degree
        self.blocks = [
            [(flat[i - 1] if i % n else -flat[i + n - 1]) % self.moduli[i // n] for i in range(len(flat))]
            for flat in self.blocks
        ]

    def flip(self, field: str) -> None:
        self.frame[field] = bytes([self.frame[field][0] ^ 1]) + self.frame[field][1:]

    def member(self, index: int, **changes: Any) -> None:
        """Change a member, in the frame and in the record."""
        now = dict(zip(("name", "seed", "weight"), self.frame["members"][index], strict=True)) | changes
        self.frame["members"][index] = (now["name"], now["seed"], now["weight"])

    def made(self) -> tuple[dict[str, Any], bytes]:
        f, size = self.frame, self.plan.block_bytes
        place = reference.Place(f["federation"], f["generation"], f["round"], f["attempt"], f["ctx"], f["values"])
        blocks = [reference.packed(block, self.plan.bits).to_bytes(size, "little") for block in self.blocks]
        data = reference.frame(
            f["kind"], place, f["name"].decode(), [*blocks, *self.more], f["seed"], f["tag"], f["members"]
        )
        data = data[:6] + f["engine"].ljust(10, b"\0") + data[16:-32]
        data = self.edit(data + hashlib.sha256(data).digest())
        members = [{"name": n, "seed": s.hex(), "weight": w} for n, s, w in f["members"]]
        record = self.record | {"members": members, "digest": data[-32:].hex(), "tag": f["tag"].hex()}
        return record | self.record_more, data

    def open(self) -> None:
        Round(self.key, *self.made()).open()


def swap_weights(lie: Lie) -> None:
    (_, _, first), (_, _, second), *_ = lie.frame["members"]
    lie.member(0, weight=second)
    lie.member(1, weight=first)


def swap_announced_weights(lie: Lie) -> None:
    swap_weights(lie)
    people = lie.announcement["participants"]
    people[0]["num_examples"], people[1]["num_examples"] = people[1]["num_examples"], people[0]["num_examples"]
    lie.frame["ctx"] = ctx_of(lie.announcement)


def announce(field: str, value: Any, *, bind: bool = False) -> Callable[[Lie], None]:
    def tell(lie: Lie) -> None:
        lie.announcement[field] = value
        if bind:
            lie.frame["ctx"] = ctx_of(lie.announcement)

    return tell


def put(field: str, value: Any) -> Callable[[Lie], None]:
    return lambda lie: lie.frame.update({field: value})


def say(field: str, value: Any) -> Callable[[Lie], None]:
    return lambda lie: lie.record_more.update({field: value})


def residue(value_of: Callable[[Lie], int]) -> Callable[[Lie], None]:
    return lambda lie: lie.blocks[0].__setitem__(lie.plan.degree - 1, value_of(lie))


def edit(change: Callable[[bytes], bytes]) -> Callable[[Lie], None]:
    return lambda lie: setattr(lie, "edit", change)


def tag_bits(mask: Callable[[Lie], int]) -> Callable[[Lie], None]:
    def write(lie: Lie) -> None:
        number = int.from_bytes(lie.frame["tag"], "little") | mask(lie)
        lie.frame["tag"] = number.to_bytes(lie.plan.tag_bytes, "little")

    return write


def from_inside(by: Callable[[Lie], int], places: range = range(1)) -> Callable[[Lie], None]:
    """What a participant that breaks the rules does: the tag is right, and the sum is not in range."""

    def bend(lie: Lie) -> None:
        lie.bump(by(lie), places)
        lie.sign()

    return bend


def redigested(data: bytes) -> bytes:
    return data + hashlib.sha256(data).digest()


SECOND = {"name": "bob", "seed": "5e" * 32, "weight": 25}
BEFORE_A_SECRET: dict[str, tuple[str, Callable[[Lie], None]]] = {
    "cut in the middle": ("frame", edit(lambda data: data[: len(data) // 2])),
    "cut, and digested anew": ("frame", edit(lambda data: redigested(data[:-40]))),
    "a byte more": ("frame", edit(lambda data: data + b"\0")),
    "another magic": ("frame", edit(lambda data: redigested(b"HEFX" + data[4:-32]))),
    "another version": ("frame", edit(lambda data: redigested(data[:4] + b"\2" + data[5:-32]))),
    "a damaged byte": ("digest", edit(lambda data: data[:5000] + bytes([data[5000] ^ 1]) + data[5001:])),
    "a kind that is none": ("frame", put("kind", 3)),
    "an update": ("kind", put("kind", 1)),
    "another federation": ("federation", put("federation", bytes(16))),
    "another generation": ("generation", put("generation", 2)),
    "another engine": ("engine", put("engine", b"tenseal")),
    "another round": ("round", put("round", 2)),
    "another attempt": ("attempt", put("attempt", 2)),
    "another ctx": ("ctx", lambda lie: lie.flip("ctx")),
    "another nonce": ("ctx", announce("nonce", "77" * 32)),
    "another nonce, and its ctx": ("tag", announce("nonce", "77" * 32, bind=True)),
    "another head, and its ctx": ("tag", announce("head", "77" * 32, bind=True)),
    "another run, and its ctx": ("tag", announce("run", "77" * 16, bind=True)),
    "another deadline": ("ctx", announce("deadline_s", 61.0)),
    "a sender": ("name", put("name", b"alice")),
    "a value more": ("values", put("values", 34)),
    "a block more": ("blocks", lambda lie: lie.more.append(bytes(lie.plan.block_bytes))),
    "a tag too short": ("tag-length", lambda lie: lie.frame.update(tag=lie.frame["tag"][:-1])),
    "a seed of its own": ("seed", put("seed", b"\1" * 32)),
    "another digest in the record": ("record-digest", say("digest", "77" * 32)),
    "another tag in the record": ("record-tag", say("tag", "77" * 23)),
    "other members in the record": ("record-members", say("members", [SECOND])),
    "a member twice": ("names-distinct", lambda lie: lie.frame["members"].insert(0, lie.frame["members"][0])),
    "a member that was not announced": ("names-announced", lambda lie: lie.member(2, name="dave")),
    "weights exchanged": ("weights-announced", swap_weights),
    "weights exchanged, in the announcement too": ("tag", swap_announced_weights),
    "members in another order": ("names-ordered", lambda lie: lie.frame["members"].reverse()),
    "one member": ("members-enough", lambda lie: lie.frame.update(members=lie.frame["members"][:1])),
    "a member left out": ("tag", lambda lie: lie.frame["members"].pop()),
    "another seed": ("tag", lambda lie: lie.member(1, seed=bytes(32))),
    "a residue that is its prime": ("residues", residue(lambda lie: lie.moduli[0])),
    "a residue of all ones": ("residues", residue(lambda lie: (1 << lie.plan.bits) - 1)),
    "a tag that is not reduced": ("residues", tag_bits(lambda lie: (1 << lie.plan.bits) - 1)),
    "a tag with bits to spare": ("residues", tag_bits(lambda lie: 1 << 8 * lie.plan.tag_bytes - 1)),
    "a coefficient of one more": ("tag", lambda lie: lie.bump()),
    "one residue of one more": ("tag", residue(lambda lie: (lie.blocks[0][lie.plan.degree - 1] + 1) % lie.moduli[0])),
    "a value of one more": ("tag", lambda lie: lie.bump(1 << lie.plan.margin)),
    "another tag": ("tag", lambda lie: lie.flip("tag")),
    "twice the sum": ("tag", lambda lie: lie.times(2)),
    "times X": ("tag", lambda lie: lie.rotate()),
}
PADDING = range(4095, 4096)
"""A coefficient that holds no value in the recorded rounds."""

LARGEST = 42 * (2**23 - 1)
"""The largest sum that they can hold."""

AFTER_IT = {
    # More than the bound, and less than the margin has room for, wherever the honest noise is a little above 0.
    "noise": from_inside(lambda lie: 21 * sum(lie.weights.values()) + 1, range(4096)),
    "lanes": from_inside(lambda lie: LARGEST + 1 << lie.plan.margin, PADDING),
    "top-bits": from_inside(lambda lie: 1 << lie.plan.margin + lie.plan.width * lie.plan.lanes),
}


@pytest.fixture
def no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a one-time secret is expanded."""
    monkeypatch.setattr(reference, "one_time_secret", lambda *arguments: pytest.fail("a secret was touched"))


@pytest.mark.usefixtures("no_secret")
@pytest.mark.parametrize("what", BEFORE_A_SECRET)
def test_an_altered_round_is_refused_by_the_check_that_is_meant_for_it_before_a_secret_is_touched(
    what: str, key: Key, run: Recorded
) -> None:
    lie = Lie(key, run.records[1], run.aggregates[1])
    assert lie.made() == (run.records[1], run.aggregates[1])
    check, change = BEFORE_A_SECRET[what]
    change(lie)
    with pytest.raises(RefusedError) as caught:
        lie.open()
    assert caught.value.check == check


@pytest.mark.parametrize("check", AFTER_IT)
def test_a_genuine_sum_out_of_range_is_refused(check: str, key: Key, run: Recorded) -> None:
    lie = Lie(key, run.records[1], run.aggregates[1])
    lie.sign()
    assert lie.made() == (run.records[1], run.aggregates[1])
    from_inside(lambda lie: LARGEST << lie.plan.margin, PADDING)(lie)
    lie.open()
    lie.bump(-LARGEST << lie.plan.margin, PADDING)
    AFTER_IT[check](lie)
    with pytest.raises(RefusedError) as caught:
        lie.open()
    assert caught.value.check == check


@pytest.mark.usefixtures("no_secret")
def test_blocks_in_another_order_are_refused(key: Key, wide_run: Recorded) -> None:
    lie = Lie(key, wide_run.records[0], wide_run.aggregates[0])
    assert len(lie.blocks) > 1
    lie.blocks.reverse()
    with pytest.raises(RefusedError, match=r"^tag"):
        lie.open()


@pytest.mark.usefixtures("no_secret")
def test_an_aggregate_of_another_round_or_run_is_refused(key: Key, run: Recorded, wide_run: Recorded) -> None:
    with pytest.raises(RefusedError, match=r"^round"):
        Round(key, run.records[1], run.aggregates[2]).open()
    with pytest.raises(RefusedError, match=r"^ctx"):
        Round(key, run.records[1], wide_run.aggregates[1]).open()
    with pytest.raises(RefusedError, match=r"^tag"):
        Round(Key(key.federation, key.generation, bytes(32)), run.records[1], run.aggregates[1]).open()


def fork(records: list[dict[str, Any]]) -> None:
    """Another tag in round 1 than the one that round 2 was announced upon."""
    records[1]["tag"] = "77" * 23


HISTORIES: dict[str, tuple[str, Callable[[list[dict[str, Any]]], object]]] = {
    "a record left out": ("rounds", lambda records: records.pop(1)),
    "the first record left out": ("rounds", lambda records: records.pop(0)),
    "a record twice": ("rounds", lambda records: records.insert(1, records[1])),
    "records exchanged": ("rounds", lambda records: records.insert(1, records.pop(2))),
    "another head": ("head", lambda records: records[2]["announcement"].update(head="77" * 32)),
    "another beginning": ("head", lambda records: records[0]["announcement"].update(head="77" * 32)),
    "a fork": ("head", fork),
    "a round of another run": ("run", lambda records: records[2]["announcement"].update(run="77" * 16)),
    "a whole run in another's name": (
        "head",
        lambda records: [record["announcement"].update(run="77" * 16) for record in records],
    ),
}


@pytest.mark.parametrize("what", HISTORIES)
def test_a_history_that_is_not_one_chain_is_refused(what: str, key: Key, run: Recorded) -> None:
    records = [copy.deepcopy(run.records[number]) for number in sorted(run.records)]
    check_history(records, key, records[0]["announcement"]["run"])
    check, change = HISTORIES[what]
    change(records)
    with pytest.raises(RefusedError) as caught:
        check_history(records, key, records[0]["announcement"]["run"])
    assert caught.value.check == check


RECORDS: dict[str, Callable[[dict[str, Any]], object]] = {
    "a field too few": lambda r: r.pop("tag"),
    "a field too many": lambda r: r.update(more=1),
    "a member without a seed": lambda r: r["members"][0].pop("seed"),
    "no members": lambda r: r.update(members=[]),
    "digits in upper case": lambda r: r.update(digest=r["digest"].upper().replace("0", "A")),
    "a weight of 0": lambda r: r["members"][0].update(weight=0),
    "a weight with a fraction": lambda r: r["members"][0].update(weight=10.0),
    "true for a number": lambda r: r["announcement"].update(round=True),
    "a name in upper case": lambda r: r["members"][0].update(name="Alice"),
    "another engine": lambda r: r["announcement"].update(engine="tenseal"),
    "participants out of order": lambda r: r["announcement"]["participants"].reverse(),
    "a participant twice": lambda r: r["announcement"]["participants"].append(r["announcement"]["participants"][2]),
    "initial in a later round": lambda r: r["announcement"].update(exchange="initial"),
    "no deadline": lambda r: r["announcement"].update(deadline_s=0),
    "too many bits": lambda r: r["announcement"].update(precision_bits=41),
}


@pytest.mark.parametrize("what", RECORDS)
def test_a_record_out_of_form_is_refused(what: str, run: Recorded) -> None:
    record = copy.deepcopy(run.records[1])
    assert read_record(record) == record
    RECORDS[what](record)
    with pytest.raises(RefusedError, match=r"^record"):
        read_record(record)


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '{"a": NaN}', "{", '{"a": 1} 2'])
def test_json_out_of_form_is_refused(text: str) -> None:
    with pytest.raises(RefusedError, match=r"^record"):
        parse(text.encode())


def test_a_damaged_key_file_is_refused(secret_file: Path) -> None:
    data = secret_file.read_bytes()
    at = data.index(b"group-key: ") + 15
    other = b"A" if data[at : at + 1] != b"A" else b"B"
    spare = bytes([data[-3] + 1])  # the last digit of base64 before its padding: two of its bits say nothing
    for bad in (
        data[:-1],
        data + b"\n",
        data.replace(b"v1 secret", b"v1 public"),
        data[:at] + other + data[at + 1 :],
        data[:-3] + spare + data[-2:],
    ):
        with pytest.raises(RefusedError, match=r"^key-file"):
            read_key(bad)


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_names_what_passed_and_what_failed(secret_file: Path, run: Recorded, tmp_path: Path) -> None:
    record, aggregate, earlier = tmp_path / "record.json", tmp_path / "2.agg", tmp_path / "earlier.json"
    record.write_text(json.dumps(run.records[2]))
    aggregate.write_bytes(run.aggregates[2])
    earlier.write_text(json.dumps([run.records[0], run.records[1]]))

    def ran(*more: str | Path) -> tuple[int, list[str]]:
        command = [sys.executable, "-m", "verifier", secret_file, record, aggregate, *more]
        done = subprocess.run([*map(str, command)], cwd=HERE, capture_output=True, text=True, check=False)
        assert done.stderr == ""
        return done.returncode, done.stdout.splitlines()

    code, lines = ran("--earlier", earlier)
    assert code == 0
    assert [line.split()[1].strip(",:") for line in lines[:-1]] == [
        *("key-file", "record", "head", "frame", "place", "members", "residues", "tag", "top-bits")
    ]
    assert lines[-1].strip() == "57 exact sums of 3 clients, total weight 42"
    assert "skipped  head: --earlier was not given" in ran()[1]
    aggregate.write_bytes(run.aggregates[1])
    code, lines = ran()
    assert code == 1
    assert lines[-1].startswith("FAILED   round: ")
