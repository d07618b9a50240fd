"""hefl: encrypted federated averaging.

Clients train one model; the server adds their encrypted updates and sees none of them.

    simulate            federated training in one process
    serve, take_part    a server and a client of a real federation, with ServerOptions and ClientOptions
    generate_secret     a new federation's secret context; ``.public()`` is the server's
    announce, encrypt, aggregate, decrypt
                        one weighted mean of vectors, as bytes
    Trainer             what a model must do; TorchTrainer, SklearnTrainer do it for PyTorch and scikit-learn
    RoundReport         what a callback on_round is told
    errors              every error, as one tree
"""

from __future__ import annotations

import importlib

from hefl.version import __version__

TYPE_CHECKING = False  # typing's own takes longer to load than all that a command needs to heed Ctrl-C
if TYPE_CHECKING:
    from typing import Any

    from hefl.average import aggregate, announce, decrypt, encrypt
    from hefl.ckks.context import PublicContext, SecretContext, generate_secret
    from hefl.client.callbacks import RoundReport
    from hefl.client.options import ClientOptions
    from hefl.client.start import take_part
    from hefl.errors import HeflError
    from hefl.models.sklearn import SklearnTrainer
    from hefl.models.torch import TorchTrainer
    from hefl.models.trainer import Trainer
    from hefl.server.options import ServerOptions
    from hefl.server.start import serve
    from hefl.simulation import Simulation, simulate

__all__ = [
    "ClientOptions",
    "HeflError",
    "PublicContext",
    "RoundReport",
    "SecretContext",
    "ServerOptions",
    "Simulation",
    "SklearnTrainer",
    "TorchTrainer",
    "Trainer",
    "__version__",
    "aggregate",
    "announce",
    "decrypt",
    "encrypt",
    "generate_secret",
    "serve",
    "simulate",
    "take_part",
]

_HOMES = {
    "ClientOptions": "hefl.client.options",
    "HeflError": "hefl.errors",
    "PublicContext": "hefl.ckks.context",
    "RoundReport": "hefl.client.callbacks",
    "SecretContext": "hefl.ckks.context",
    "ServerOptions": "hefl.server.options",
    "Simulation": "hefl.simulation",
    "SklearnTrainer": "hefl.models.sklearn",
    "TorchTrainer": "hefl.models.torch",
    "Trainer": "hefl.models.trainer",
    "aggregate": "hefl.average",
    "announce": "hefl.average",
    "decrypt": "hefl.average",
    "encrypt": "hefl.average",
    "generate_secret": "hefl.ckks.context",
    "serve": "hefl.server.start",
    "simulate": "hefl.simulation",
    "take_part": "hefl.client.start",
}


def __getattr__(name: str) -> Any:
    # Loaded when first used, so that `hefl --help` answers at once.
    if name not in _HOMES:
        raise AttributeError(f"module 'hefl' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
