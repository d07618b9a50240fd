"""The ``packed`` engine: exact fixed-point sums in CKKS, with one-time secrets and authentication.

Every update is encrypted under a secret of its own, derived from the group key, ctx, the client's name and a fresh
seed. Secrets add up as ciphertexts do: a sum decrypts under the same weighted sum of secrets, which every key holder
rebuilds from the list of who is in it. A server can neither read nor alter: a sum is authenticated before any secret
touches it (``mac``), and a decrypted one carries no noise.

One seed, one ciphertext: two messages under one (ctx, seed, name) would show their difference, so ``encrypt`` draws
the seed itself.

Source: Cheon, Kim, Kim, Song, eprint 2016/421, with values in coefficients instead of slots.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from hefl.ckks.bitpacking import add_multiple
from hefl.ckks.blocks import BlockCoder
from hefl.ckks.context import PublicContext, SecretContext
from hefl.ckks.lanes import I64, LANE, NOISE, TOP
from hefl.ckks.mac import Mac, tag_from_bytes, tag_to_bytes
from hefl.ckks.ntt import U32, U64
from hefl.ckks.parallel import ordered_map, usable_cores
from hefl.ckks.plan import Plan, Weights, choose_plan, largest_total, weights_in
from hefl.ckks.ring import shoup
from hefl.ckks.sampling import Streams, draw_noise, draw_secret
from hefl.ckks.selftest import check_kernels
from hefl.encoding.codec import Sum
from hefl.encoding.fixedpoint import FixedPointCodec
from hefl.engines.engine import Attempt, Blocks, Member, Terms, Trailer, Vector, Weighting, Write, check_members
from hefl.errors import EngineError, MalformedError, ParametersError, TamperError, UploadError
from hefl.models.layout import Layout
from hefl.params import (
    CLIENT_WEIGHT_BITS,
    MAX_NUM_EXAMPLES,
    NOISE_BOUND,
    PRECISION_BITS,
    PRECISION_BITS_RANGE,
    RINGS,
    WEIGHT_BUDGET,
    Ring,
)


class PackedEngine:
    """Exact, authenticated sums of fixed-point integers; see the module and engine.Engine.

    Vectors are int64, each value of magnitude at most 2**(precision_bits - 1) - 1.

    Args:
        precision_bits: Bits of a value, its sign included; 8 to 40. All parties use the same.
        weighting: ``client`` leaves room in each lane for a weight that clients multiply by.
        threads: Blocks worked on at once; default: as many as this process has cores.
    """

    name = "packed"
    verifies = True
    loopback_only = False
    max_num_examples = MAX_NUM_EXAMPLES

    def __init__(
        self,
        precision_bits: int = PRECISION_BITS,
        weighting: Weighting = "server",
        *,
        threads: int | None = None,
    ) -> None:
        low, high = PRECISION_BITS_RANGE
        extra = CLIENT_WEIGHT_BITS if weighting == "client" else 0
        if not low <= precision_bits <= high - extra:
            raise ParametersError(
                f"precision must be from {low} to {high - extra} bits with weighting {weighting!r}, "
                f"got {precision_bits}"
            )
        self.precision_bits = precision_bits
        self.weighting = weighting
        self.lane_bits = precision_bits + extra
        self.threads = threads or usable_cores()

    @property
    def terms(self) -> Terms:
        """Name, precision and weighting."""
        return Terms(self.name, self.precision_bits, self.weighting)

    def prepare(self) -> None:
        """Compile and check the kernels."""
        check_kernels(RINGS[0])

    def weight_of(self, name: str, attempt: Attempt) -> int:
        """One of the integers of ``weights``."""
        return self.weights(attempt).of[name]

    def warning(self, attempt: Attempt) -> str | None:
        """Whether the weights had to be rounded, and by how much."""
        off_by = self.weights(attempt).off_by
        if not off_by:
            return None
        return (
            f"the numbers of examples are rounded to a total of {WEIGHT_BUDGET}; "
            f"a client's share is off by up to {off_by:.2g} of itself"
        )

    def rounding(self, attempt: Attempt, members: Collection[str], name: str) -> float:
        """See engine.Engine."""
        return self.weights(attempt, members).off[name]

    def weighs_alike(self, attempt: Attempt, planned: Collection[str], members: Collection[str]) -> bool:
        """See engine.Engine: only rounded weights depend on who is in."""
        before = self.weights(attempt, planned).of
        return all(before[name] == weight for name, weight in self.weights(attempt, members).of.items())

    def weights(self, attempt: Attempt, members: Collection[str] | None = None) -> Weights:
        """The integers by which the updates of a sum's members are multiplied; None: of all who are announced."""
        return weights_in(attempt.weights, members)

    def plan(self, attempt: Attempt) -> Plan:
        """What this attempt costs."""
        return choose_plan(attempt.values, self.lane_bits, largest_total(attempt.weights))

    def codec(self, layout: Layout) -> FixedPointCodec:
        """Fixed-point integers of this engine's precision."""
        return FixedPointCodec(layout, self.precision_bits)

    def block_count(self, attempt: Attempt) -> int:
        """As the plan has it."""
        return self.plan(attempt).blocks

    def max_block_bytes(self, attempt: Attempt) -> int:
        """As the plan has it; every block has exactly so many."""
        return self.plan(attempt).block_bytes

    def tag_bytes(self, attempt: Attempt) -> int:
        """As the plan has it."""
        return self.plan(attempt).tag_bytes

    def encrypt(self, vector: Vector, secret: SecretContext, attempt: Attempt, name: str, write: Write) -> Trailer:
        """Encrypt an int64 vector of shape (attempt.values,); see engine.Engine.

        Raises:
            ParametersError: The vector has another shape or dtype, or holds a larger value.
            KernelError: Noise, a random stream or compiled code fails its check.
        """
        coder = self._coder(attempt, secret.rings)
        plan, basis = coder.plan, coder.basis
        _check_vector(vector, plan)
        mac = Mac(secret, attempt.ctx, basis, plan.blocks)
        seed, noises = os.urandom(32), Streams(os.urandom(32))
        one_time = coder.secret(one_time_secret(secret, attempt.ctx, name, seed, basis.degree))

        def encrypt_block(block: int) -> tuple[memoryview, U64]:
            residues = np.empty((basis.limbs, basis.degree), np.uint32)
            noise = draw_noise(noises, block, basis.degree)
            products = coder.products(block, one_time)
            coder.lanes.encode(_lanes_of(vector, block, plan), noise, products, residues)
            return coder.to_bytes(residues), mac.hash(residues)

        hashes = []
        for data, part in ordered_map(encrypt_block, range(plan.blocks), self.threads):
            write(data)
            hashes.append(part)
        tag = mac.add_pad(mac.total(hashes), name, seed, 1)
        return Trailer(seed, tag_to_bytes(tag, plan.limb_bits))

    def aggregator(
        self, public: PublicContext, attempt: Attempt, members: Collection[str] | None = None
    ) -> PackedAggregator:
        """An empty sum; see engine.Engine."""
        return PackedAggregator(self._coder(attempt, public.rings), self.weights(attempt, members).of)

    def decrypt(
        self, blocks: Blocks, tag: bytes, secret: SecretContext, attempt: Attempt, members: Sequence[Member]
    ) -> Sum:
        """Authenticate a sum as the members' announced one, and only then decrypt it; see engine.Engine.

        Returns:
            The exact sum of weight_i * vector_i as int64, and the total weight, by the members' reduced weights.

        Raises:
            TamperError: It is not the announced weighted sum of these members' updates.
            UploadError: It is, and a member encrypted what the protocol does not allow.
        """
        coder = self._coder(attempt, secret.rings)
        check_members(members, attempt.weights)
        reduced = self.weights(attempt, [m.name for m in members]).of
        weighted = [(m.name, m.seed, reduced[m.name]) for m in members]
        mac = Mac(secret, attempt.ctx, coder.basis, coder.plan.blocks)
        hashes = self._authenticate(coder, mac, blocks, tag, weighted)
        poly = np.zeros(coder.basis.degree, np.int64)
        for name, seed, weight in weighted:
            poly += weight * one_time_secret(secret, attempt.ctx, name, seed, poly.size)
        return self._open(coder, mac, blocks, hashes, poly, sum(weight for _, _, weight in weighted))

    def _authenticate(
        self, coder: BlockCoder, mac: Mac, blocks: Blocks, tag: bytes, members: Sequence[tuple[str, bytes, int]]
    ) -> list[U64]:
        """Compare the sum's tag with the one that its blocks and members must have; returns the blocks' hashes."""
        announced = tag_from_bytes(tag, coder.basis)
        hashes = [mac.hash(coder.from_bytes(data)) for data in coder.counted(blocks())]
        expected = mac.total(hashes)
        for name, seed, weight in members:
            expected = mac.add_pad(expected, name, seed, weight)
        if not hmac.compare_digest(expected.tobytes(), announced.tobytes()):
            raise TamperError(
                "the aggregate is not the announced weighted sum of this attempt's updates; it was not decrypted",
                hint="the server, or something between it and this client, altered what it sent",
                check="tag",
            )
        return hashes

    def _open(
        self,
        coder: BlockCoder,
        mac: Mac,
        blocks: Blocks,
        hashes: Sequence[U64],
        poly: I64,
        total: int,
    ) -> Sum:
        """Decrypt an authenticated sum under the sum of its secrets, and check that all of it is in range."""
        plan, secret = coder.plan, coder.secret(poly)
        out = np.empty(plan.values, np.int64)
        noise_bound, lane_bound = NOISE_BOUND * total, total * value_bound(plan.precision_bits)

        def decrypt_block(numbered: tuple[int, bytes]) -> int:
            block, data = numbered
            residues = coder.from_bytes(data)
            # The blocks are read a second time: they must be those that were authenticated.
            if not (mac.hash(residues) == hashes[block]).all():
                raise TamperError("a block changed after it was authenticated", check="tag")
            part = out[block * plan.values_per_block : (block + 1) * plan.values_per_block]
            whole = part.size == plan.values_per_block
            lanes = (part if whole else np.empty(plan.values_per_block, np.int64)).reshape(plan.lanes, -1)
            found = coder.lanes.decode(residues, coder.products(block, secret), noise_bound, lane_bound, lanes)
            if not whole:
                part[:] = lanes.reshape(-1)[: part.size]
            return found

        found = 0
        for flags in ordered_map(decrypt_block, enumerate(coder.counted(blocks())), self.threads):
            found |= flags
        if found:
            fields = {TOP: "bits above the values", NOISE: "the noise", LANE: "a value"}
            where = ", ".join(what for flag, what in fields.items() if found & flag)
            raise UploadError(
                f"a participant's upload is out of range ({where}); the sum is genuine and cannot be used",
                hint="every participant must run this version of hefl with the same precision",
            )
        return Sum(out, total)

    def _coder(self, attempt: Attempt, rings: Sequence[Ring]) -> BlockCoder:
        plan = self.plan(attempt)
        if plan.ring not in rings:
            raise EngineError(
                f"this attempt needs the ring {plan.ring}, which the keys do not allow",
                hint="make new keys with this version of hefl",
            )
        check_kernels(plan.ring)
        return BlockCoder(plan, attempt.ctx)


