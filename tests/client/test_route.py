"""The way to a server through an HTTP proxy: mutual TLS from end to end, by the real commands and a real proxy."""

from __future__ import annotations

import base64
import logging
import shutil
import ssl
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from builders import saved
from federation import Command, Federation, free_port
from proxy import ConnectProxy

from hefl.cli.proxy import proxy_from_environment
from hefl.client.route import Route
from hefl.errors import UsageError
from hefl.keys import authority
from hefl.keys.authority import Change
from hefl.keys.folders import read_client_folder

NAME = "fl.example.org"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """Of a server that is called by an address of this machine, or by a name that only a proxy knows."""
    made = Federation(tmp_path_factory.mktemp("keys") / "fed", "alice", "bob")
    authority.change(made.folder, Change(renew=True, server_names=("127.0.0.1", NAME)))
    return made


@pytest.fixture
def proxy() -> Iterator[ConnectProxy]:
    with ConnectProxy() as made:
        yield made


def refused(command: Command, code: int, *texts: str) -> None:
    assert command.wait() == code, command.error
    for text in texts:
        assert text in command.error
    assert command.err[-1].startswith("hefl: hint: ")
    assert "Traceback" not in command.error


def by_name(keys: Federation) -> str:
    return f"https://{NAME}:{urlsplit(keys.url).port}"


def test_clients_take_part_through_a_proxy_and_it_sees_nothing_but_tls(
    keys: Federation, tmp_path: Path, proxy: ConnectProxy
) -> None:
    """One is told of it, with a password; the other has it from the environment, as names of servers have."""
    with keys:
        server = keys.serve(tmp_path / "server", "--rounds", "1")
        told = ("--proxy", f"http://north:se%20cret@127.0.0.1:{proxy.port}")
        alice = keys.client("alice", tmp_path / "alice", "--save", tmp_path / "alice.npz", *told)
        named = ("--server", by_name(keys), "--save", tmp_path / "bob.npz")
        bob = keys.client("bob", tmp_path / "bob", *named, HTTPS_PROXY=f"http://127.0.0.1:{proxy.port}/", NO_PROXY="")
        assert [c.wait() for c in (alice, bob, server)] == [0, 0, 0], [c.error for c in (alice, bob)]
    assert saved(tmp_path / "alice.npz") == saved(tmp_path / "bob.npz")
    asked = {head.partition("\r\n")[0]: head for head in proxy.heads}
    port = urlsplit(keys.url).port
    assert set(asked) == {f"CONNECT {host}:{port} HTTP/1.1" for host in ("127.0.0.1", NAME)}
    words = base64.b64encode(b"north:se cret").decode()
    assert f"Proxy-Authorization: Basic {words}\r\n" in asked[f"CONNECT 127.0.0.1:{port} HTTP/1.1"]
    assert "uthorization" not in asked[f"CONNECT {NAME}:{port} HTTP/1.1"]
    assert "Hefl-" not in "".join(proxy.heads)
    assert proxy.carried.startswith(b"\x16\x03")  # a TLS handshake
    assert not any(word in proxy.carried for word in (b"/v1/", b"Hefl-", b"HTTP/1.1"))
    assert f"hefl: calling {by_name(keys)} through the proxy http://127.0.0.1:{proxy.port}" in bob.error
    assert not any("cret" in line for line in alice.err)


def test_a_server_of_this_machine_is_called_straight_whatever_the_environment_says(
    keys: Federation, tmp_path: Path
) -> None:
    nobody = {"HTTPS_PROXY": f"http://127.0.0.1:{free_port()}"}
    with keys:
        server = keys.serve(tmp_path / "server", "--rounds", "1")
        clients = [keys.client(name, tmp_path / name, **nobody) for name in ("alice", "bob")]
        assert [c.wait() for c in (*clients, server)] == [0, 0, 0]


@pytest.mark.parametrize(
    ("variables", "url", "proxy"),
    [
        ({"HTTPS_PROXY": "http://p:3128"}, "https://fl.example.org:8443", "http://p:3128"),
        ({"https_proxy": "p:3128"}, "https://fl.example.org:8443", "p:3128"),
        ({"HTTP_PROXY": "http://p:3128"}, "https://fl.example.org:8443", None),
        ({"HTTPS_PROXY": "http://p:3128", "NO_PROXY": "example.org"}, "https://fl.example.org:8443", None),
        ({"HTTPS_PROXY": "http://p:3128", "NO_PROXY": "a,.example.org"}, "https://fl.example.org:8443", None),
        ({"HTTPS_PROXY": "http://p:3128", "no_proxy": "fl.example.org:8443"}, "https://fl.example.org:8443", None),
        ({"HTTPS_PROXY": "http://p:3128", "NO_PROXY": "fl.example.org:1"}, "https://fl.example.org:8443", "http://p:3128"),
        ({"HTTPS_PROXY": "http://p:3128", "NO_PROXY": "*"}, "https://fl.example.org:8443", None),
        ({"HTTPS_PROXY": "http://p:3128"}, "https://127.0.0.1:8443", None),
        ({"HTTPS_PROXY": "http://p:3128"}, "https://localhost:8443", None),
        ({"HTTPS_PROXY": "http://p:3128"}, "https://[::1]:8443", None),
        ({"HTTPS_PROXY": "http://p:3128"}, "http://127.0.0.1:8443", None),
        ({}, "https://fl.example.org:8443", None),
    ],
)  # fmt: skip
def test_the_environment_names_a_proxy_as_it_does_for_other_programs(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], url: str, proxy: str | None
) -> None:
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert proxy_from_environment(url) == proxy


