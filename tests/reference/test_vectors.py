"""The wire format as published: what hefl/protocol/README.md says of it, and the frames in vectors/, good and bad."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import re
import struct
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import numpy as np
import packed_reference as reference
import pytest

import hefl
from hefl import errors
from hefl.ckks.context import Fingerprints, PublicContext, SecretContext
from hefl.ckks.plan import choose_plan, weights_in
from hefl.engines.packed import PackedEngine
from hefl.errors import HeflError, TamperError, UploadError
from hefl.identity import Identity
from hefl.params import RINGS
from hefl.protocol import frames
from hefl.protocol.records import Announcement, MemberEntry, Participant, Record, genesis
from hefl.protocol.updates import Aggregation, read_aggregate

FOLDER = Path(__file__).parent / "vectors"
VECTORS = json.loads((FOLDER / "frames.json").read_text())
SUMS = {entry["what"]: entry for entry in VECTORS["sums"]}
PAGES = ("protocol", "ckks", "encoding", "server")
README = "\n".join((Path(hefl.__file__).parent / page / "README.md").read_text() for page in PAGES)


class Case:
    """A sum of the vectors, with everything that reads it."""

    def __init__(self, entry: dict[str, Any]) -> None:
        self.entry = entry
        self.announcement = msgspec.convert(entry["announcement"], Announcement)
        identity = Identity(entry["federation"], entry["generation"])
        self.secret = SecretContext(identity, b"", RINGS, bytes.fromhex(entry["published_test_key"]))
        self.public = PublicContext(identity, b"", RINGS, Fingerprints("", ""))
        self.engine = PackedEngine(self.announcement.precision_bits, threads=1)

    def aggregation(self) -> Aggregation:
        return Aggregation(self.public, self.engine, self.announcement)

    def add(self, aggregation: Aggregation, data: bytes, name: str) -> None:
        aggregation.add(aggregation.open(data, name), name)

    def values(self, cycle: list[int]) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.resize(np.array(cycle, np.int64), self.announcement.values)


def frame(name: str) -> bytes:
    return (FOLDER / name).read_bytes()


def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_vectors", FOLDER / "make.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- what the page says -----------------------------------------------------------------------------------------------


def test_the_header_table_is_the_headers_layout() -> None:
    rows = re.findall(r"^\| (\d+) \| (\d+) \| ([a-z ]+) \|", README, re.MULTILINE)
    tokens = re.findall(r"\d*[a-zA-Z]", frames.HEADER.format)
    sizes = [struct.calcsize("<" + field) for token in tokens for field in _repeated(token)]
    assert [int(size) for _, size, _ in rows] == sizes
    assert [int(at) for at, _, _ in rows] == [sum(sizes[:i]) for i in range(len(sizes))]
    assert sum(sizes) == frames.HEADER.size
    first = ["magic", "version", "kind", "engine", "federation", "generation", "round", "attempt", "ctx", "name"]
    assert [name for _, _, name in rows] == [*first, "values", "block count", "member count", "tag length"]


def _repeated(token: str) -> list[str]:
    """``3I`` is three numbers, ``32s`` is one field."""
    return [token] if token.endswith("s") else [token[-1]] * int(token[:-1] or 1)


def test_the_header_table_finds_each_field_in_a_frame() -> None:
    rows = re.findall(r"^\| (\d+) \| (\d+) \| ([a-z ]+) \|", README, re.MULTILINE)
    case, data = Case(SUMS["default"]), frame("default.aggregate")
    raw = {name: data[int(at) : int(at) + int(size)] for at, size, name in rows}
    numbers = {name: int.from_bytes(value, "little") for name, value in raw.items()}
    assert (raw["magic"], raw["engine"].rstrip(b"\0"), raw["name"]) == (b"HEFL", b"packed", bytes(32))
    assert (raw["federation"].hex(), raw["ctx"]) == (case.entry["federation"], case.announcement.ctx)
    fields = ("version", "kind", "generation", "round", "attempt", "values", "block count", "member count")
    assert [numbers[field] for field in fields] == [1, 2, 1, 1, 2, 7, 1, 2]
    assert numbers["tag length"] * 2 == len(case.entry["record"]["tag"])


def test_the_table_of_rings_is_that_of_the_code() -> None:
    rows = [tuple(map(int, row)) for row in re.findall(r"^\| (\d{4,}) \| (\d+) \| (\d+) \|$", README, re.MULTILINE)]
    assert rows == [(ring.degree, ring.limb_bits[0], len(ring.limb_bits)) for ring in RINGS]


def test_the_page_lists_the_fields_of_announcements_and_records() -> None:
    objects = {"announcement": Announcement, "participant": Participant, "record": Record, "member": MemberEntry}
    rows = re.findall(r"^\| ([a-z]+) \| (`[a-z_]+`.*) \|$", README, re.MULTILINE)
    listed = {name: tuple(re.findall(r"`([a-z_]+)`", fields)) for name, fields in rows}
    assert listed == {name: cls.__struct_fields__ for name, cls in objects.items()}


def test_every_error_that_the_page_names_exists_and_is_in_the_vectors() -> None:
    named = set(re.findall(r"\b([A-Z][a-z]+Error)\b", README))
    assert all(issubclass(getattr(errors, name), HeflError) for name in named)
    assert {entry["error"] for entry in VECTORS["bad"]} == named - {"UploadError"}


def test_the_pages_are_short() -> None:
    assert len(README.splitlines()) <= 290


# --- good vectors -----------------------------------------------------------------------------------------------------


def test_the_reference_makes_the_vectors_again() -> None:
    described, files = maker().build()
    assert described == VECTORS
    for name, data in files.items():
        assert data == frame(name), name
    assert files.keys() == {p.name for p in FOLDER.iterdir() if p.suffix in {".update", ".aggregate"}}


@pytest.mark.parametrize("entry", VECTORS["weights"], ids=lambda entry: str(entry["num_examples"]))
def test_weights_are_reduced_as_published(entry: dict[str, Any]) -> None:
    assert weights_in(entry["num_examples"], entry["members"]).of == entry["weights"]


@pytest.mark.parametrize("entry", VECTORS["plans"], ids=lambda entry: str(entry["values"]))
def test_plans_are_those_published(entry: dict[str, Any]) -> None:
    plan = choose_plan(entry["values"], entry["precision_bits"], entry["total_weight"])
    assert entry == {
        "values": plan.values,
        "precision_bits": plan.precision_bits,
        "total_weight": plan.total_weight,
        "degree": plan.ring.degree,
        "bits": plan.limb_bits,
        "limbs": plan.limbs,
        "lanes": plan.lanes,
        "margin": plan.margin_bits,
        "width": plan.width_bits,
        "blocks": plan.blocks,
        "block_bytes": plan.block_bytes,
        "tag_bytes": plan.tag_bytes,
    }


@pytest.mark.parametrize("what", SUMS)
def test_heads_and_ctx_are_those_published(what: str) -> None:
    case = Case(SUMS[what])
    record = msgspec.convert(case.entry["record"], Record)
    assert case.announcement.ctx.hex() == case.entry["ctx"]
    assert case.announcement.head == genesis(case.secret.identity, case.announcement.run)
    assert record.head == case.entry["head"]


@pytest.mark.parametrize("what", SUMS)
def test_an_aggregate_decrypts_to_the_stated_integers(what: str) -> None:
    case = Case(SUMS[what])
    data, record = frame(f"{what}.aggregate"), msgspec.convert(case.entry["record"], Record)
    total = read_aggregate(data, case.secret, case.engine, case.announcement, record)
    assert total.total_weight == case.entry["total_weight"]
    assert (total.vector == case.values(case.entry["sum"])).all()


def test_published_updates_add_up_to_the_published_aggregate_byte_for_byte() -> None:
    case = Case(SUMS["default"])
    aggregation, out = case.aggregation(), io.BytesIO()
    for name in case.entry["cycles"]:
        case.add(aggregation, frame(f"default-{name}.update"), name)
    record = aggregation.finish(out)
    assert out.getvalue() == frame("default.aggregate")
    assert record == msgspec.convert(case.entry["record"], Record)


@pytest.mark.parametrize("name", ["alice", "bob"])
def test_an_update_by_itself_is_the_stated_vector(name: str) -> None:
    case = Case(SUMS["default"])
    update, blocks = frames.open_frame(frame(f"default-{name}.update")), list[bytes]()
    attempt = case.announcement.as_attempt()
    aggregator = case.engine.aggregator(case.public, attempt)
    aggregator.add(name, update.blocks, update.trailer)
    tag = aggregator.finish(lambda data: blocks.append(bytes(data)))
    member = hefl.engines.engine.Member(name, update.trailer.seed, attempt.weights[name])
    total = case.engine.decrypt(lambda: iter(blocks), tag, case.secret, attempt, [member])
    assert (total.vector == total.total_weight * case.values(case.entry["cycles"][name])).all()


def test_files_have_the_published_hashes() -> None:
    for entry in SUMS.values():
        for name, digest in entry["sha256"].items():
            assert hashlib.sha256(frame(name)).hexdigest() == digest


# --- bad vectors ------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a one-time secret is expanded: a bad frame is refused before."""

    def expand(*arguments: object) -> None:
        pytest.fail("a secret was touched")

    monkeypatch.setattr("hefl.engines.packed.one_time_secret", expand)


