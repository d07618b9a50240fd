"""Default numbers: names, rings, limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

PROTOCOL = 1
"""Version of the HTTP protocol, the wire format and the key files; each carries it."""

ENGINES = ("packed", "tenseal", "plaintext")
DEFAULT_ENGINE = "packed"

WEIGHTINGS = ("server", "client")
"""Who multiplies an update by its sample weight."""

DATA_SETS = ("iris", "digits", "breast_cancer", "wine")
"""The examples' data."""

NAME_PATTERN = r"[a-z0-9][a-z0-9-]{0,31}"
"""Clients' names, whole."""

MIN_CLIENTS = 2
"""Fewer clients than this in a sum would hand one client's update to the others."""

MAX_USELESS_SUMS = 3
"""After so many sums in a row that made no model, a client and an honest server stop: one client spoils them."""

MAX_CLIENTS = 1024
MAX_NUM_EXAMPLES = 2**40
MAX_VALUES = 2**31
"""Bounds on what a peer may announce, checked before anything is allocated."""

SERVED_NUM_EXAMPLES = 2**24
"""A server takes no client with more examples, unless whoever runs it says so: one client's many make the others' few
count the same."""

MAX_METRICS = 64
METRIC_RANGE = 2.0**6
"""Metrics beyond this saturate, and the client says so."""
LOSS_STEP = 2.0**-20
"""Losses are compared in such steps: what an approximate engine adds to an average is far smaller."""

SILENT_S = 10.0
"""A client that has not been heard of for so long is taken for dead until it calls again."""

EXPIRY_NOTICE_DAYS = 30
"""A certificate that expires within so many days is announced."""

POLL_S = 4.0
"""A client's question "what is new?" is answered at the latest after so long; well under SILENT_S."""

CONNECT_TIMEOUT_S = 360.0
"""A client tries for so long where nobody answers: people who start server and clients do so within five minutes."""

MAX_CONNECTIONS = 1024
"""A server has no more connections at once; a client needs two or three."""
LEAST_CONNECTIONS = 2
MAX_CONNECTIONS_OF_CLIENT = 8
PAGE_CONNECTIONS = 64
"""The page has no more at once; a browser needs one that stays, and a few more at first."""

SERVER_BYTES = 350_000_000
"""Most that a server's process takes beside its sum and its connections: interpreter, libraries, compiled code; and the
compiler, at the first start. Measured: 180 to 250 MB, and 335 MB where it compiles."""
CONNECTION_BYTES = 500_000
"""Most that the connections of one client take of it. Measured: 0.4 MB where 100 clients upload at once."""

PATIENCE_S = 20.0
"""So long may TLS take, a request's head, and a connection without a request; and so long may a body stand still."""
MIN_BYTES_PER_S = 1000
"""A body comes at least so fast, and an answer is taken so fast, over PATIENCE_S."""

TURNS_AT_ONCE, TURNS_PER_S = 40.0, 4.0
"""So often may a client join, leave, or say something else that is written to the journal."""

LINES_AT_ONCE, LINES_PER_S = 50.0, 1.0
"""So many lines of a server's log may be about what one client was refused; the others are counted."""

EXAMPLE_VALUES, EXAMPLE_CLIENTS = 1_663_370, 3
"""Of the federation that is measured, and planned, where nobody names another."""

ROUNDS = 20
"""Trainings of a run, where whoever runs it does not say."""

JOIN_WAIT_S = 2.0
"""So long does a server wait for the other known clients, once there are enough for a run."""
ROUND_TIMEOUT_S = 60.0
"""After so long a round closes with whoever is in."""

KEEP_AGGREGATES = MAX_USELESS_SUMS + 1
"""So many of the last aggregates stay, at the server and at each client: one of them made a model."""

RECORDS_AT_ONCE = 32
"""A record has up to 300 kB, with as many clients as there may be: an answer stays under 10 MB."""


@dataclass(frozen=True, slots=True)
class Ring:
    """Z_Q[X] / (X^N + 1) with Q a product of primes: what a CKKS context computes in.

    Attributes:
        degree: N, a power of two (SEAL's poly_modulus_degree).
        limb_bits: Size of each data prime in bits.
        special_bits: Size of the special prime that SEAL wants at the chain's end.
    """

    degree: int
    limb_bits: tuple[int, ...]
    special_bits: int

    @property
    def chain(self) -> list[int]:
        """SEAL's coeff_mod_bit_sizes."""
        return [*self.limb_bits, self.special_bits]

    def __str__(self) -> str:
        return f"{self.degree}:{','.join(map(str, self.chain))}"


