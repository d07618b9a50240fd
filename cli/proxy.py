"""Choose a client's proxy where the command line names none."""

from __future__ import annotations

import logging
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass

from hefl.client.route import shown
from hefl.protocol import messages

log = logging.getLogger("hefl")


def proxy_from_environment(url: str) -> str | None:
    """The proxy that HTTPS_PROXY names, unless NO_PROXY names the server, or the server is on this machine."""
    proxy, parts = getproxies_environment().get("https"), urlsplit(url)
    straight = parts.scheme != "https" or messages.is_loopback(parts.hostname or "") or proxy_bypass(parts.netloc)
    if not proxy or straight:
        return None
    log.info("calling %s through the proxy %s, as HTTPS_PROXY says", url, shown(proxy))
    return proxy
