"""Options of a server."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from hefl.engines.engine import Weighting
from hefl.keys.passphrase import Passphrase
from hefl.params import KEEP_AGGREGATES
from hefl.server.limits import Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """How a server runs; times in seconds. What is None is the run's own where it goes on, else the default.

    Attributes:
        rounds: Trainings; default params.ROUNDS.
        min_clients: Fewer than this in a sum is refused; default params.MIN_CLIENTS.
        join_wait_s: How long to wait for the other known clients once there are enough; default params.JOIN_WAIT_S.
        round_timeout_s: After so long a round closes with whoever is in; default params.ROUND_TIMEOUT_S.
        max_values: No model has more; default params.MAX_VALUES.
        max_num_examples: No client has more; default params.SERVED_NUM_EXAMPLES.
        engine, precision_bits, weighting: How updates are encrypted, the same at all clients.
        linger_s: How long to stay after the end for known clients that may not have the result.
        keep: How many of the last aggregates stay.
        host, port: Where to listen; port 0 takes any.
        page_port: Show the run in a browser of this machine there; 0 takes any, None shows nothing.
        limits: What peers may take.
        state: The run's folder; default ``state`` in the server's folder.
        passphrase: Opens keys that are sealed.
        insecure_http: Plain HTTP, on loopback only.
        insecure_plaintext: Allow the engine ``plaintext``, on loopback only.
    """

    rounds: int | None = None
    min_clients: int | None = None
    join_wait_s: float | None = None
    round_timeout_s: float | None = None
    max_values: int | None = None
    max_num_examples: int | None = None
    engine: str | None = None
    precision_bits: int | None = None
    weighting: Weighting | None = None
    linger_s: float = 0.0
    keep: int = KEEP_AGGREGATES
    host: str = "127.0.0.1"
    port: int = 8443
    page_port: int | None = None
    limits: Limits = field(default_factory=Limits)
    state: Path | None = None
    passphrase: Passphrase | None = None
    insecure_http: bool = False
    insecure_plaintext: bool = False