RINGS = (
    Ring(4096, (30,) * 3, 16),
    Ring(8192, (28,) * 7, 17),
    Ring(16384, (28,) * 14, 17),
)
"""Rings that carry packed coefficients. log2 Q stays under 106, 214 and 430 for 128-bit classical security
(eprint 2024/463, table 5.2, ternary and narrow secrets); SEAL's own caps of 109, 218 and 438 are looser."""

SLOTS_RING = Ring(8192, (60, 40), 40)
"""The ring of the ``tenseal`` engine: one rescale of 40 bits below a base of 60."""

SLOTS_SCALE_BITS = 40
SLOTS_LIMIT = 2.0**18
"""The ``tenseal`` engine refuses larger values: a product wraps without an error from about 2^19 on."""
SLOTS_MAX_NUM_EXAMPLES = 2**24
"""The ``tenseal`` engine scales by num_examples / total in 40-bit fixed point: no share may come near 2^-40."""

BLOCKS_AT_ONCE = 4
"""Blocks handed to a thread at once: one takes so little time that handing over counts."""

NOISE_BOUND = 21
"""eta of the centred binomial: no noise is larger."""

NOISE_VARIANCE = (9.0, 12.0)
"""A block's noise has variance 10.5; outside this, 6.5 standard deviations away for the smallest ring, it is broken."""

PRECISION_BITS = 24
PRECISION_BITS_RANGE = (8, 40)
"""Bits of a fixed-point value of the ``packed`` engine, its sign included."""

CLIENT_WEIGHT_BITS = 10
"""A client that weighs its own update does so by at most 2**10, which every lane has room for."""

WEIGHT_BUDGET = 2**16
"""Integer weights are exact up to this total, and rounded to it above."""

TAG_REPEATS = 3
"""Independent hashes modulo each prime in a tag: a forgery passes with probability (2/q)**3."""

LIES: Mapping[str, str] = {
    "add-to-margin": "adds to the noise below the sum's values",
    "add-to-lane": "adds 1 to one value of the sum",
    "add-above-lanes": "adds above the topmost value",
    "scale-client": "counts the first client's update with a larger weight",
    "swap-weights": "counts two clients' updates with each other's weight",
    "other-weight": "gives the first client another weight, and says so",
    "count-twice": "adds the first client's update twice",
    "leave-out": "leaves the first client's update out, and names the client",
    "member-twice": "names the first client twice, and adds its update twice",
    "other-seed": "names another seed for the first client's update",
    "replay-update": "counts the first client's update of the round before",
    "replay-seed": "counts an update of the round before, and names its seed",
    "replay-sum": "publishes the sum of the round before once more",
    "one-upload": "publishes the first client's update as the sum",
    "swap-blocks": "exchanges two blocks of the sum",
    "multiply-by-x": "moves every value on by one place",
    "mix-rounds": "takes one block from the sum of the round before",
    "mix-attempts": "adds an update of an attempt that was abandoned",
    "truncate": "leaves out the sum's last bytes",
    "unreduced": "writes the same sum in a form that nobody else writes",
    "fork": "shows one client another sum of round 1; takes 3 clients",
    "rewind": "shows one client round 1 again, later on",
    "false-head": "announces a round to one client after another history",
    "false-weight": "announces another weight to one client than to the others",
    "isolate": "announces a round to one client as if it were alone",
}
"""What ``hefl demo --tamper`` makes its server do, in a line; see forgeries, from "fork" on lying_server."""

CLIENT_LIES: Mapping[str, str] = {
    "off-range": "states a range off by one, so that no sum can be used",
    "re-weigh": "states a range off by one, other num_examples each time",
    "noise": "encrypts with too much noise, so that no sum can be used",
    "negative-count": "counts fewer than no values that were cut",
    "false-tag": "sends a false tag, as if the server had lied",
    "ghost": "joins with very many examples, leaves when announced",
    "always-cut": "always says that its values were cut",
    "false-useless": "says of good sums that they made no model",
    "many-examples": "states more examples than any client may have",
    "damaged-block": "sends what is no ciphertext",
    "replay": "sends its first update in every round",
    "other-name": "sends an update in another client's name",
    "poison": "sends its training with the sign turned",
    "false-metrics": "says that its loss is 0",
}
"""What ``hefl demo --tamper`` makes one of its clients do, each in a line; see demo.lying_client."""
