"""Options of a client."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hefl.engines.engine import Weighting
from hefl.keys.passphrase import Passphrase
from hefl.params import CONNECT_TIMEOUT_S, DEFAULT_ENGINE, KEEP_AGGREGATES, MIN_CLIENTS, PRECISION_BITS

OnTamper = Literal["stop", "skip"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientOptions:
    """How a client takes part.

    Attributes:
        server: The server's URL; default the folder's.
        proxy: http://[USER:PASSWORD@]HOST:PORT, through which TLS goes; None calls the server straight.
        connect_timeout_s: How long to try again where nobody answers, and to wait where another client came first with
            another model; seconds.
        seed: For training and initial parameters; never reaches cryptography.
        num_examples: The sample weight, where the trainer does not state it.
        initial: A model file to start from where this client begins the run: the first by name does.
        save: Where the final model is written, ``.npz`` or ``.safetensors``.
        save_best: Where the model with the lowest averaged validation loss so far is kept.
        force: Let those two replace a file that this client did not write in this run.
        patience: Stop after so many models in a row no better than the best; the same at all clients.
        state: A private folder; default ``state`` in the client's folder.
        keep: How many of the last aggregates stay.
        engine, precision_bits, weighting: How updates are encrypted, as at the server and all clients.
        min_participants: Answer no round, and believe no sum, of fewer clients than that; at least 2.
        on_tamper: What to do about a sum that fails a check: stop, or keep the last model and go on.
        again: Train again from a model that was in a useless sum: the code that the refusal showed.
        report_metrics: Tell the server the averaged metrics of each model, for its page.
        trace: A folder for what was encrypted and decrypted, for a comparison; None keeps nothing.
        passphrase: Opens keys that are sealed.
        insecure_http: Plain HTTP, to loopback only.
        insecure_plaintext: Allow the engine ``plaintext``, to loopback only.
    """

    server: str | None = None
    proxy: str | None = None
    connect_timeout_s: float = CONNECT_TIMEOUT_S
    seed: int = 0
    num_examples: int | None = None
    initial: Path | None = None
    save: Path | None = None
    save_best: Path | None = None
    force: bool = False
    patience: int | None = None
    state: Path | None = None
    keep: int = KEEP_AGGREGATES
    engine: str = DEFAULT_ENGINE
    precision_bits: int = PRECISION_BITS
    weighting: Weighting = "server"
    min_participants: int = MIN_CLIENTS
    on_tamper: OnTamper = "stop"
    again: str | None = None
    report_metrics: bool = False
    trace: Path | None = None
    passphrase: Passphrase | None = None
    insecure_http: bool = False
    insecure_plaintext: bool = False