class PackedAggregator:
    """One running sum, reduced modulo each prime: a 32-bit word for each residue, whatever the number of clients.

    In one thread: a block takes less time to add than to hand over.
    """

    def __init__(self, coder: BlockCoder, weights: Mapping[str, int]) -> None:
        self._coder = coder
        self._weights = weights
        basis, plan = coder.basis, coder.plan
        self._sum: U32 = np.zeros((plan.blocks, basis.limbs, basis.degree), np.uint32)
        self._tag: U64 = np.zeros_like(tag_from_bytes(bytes(plan.tag_bytes), basis))
        self._moduli = basis.moduli.astype(np.uint64)[:, None]
        self._broken = False

    def add(self, name: str, blocks: Blocks, trailer: Trailer) -> None:
        """Multiply and add; see engine.Aggregator."""
        coder, weight = self._coder, self._weights[name]
        tag = tag_from_bytes(trailer.tag, coder.basis)
        for data in coder.counted(blocks()):
            coder.from_bytes(data)  # every block parses before the first one counts
        factors = (weight % self._moduli).astype(np.uint32)
        companions = shoup(factors, coder.basis.moduli[:, None])
        try:
            for block, data in enumerate(coder.counted(blocks())):
                residues = coder.from_bytes(data)
                add_multiple(self._sum[block], residues, factors[:, 0], companions[:, 0], coder.basis.moduli)
        except BaseException:
            self._broken = True
            raise
        self._tag = (self._tag + np.uint64(weight) * tag) % self._moduli

    def finish(self, write: Write) -> bytes:
        """Write the sum; see engine.Aggregator.

        Raises:
            MalformedError: An update was added in part, because reading it failed; no client would accept the sum.
        """
        if self._broken:
            raise MalformedError("an update was added in part: the sum cannot be used")
        for residues in self._sum:
            write(self._coder.to_bytes(residues))
        return tag_to_bytes(self._tag, self._coder.plan.limb_bits)


