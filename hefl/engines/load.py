"""Load an engine by its name, and a codec for it."""

from __future__ import annotations

from collections.abc import Callable

from hefl.encoding.client_weights import ClientWeightedCodec
from hefl.encoding.codec import Codec
from hefl.engines.engine import Engine, Weighting
from hefl.errors import EngineError
from hefl.models.layout import Layout
from hefl.params import ENGINES, PRECISION_BITS


def load_engine(
    name: str,
    *,
    precision_bits: int = PRECISION_BITS,
    weighting: Weighting = "server",
    insecure_plaintext: bool = False,
) -> Engine:
    """The engine of that name.

    Args:
        name: One of params.ENGINES.
        precision_bits: Of a fixed-point value, for ``packed``.
        weighting: Who multiplies by the sample weights; ``client`` goes with ``packed``.
        insecure_plaintext: Allow ``plaintext``.

    Raises:
        EngineError: There is none, or it cannot do that, or it is ``plaintext`` and was not explicitly allowed.
        ParametersError: The precision is out of range.
    """
    if name == "packed":
        from hefl.engines.packed import PackedEngine

        return PackedEngine(precision_bits, weighting)
    if weighting != "server":
        raise EngineError(f"the engine {name!r} cannot leave the weighting to clients", hint="--engine packed can")
    if name == "tenseal":
        from hefl.engines.tenseal import SlotsEngine

        return SlotsEngine()
    if name == "plaintext":
        if not insecure_plaintext:
            raise EngineError(
                "the engine 'plaintext' shows every update to the server",
                hint="it is for comparisons on one machine: add --insecure-plaintext on both sides",
            )
        from hefl.engines.plaintext import PlaintextEngine

        return PlaintextEngine()
    raise EngineError(f"there is no engine {name!r}", hint=f"choose one of {', '.join(ENGINES)}")


def make_codec(engine: Engine, layout: Layout, num_examples: Callable[[], int]) -> Codec:
    """How a model becomes a vector and a sum a model; ``num_examples`` is a client's own weight, where it weighs."""
    codec = engine.codec(layout)
    if engine.terms.weighting == "server":
        return codec
    return ClientWeightedCodec(codec, engine.terms.precision_bits, num_examples)
