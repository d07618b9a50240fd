"""Identify the client behind a request, by its TLS certificate."""

from __future__ import annotations

import logging

from aiohttp import web

from hefl.errors import UnknownClientError
from hefl.keys import tls
from hefl.keys.credentials import expiry_notice
from hefl.keys.folders import ServerFolder
from hefl.protocol import messages
from hefl.server.client_list import Roll

log = logging.getLogger("hefl")


class Authenticator:
    """The clients that may ask, by the lists in the server's folder as they stand at each request.

    Args:
        folder: The server's keys.
        insecure_http: Believe the header; there are no certificates.
    """

    def __init__(self, folder: ServerFolder, *, insecure_http: bool) -> None:
        self._folder = folder
        self._insecure_http = insecure_http
        self._roll = Roll(folder)
        self._noticed: set[str] = set()  # whose certificate was looked at for its end

    def known(self) -> tuple[str, ...]:
        """All who may ask now."""
        return self._roll.refresh().clients

    def client_of(self, request: web.Request) -> str:
        """The client that asks.

        Raises:
            UnknownClientError: Not a client of this federation's.
            ProtocolError, MismatchError: As protocol.check_headers.
        """
        if self._insecure_http:
            name = request.headers.get(messages.HEADER_CLIENT, "")
            self._check_revoked(name)
        else:
            name = self._certified_name(request)
        messages.check_headers(request.headers, self._folder.public)
        if name not in self._roll.names.clients:
            raise UnknownClientError(
                f"client {name!r} is not on the server's list",
                hint="copy server/clients.hefl from the authority's folder to the server again; it picks it up",
            )
        return name

    def _certified_name(self, request: web.Request) -> str:
        connection = request.transport and request.transport.get_extra_info("ssl_object")
        der = connection and connection.getpeercert(binary_form=True)
        if not der:
            raise UnknownClientError(
                "the request came without a certificate", hint="ask with 'hefl client' and a folder of this federation"
            )
        certificate = tls.from_der(der, "the client's certificate")
        holder = tls.holder_of(certificate, "the client's certificate")
        self._check_revoked(holder.name)
        if not holder.is_client or holder.identity != self._folder.public.identity:
            who = f"client {holder.name}" if holder.is_client else holder.name
            raise UnknownClientError(
                f"the certificate speaks for {who} of {holder.identity}, "
                f"and this server serves clients of {self._folder.public.identity}",
                hint="copy the folders of server and client again from the authority: they are of different times",
            )
        if holder.name not in self._noticed:
            self._noticed.add(holder.name)
            if notice := expiry_notice(f"the certificate of client {holder.name}", certificate):
                log.warning("%s", notice)
        return holder.name

    def _check_revoked(self, name: str) -> None:
        if name in self._roll.refresh().revoked:
            raise UnknownClientError(
                f"client {name} was revoked", hint="only the authority can let it in again, with new keys"
            )