def one_time_secret(secret: SecretContext, ctx: bytes, name: str, seed: bytes, degree: int) -> I64:
    """The secret polynomial of one update, shape (degree,)."""
    return draw_secret(secret.derive("hefl/v1/secret" + name, ctx + seed), degree)


def value_bound(precision_bits: int) -> int:
    """The largest magnitude of a value."""
    return (1 << (precision_bits - 1)) - 1


def _check_vector(vector: NDArray[np.generic], plan: Plan) -> None:
    if vector.shape != (plan.values,) or vector.dtype != np.int64:
        raise ParametersError(
            f"the packed engine encrypts int64 vectors of shape ({plan.values},), got {vector.dtype} {vector.shape}"
        )
    bound = value_bound(plan.precision_bits)
    if not -bound <= int(vector.min()) <= int(vector.max()) <= bound:
        raise ParametersError(f"a value needs more than the {plan.precision_bits} bits that this precision has")


def _lanes_of(vector: I64, block: int, plan: Plan) -> I64:
    """One block's values, shape (lanes, N); zeros where the vector has ended."""
    part = vector[block * plan.values_per_block : (block + 1) * plan.values_per_block]
    if part.size < plan.values_per_block:
        part = np.concatenate([part, np.zeros(plan.values_per_block - part.size, np.int64)])
    return part.reshape(plan.lanes, plan.ring.degree)