@pytest.mark.usefixtures("no_secret")
@pytest.mark.parametrize("entry", VECTORS["bad"], ids=lambda entry: f"{entry['of']}: {entry['what']}")
def test_a_bad_frame_is_refused_with_the_stated_error(entry: dict[str, Any]) -> None:
    data = frame(entry["of"])
    for at, length, put in sorted(entry["edits"], reverse=True):
        data = data[:at] + bytes.fromhex(put) + data[at + length :]
    if entry["digest"]:
        data = data[:-32] + hashlib.sha256(data[:-32]).digest()
    assert hashlib.sha256(data).hexdigest() == entry["sha256"]

    case = Case(SUMS[entry["sum"]] | entry["with"])
    with pytest.raises(HeflError) as caught:
        if entry["from"]:
            case.add(case.aggregation(), data, entry["from"])
        else:
            read_aggregate(data, case.secret, case.engine, case.announcement)
    assert type(caught.value).__name__ == entry["error"]
    assert entry["message"] in str(caught.value)
    assert (caught.value.check if isinstance(caught.value, TamperError) else "") == entry["check"]


def test_a_bad_update_leaves_the_sum_as_it_was() -> None:
    case = Case(SUMS["default"])
    aggregation, out = case.aggregation(), io.BytesIO()
    for entry in VECTORS["bad"]:
        if entry["from"] and entry["error"] == "MalformedError" and "residue" in entry["what"]:
            (at, length, put), good = entry["edits"][0], frame(entry["of"])
            data = good[:at] + bytes.fromhex(put) + good[at + length : -32]
            with pytest.raises(HeflError):
                case.add(aggregation, data + hashlib.sha256(data).digest(), entry["from"])
    for name in case.entry["cycles"]:
        case.add(aggregation, frame(f"default-{name}.update"), name)
    aggregation.finish(out)
    assert out.getvalue() == frame("default.aggregate")


def test_a_genuine_sum_of_what_no_client_may_encrypt_is_an_upload_error() -> None:
    make = maker()
    for value in (2**23, 2**26):
        cycles = {"alice": [value], "bob": [value]}
        made = make.WeightedSum("beyond", 24, 1, {"alice": 30, "bob": 10}, cycles)
        case = Case(made.described([]))
        with pytest.raises(UploadError, match="out of range"):
            read_aggregate(made.frames["beyond.aggregate"], case.secret, case.engine, case.announcement)


def test_no_published_key_is_in_use_elsewhere_or_looks_like_a_key_file() -> None:
    keys = {entry["published_test_key"] for entry in SUMS.values()}
    assert len(keys) == len(SUMS)
    for path in FOLDER.iterdir():
        if path.is_file():
            assert not path.read_bytes().startswith(b"hefl/v1")
    assert "group-key" not in (FOLDER / "frames.json").read_text()
    assert reference.canonical({"b": 1, "a": [60.0]}) == b'{"a":[60.0],"b":1}'
