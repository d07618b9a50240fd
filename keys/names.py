"""Names of clients, and addresses of servers."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from urllib.parse import urlsplit

from hefl.errors import UsageError
from hefl.params import MAX_CLIENTS, NAME_PATTERN

DEFAULT_PORT = 8443
DEFAULT_SERVER_NAMES = (f"127.0.0.1:{DEFAULT_PORT}", f"localhost:{DEFAULT_PORT}")
RESERVED = ("server", "authority")


def check_clients(names: Iterable[str], urls: Sequence[str]) -> tuple[str, ...]:
    """The names of a federation's clients, sorted.

    Raises:
        UsageError: Too few, too many, one out of form, twice, or also a server's.
    """
    names = tuple(sorted(names))
    if not 1 <= len(names) <= MAX_CLIENTS:
        hint = None if names else "name each: --client NAME"
        raise UsageError(f"from 1 to {MAX_CLIENTS} clients make a federation, got {len(names)}", hint=hint)
    for name in names:
        if not re.fullmatch(NAME_PATTERN, name):
            raise UsageError(
                f"a client's name is 1 to 32 of a-z, 0-9 and -, not starting with -, got {name!r}",
            )
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"client {twice} is named twice")
    if clash := set(names) & {*hosts(urls), *RESERVED}:
        raise UsageError(f"a client may not bear a server's name: {', '.join(sorted(clash))}")
    return names


def hosts(urls: Sequence[str]) -> tuple[str, ...]:
    """The names and addresses in some URLs, each once."""
    return tuple(dict.fromkeys(urlsplit(url).hostname or "" for url in urls))


def server_url(server_name: str) -> str:
    """HOST[:PORT] as an https URL; an IPv6 address stands in brackets. Raises UsageError where it is none."""
    try:
        parts = urlsplit(f"//{server_name}")
        host, port = parts.hostname, parts.port or DEFAULT_PORT
    except ValueError:
        host, port = None, 0
    if not host or parts.netloc != server_name or "@" in server_name or not _is_host(host):
        raise UsageError(
            f"--server-name takes HOST[:PORT], got {server_name!r}", hint="an IPv6 address goes in brackets"
        )
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


def _is_host(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        label = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
        return len(host) <= 253 and re.fullmatch(rf"{label}(\.{label})*", host) is not None
    return True