def test_a_password_in_a_proxys_url_is_not_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://north:secret@p:3128")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with caplog.at_level(logging.INFO, "hefl"):
        assert proxy_from_environment("https://fl.example.org:8443") == "http://north:secret@p:3128"
    assert "through the proxy http://p:3128" in caplog.text
    assert "secret" not in caplog.text
    assert "secret" not in str(Route("https://fl:1", "http://north:secret@p:3128", insecure_http=False))


@pytest.mark.parametrize(
    ("proxy", "whole"), [("http://p:3128", "http://p:3128"), ("p:3128", "http://p:3128"), ("http://p/", "http://p")]
)
def test_a_proxys_url_may_leave_out_its_scheme(proxy: str, whole: str) -> None:
    assert Route("https://fl:1", proxy, insecure_http=False).proxy == whole


@pytest.mark.parametrize(
    "proxy", ["https://p:3128", "socks5://p:1080", "http://", "http://p:x", "http://p:0", "http://p/path", "http://s:w@p:x"]
)  # fmt: skip
def test_what_is_no_http_proxy_is_refused_without_its_password(proxy: str) -> None:
    with pytest.raises(UsageError, match="take http://") as caught:
        Route("https://fl:1", proxy, insecure_http=False)
    assert "s:w" not in caught.value.message
    assert "NO_PROXY" in str(caught.value.hint)


def test_plain_http_goes_through_no_proxy() -> None:
    with pytest.raises(UsageError, match="goes without a proxy"):
        Route("http://127.0.0.1:1", "http://p:3128", insecure_http=True)


# --- what goes wrong on the way ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["407 Proxy Authentication Required", "403 Forbidden"])
def test_a_proxy_that_does_not_let_a_client_through_ends_it_at_once(
    keys: Federation, tmp_path: Path, status: str
) -> None:
    with ConnectProxy(status) as proxy, keys:
        flags = ("--server", f"https://{NAME}:8443", "--proxy", f"http://north:secret@127.0.0.1:{proxy.port}")
        client = keys.client("alice", tmp_path / "alice", *flags)
        what = f"does not let this client through to https://{NAME}:8443: {status}"
        refused(client, 5, f"the proxy http://127.0.0.1:{proxy.port} {what}")
    assert len(proxy.heads) == 1
    assert "secret" not in client.error


def test_a_proxy_that_cannot_reach_the_server_yet_is_asked_again(keys: Federation, tmp_path: Path) -> None:
    with ConnectProxy("503 Service Unavailable") as proxy, keys:
        flags = ("--server", f"https://{NAME}:8443", "--proxy", f"127.0.0.1:{proxy.port}", "--connect-timeout", "1")
        client = keys.client("alice", tmp_path / "alice", *flags)
        refused(client, 5, "did not answer for", "the proxy answers 503 Service Unavailable")
    assert len(proxy.heads) >= 3


def test_a_proxy_that_is_not_there_is_named(keys: Federation, tmp_path: Path) -> None:
    port = free_port()
    with keys:
        flags = ("--server", f"https://{NAME}:8443", "--proxy", f"http://127.0.0.1:{port}", "--connect-timeout", "0")
        refused(
            keys.client("alice", tmp_path / "alice", *flags),
            5,
            f"https://{NAME}:8443 through the proxy http://127.0.0.1:{port} did not answer for 0 s",
            "the proxy: connection refused",
        )


def test_a_wrong_server_behind_a_proxy_is_named_as_without_one(
    keys: Federation, tmp_path: Path, proxy: ConnectProxy
) -> None:
    through = ("--proxy", f"http://127.0.0.1:{proxy.port}")
    with Federation(tmp_path / "stranger", "alice", "bob") as stranger, keys:
        keys.serve(tmp_path / "server")
        stranger.url = keys.url
        client = stranger.client("alice", tmp_path / "alice", *through)
        refused(client, 3, f"is of {keys.made.identity}", f"this client of {stranger.made.identity}")


def test_a_refusal_is_told_by_the_servers_alert_through_a_proxy_too(
    keys: Federation, tmp_path: Path, proxy: ConnectProxy
) -> None:
    """Who is the server's own client, or finds no server, is not refused."""
    own = read_client_folder(keys.folder / "clients/alice").credentials.client_context()
    other = authority.create(tmp_path / "other", ["alice", "bob"], ("127.0.0.1",)).folder
    folder = tmp_path / "mixed"
    shutil.copytree(other / "clients/alice", folder)
    shutil.copy(keys.folder / "clients/alice/ca.crt", folder)
    context = ssl.create_default_context(cafile=folder / "ca.crt")
    context.load_cert_chain(folder / "client.crt", folder / "client.key")
    with keys:
        server = keys.serve(tmp_path / "server")
        for through in (None, f"http://127.0.0.1:{proxy.port}"):
            route = Route(keys.url, through, insecure_http=False)
            assert route.refusal(context) == "unknown ca"
            assert route.refusal(own) is None
        server.stop()
        assert route.refusal(context) is None
