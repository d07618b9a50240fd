"""Choose the parameters of one attempt of the ``packed`` engine, and say what they cost.

Clients and server compute the plan from the announcement; nobody takes it from the wire.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fractions import Fraction

from hefl.errors import ParametersError
from hefl.params import (
    BLOCKS_AT_ONCE,
    MAX_CLIENTS,
    MAX_VALUES,
    NOISE_BOUND,
    PRECISION_BITS_RANGE,
    RINGS,
    TAG_REPEATS,
    WEIGHT_BUDGET,
    Ring,
)

SEED_BYTES = 32


@dataclass(frozen=True, slots=True)
class Weights:
    """Integer weights by which the server multiplies.

    Attributes:
        of: By client's name, each at least 1.
        total: Their sum.
        off: How far each client's share is from its share of the examples, relative to that; 0 where exact.
    """

    of: Mapping[str, int]
    total: int
    off: Mapping[str, float]

    @property
    def off_by(self) -> float:
        """The largest magnitude in ``off``."""
        return max(map(abs, self.off.values()))


def largest_total(announced: Mapping[str, int], budget: int = WEIGHT_BUDGET) -> int:
    """The largest total weight of any sum of announced clients: lanes must have room for it before it is known who
    is in.
    """
    return min(sum(_by_gcd(announced).values()), budget)


def weights_in(
    announced: Mapping[str, int], members: Collection[str] | None = None, budget: int = WEIGHT_BUDGET
) -> Weights:
    """Integer weights of a sum of these members; None: of all who are announced.

    Where nothing need be rounded, a weight does not depend on who is missing. Where it must, only members count: who
    is announced with very many examples and sends nothing would otherwise flatten everybody else's weights.

    Raises:
        ParametersError: As reduce_weights.
    """
    chosen = {n: count for n, count in announced.items() if members is None or n in members}
    weights = reduce_weights(announced, budget)
    if weights.off_by and chosen:
        return weights if len(chosen) == len(announced) else reduce_weights(chosen, budget)
    of = {name: weights.of[name] for name in chosen}
    return Weights(of, sum(of.values()), dict.fromkeys(of, 0.0))


def reduce_weights(num_examples: Mapping[str, int], budget: int = WEIGHT_BUDGET) -> Weights:
    """Divide by the greatest common divisor; where the total passes the budget, round to it by largest remainder.

    Rounding gives each client its share of the budget rounded down, but never below 1, and what is left over to the
    largest remainders, by order where they are equal.

    Raises:
        ParametersError: No client, more clients than the budget, or a number below 1.
    """
    if not 1 <= len(num_examples) <= min(budget, MAX_CLIENTS) or min(num_examples.values()) < 1:
        raise ParametersError(f"weights need from 1 to {MAX_CLIENTS} clients with 1 example or more each")
    weights = _by_gcd(num_examples)
    if sum(weights.values()) <= budget:
        return Weights(weights, sum(weights.values()), dict.fromkeys(weights, 0.0))
    rounded = _by_gcd(_largest_remainder(weights, budget))
    before, after = sum(weights.values()), sum(rounded.values())
    return Weights(rounded, after, {n: float(Fraction(rounded[n] * before, after * w) - 1) for n, w in weights.items()})


def _by_gcd(numbers: Mapping[str, int]) -> dict[str, int]:
    divisor = math.gcd(*numbers.values())
    return {name: n // divisor for name, n in numbers.items()}


def _largest_remainder(weights: Mapping[str, int], budget: int) -> dict[str, int]:
    raised: dict[str, int] = {}
    while True:
        rest = {name: w for name, w in weights.items() if name not in raised}
        left, total = budget - len(raised), sum(rest.values())
        small = [name for name, w in rest.items() if w * left < total]
        if not small:
            break
        raised |= dict.fromkeys(small, 1)
    shares = {name: divmod(w * left, total) for name, w in rest.items()}
    over = left - sum(share for share, _ in shares.values())
    first = sorted(shares, key=lambda name: -shares[name][1])[:over]
    return {n: raised[n] if n in raised else shares[n][0] + (n in first) for n in weights}


@dataclass(frozen=True, slots=True)
class Plan:
    """Ring, limbs and lanes for weighted sums of vectors of fixed-point integers.

    No overflow is possible. With v the values, w the weights, W their total, p the precision and e the noise:

    - encrypt refuses |v| > 2**(p-1) - 1, so |sum w v| <= W (2**(p-1) - 1) < 2**(width-1), as width = p + ceil(log2 W):
      each sum stays inside its lane.
    - |e| <= 21 always (centred binomial, eta = 21), so |sum w e| <= 21 W < 2**(margin-1): rounding the margin away is
      exact, with no probability of failure.
    - margin + lanes * width <= log2 of the product of the limbs used: the coefficient does not wrap modulo Q.
    - The server keeps sums reduced modulo each prime; weights are below 2**17 and primes below 2**30, so products fit
      64 bits.
    - width <= 63: a lane fits a signed 64-bit integer. The remaining bounds belong to the kernels (``ckks.lanes``):
      limbs and words + 1 <= 2**(32 - limb_bits), and every prime within a factor 2 of every other.

    Attributes:
        values: Length of a vector.
        precision_bits: p.
        total_weight: W, the largest that a sum of announced clients can have.
        ring: Whose first ``limbs`` primes are used. Fewer limbs than the ring has mean a smaller modulus, hence more
            security than the ring's.
        limbs, lanes, width_bits, margin_bits: The layout.
    """

    values: int
    precision_bits: int
    total_weight: int
    ring: Ring
    limbs: int
    lanes: int
    width_bits: int
    margin_bits: int

    @property
    def limb_bits(self) -> int:
        """Bits of a residue on the wire."""
        return self.ring.limb_bits[0]

    @property
    def values_per_block(self) -> int:
        """Values in one ciphertext."""
        return self.lanes * self.ring.degree

    @property
    def blocks(self) -> int:
        """Ciphertexts of an update, and of a sum."""
        return -(-self.values // self.values_per_block)

    @property
    def block_bytes(self) -> int:
        """Bytes of one ciphertext: a residue for each limb and coefficient, packed to the bit."""
        return self.limbs * self.ring.degree * self.limb_bits // 8

    @property
    def tag_bytes(self) -> int:
        """Bytes of a tag."""
        return -(-self.limbs * TAG_REPEATS * self.limb_bits // 8)

    @property
    def update_bytes(self) -> int:
        """Bytes of an update, without the frame around it: ciphertexts, seed and tag."""
        return self.blocks * self.block_bytes + SEED_BYTES + self.tag_bytes

    def aggregate_bytes(self, clients: int) -> int:
        """Bytes of a sum, without the frame: ciphertexts, tag, and a name, seed and weight for each client in it."""
        return self.blocks * self.block_bytes + self.tag_bytes + clients * (32 + SEED_BYTES + 8)

    @property
    def sum_bytes(self) -> int:
        """A running sum in memory, whatever the number of clients: a 32-bit word for each residue."""
        return self.blocks * self.limbs * self.ring.degree * 4

    def client_memory_bytes(self, threads: int) -> int:
        """A vector of 64-bit integers, and what each thread works with.

        A thread holds, at most twice over, a block's values, its residues and products, and its random words, and
        the bytes of the blocks that it was handed; all threads share the tables and the MAC's keys.
        """
        words = self.limbs * self.ring.degree * 4
        per_block = 8 * self.values_per_block + 4 * words + 2 * BLOCKS_AT_ONCE * self.block_bytes
        return 8 * self.values + 2 * threads * per_block + 12 * words

    @property
    def error_bound(self) -> float:
        """Largest difference of an average from that of the unrounded values, as a part of a tensor's range.

        Half a step of rounding, and up to a whole step where a value just inside the range saturates.
        """
        return 2.0 ** -(self.precision_bits - 1)


@functools.lru_cache(maxsize=64)
def choose_plan(values: int, precision_bits: int, total_weight: int) -> Plan:
    """The plan of fewest bytes; on equal bytes the smaller ring, then fewer limbs.

    Raises:
        ParametersError: A number is out of bounds.
    """
    low, high = PRECISION_BITS_RANGE
    if not low <= precision_bits <= high:
        raise ParametersError(f"precision must be from {low} to {high} bits, got {precision_bits}")
    if not 1 <= values <= 4 * MAX_VALUES:
        raise ParametersError(f"from 1 to {4 * MAX_VALUES} values can be encrypted, got {values}")
    if not 1 <= total_weight <= WEIGHT_BUDGET:
        raise ParametersError(f"the total weight must be from 1 to {WEIGHT_BUDGET}, got {total_weight}")
    margin = (NOISE_BOUND * total_weight).bit_length() + 1
    width = precision_bits + (total_weight - 1).bit_length()
    candidates = []
    for ring in RINGS:
        for limbs in range(1, len(ring.limb_bits) + 1):
            # A prime of b bits is above 2**(b-1); the rings' are so close to 2**b that their product loses one bit at
            # most. ckks.lanes compares with the product itself.
            lanes = (sum(ring.limb_bits[:limbs]) - 1 - margin) // width
            if lanes >= 1:
                candidates.append(Plan(values, precision_bits, total_weight, ring, limbs, lanes, width, margin))
    return min(candidates, key=lambda plan: (plan.update_bytes, plan.ring.degree, plan.limbs))
