"""Join a run; wait where another client came first with another model layout."""

from __future__ import annotations

import asyncio
import logging
import time

import msgspec

from hefl.ckks.context import SecretContext
from hefl.client.http import Connection
from hefl.client.learner import Learner
from hefl.errors import LayoutError
from hefl.protocol import messages
from hefl.protocol.messages import Join, OtherLayoutError, ReferenceLayout, Welcome
from hefl.protocol.sealed_layout import unseal

log = logging.getLogger("hefl")

ASK_AGAIN_S = 2.0
"""How often a client that waits asks whether it may join now."""


async def ask_to_join(
    connection: Connection, join: Join, learner: Learner, secret: SecretContext, patience_s: float
) -> Welcome:
    """Join a run.

    Args:
        connection: To the server.
        join: What the client says of itself.
        learner: Has the client's layout.
        secret: The clients' context.
        patience_s: How long to wait where the layout of the clients that are here is another.

    Raises:
        LayoutError: It still was another after so long, or a round is over and it stays; names the first difference.
        HeflError: As Connection.ask.
    """
    said, until, body = "", time.monotonic() + patience_s, msgspec.json.encode(join)
    while True:
        try:
            return await connection.ask("POST", "/v1/join", messages.parser(Welcome), body)
        except OtherLayoutError as error:
            refused, left_s = _layout_error(error.reference, learner, secret), until - time.monotonic()
            if error.reference.settled or left_s <= 0:
                raise refused from error
            if refused.message != said:
                said = refused.message
                _say_that_it_waits(error.reference.client, refused, left_s)
            await asyncio.sleep(min(ASK_AGAIN_S, left_s))


def _layout_error(reference: ReferenceLayout, learner: Learner, secret: SecretContext) -> LayoutError:
    """Say whose layout is another, and name the first difference, which only a client can read."""
    difference = learner.difference(unseal(reference.sealed, secret))
    same = "all clients train the same model: same tensors, same order, same metrics, same --patience"
    return LayoutError(
        f"this client's model differs from {reference.client}'s, who joined before: {difference}",
        hint=f"{same}; this run has begun with {reference.client}'s" if reference.settled else same,
    )


def _say_that_it_waits(client: str, refused: LayoutError, limit_s: float) -> None:
    hint = (
        f"ask {client} whose model is right. Who is wrong stops, and starts again with the right model; "
        "or the server's operator begins another run"
    )
    log.warning("%s", refused.message)
    log.warning(
        "waiting for up to %(limit_s).0f s until %(other)s leaves, or comes again with this client's model",
        {"limit_s": limit_s, "other": client},
        extra={"hint": hint},
    )
