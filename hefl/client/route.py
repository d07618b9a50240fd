"""Connect to the server, straight or through an HTTP proxy that sees only TLS."""

from __future__ import annotations

import base64
import http.client
import ssl
from contextlib import suppress
from typing import Any, TypeVar
from urllib.parse import SplitResult, unquote, urlsplit

from hefl.errors import UsageError
from hefl.protocol import messages

PROBE_S = 5.0
"""How long a look at a server may take."""
REFUSES_WITHIN_S = 2.0
"""A server that says nothing for so long after a handshake takes the client's certificate."""
ALERTS = {
    "ACCESS_DENIED",
    "BAD_CERTIFICATE",
    "CERTIFICATE_EXPIRED",
    "CERTIFICATE_REQUIRED",
    "CERTIFICATE_REVOKED",
    "CERTIFICATE_UNKNOWN",
    "UNKNOWN_CA",
    "UNSUPPORTED_CERTIFICATE",
}
"""What TLS calls the reasons for which a certificate is refused (RFC 8446, section 6.2)."""
HTTP_PORT, HTTPS_PORT = 80, 443

C = TypeVar("C", bound=http.client.HTTPConnection)


class Route:
    """A server's address, and how to get there.

    Args:
        url: https://HOST:PORT.
        proxy: http://[USER:PASSWORD@]HOST:PORT; None goes straight.
        insecure_http: Allow plain HTTP, to loopback.

    Attributes:
        url, proxy: As given; the proxy with its scheme.

    Raises:
        UsageError: A URL has another form, or plain HTTP is not allowed.
    """

    def __init__(self, url: str, proxy: str | None, *, insecure_http: bool) -> None:
        self._parts = _check_url(url, insecure_http=insecure_http)
        self.url = url
        self.proxy = proxy and _check_proxy(proxy, insecure_http=insecure_http)

    def __str__(self) -> str:
        return f"{self.url} through the proxy {shown(self.proxy)}" if self.proxy else self.url

    def refusal(self, context: ssl.SSLContext) -> str | None:
        """How a server refuses the certificate of a client's context; None where it does not. Waits for it.

        With TLS 1.3 a server does so after the handshake, by an alert. One that dies sends none.
        """
        try:
            connection = self._call(http.client.HTTPSConnection, context=context)
            try:
                connection.sock.settimeout(REFUSES_WITHIN_S)
                connection.sock.recv(1)
            finally:
                connection.close()
        except ssl.SSLError as error:
            alert = (error.reason or "").rpartition("_ALERT_")[2]
            return alert.lower().replace("_", " ") if alert in ALERTS else None
        except (OSError, http.client.HTTPException):
            return None
        return None

    def certificate(self) -> bytes:
        """The certificate that is shown there, DER, whatever it is. Waits for it.

        Raises:
            OSError, HTTPException: None is.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = self._call(http.client.HTTPSConnection, context=context)
        try:
            return connection.sock.getpeercert(binary_form=True) or b""
        finally:
            connection.close()

    def _call(self, kind: type[C], **arguments: Any) -> C:
        host, port = self._parts.hostname or "", self._parts.port or HTTPS_PORT
        if self.proxy:
            proxy = urlsplit(self.proxy)
            connection = kind(proxy.hostname or "", proxy.port or HTTP_PORT, timeout=PROBE_S, **arguments)
            connection.set_tunnel(host, port, _authorization(proxy))
        else:
            connection = kind(host, port, timeout=PROBE_S, **arguments)
        try:
            connection.connect()
        except BaseException:
            connection.close()
            raise
        return connection


def shown(proxy: str) -> str:
    """A proxy's URL without the password that may stand in it."""
    scheme, found, rest = proxy.rpartition("://")
    return f"{scheme}{found}{rest.rpartition('@')[2]}"


def _authorization(proxy: SplitResult) -> dict[str, str]:
    if proxy.username is None:
        return {}
    words = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}".encode()
    return {"Proxy-Authorization": f"Basic {base64.b64encode(words).decode()}"}


def _check_url(url: str, *, insecure_http: bool) -> SplitResult:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UsageError(f"--server {url}: {error}", hint=f"such as {_like(url, insecure_http)}") from error
    if parts.scheme not in ("https", "http") or not parts.hostname or parts.path or parts.query or port == 0:
        hint = f"such as {_like(url, insecure_http)}"
        raise UsageError(f"--server takes https://HOST:PORT, got {url!r}", hint=hint)
    if parts.scheme == "http" and not (insecure_http and messages.is_loopback(parts.hostname)):
        raise UsageError(
            f"plain HTTP to {url} is refused", hint="use https://; only to loopback does --insecure-http allow it"
        )
    if insecure_http and parts.scheme != "http":
        raise UsageError(
            f"--insecure-http goes with an http:// URL, got {url}",
            hint="name it with --server as 'hefl serve --insecure-http' prints it, or leave --insecure-http out",
        )
    return parts


def _like(url: str, insecure_http: bool) -> str:
    """A URL that would do in place of one that does not: the same with its scheme, where that was all that it lacks."""
    scheme = "http" if insecure_http else "https"
    if "://" not in url and ":" in url:
        with suppress(UsageError):
            _check_url(f"{scheme}://{url}", insecure_http=insecure_http)
            return f"{scheme}://{url}"
    return f"{scheme}://127.0.0.1:8443"


def _check_proxy(proxy: str, *, insecure_http: bool) -> str:
    """The proxy's URL with its scheme, which environment variables may leave out."""
    if insecure_http:
        raise UsageError(
            "--insecure-http goes without a proxy", hint="leave --proxy out: plain HTTP does not leave this machine"
        )
    whole = proxy if "://" in proxy else f"http://{proxy}"
    try:
        parts = urlsplit(whole)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme != "http" or not parts.hostname or parts.path.strip("/") or parts.query or port == 0:
        raise UsageError(
            f"--proxy, and HTTPS_PROXY, take http://[USER:PASSWORD@]HOST:PORT, got {shown(proxy)!r}",
            hint="a proxy is called in the clear, and what goes through it is TLS from here to the server; "
            "NO_PROXY=HOST calls a server without a proxy",
        )
    return whole.rstrip("/")
