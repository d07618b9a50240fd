"""The server's own page, in a real browser and over plain sockets, while real clients train."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from browser import browser, colours, hosts, log_of, overflows, resize
from federation import LIMIT_S, Command, Federation, free_port
from prometheus_client.parser import text_string_to_metric_families
from selenium.webdriver import ActionChains, Chrome, Keys

from hefl.keys.folders import read_client_folder
from hefl.protocol import messages
from hefl.rounds.run import Phase
from hefl.server.page.site import FILES

NO_METRICS = (
    '{"round": 1, "metrics": {}}',
    '{"round": 1, "metrics": {"loss": NaN}}',
    '{"round": 1, "metrics": {"loss": 1e999}}',
    '{"round": 1, "metrics": {"loss": "<b>"}}',
    '{"round": 1, "metrics": {"a\\nb": 1}}',
    '{"round": 1, "metrics": {"' + "x" * 65 + '": 1}}',
    json.dumps({"round": 1, "metrics": {f"m{i}": i for i in range(65)}}),
    '{"round": -1, "metrics": {"loss": 1}}',
    "[]",
)

PATHS = [*FILES, "/events", "/metrics", "/healthz", "/elsewhere"]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return Federation(tmp_path_factory.mktemp("keys") / "fed", "alice", "bob")


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with browser(tmp_path_factory.mktemp("profile")) as driver:
        driver.get("about:blank")
        hosts(driver)  # what the browser's own first page asked for
        yield driver


def page_of(server: Command) -> str:
    server.until('"page"')
    return next(str(e["url"]) for e in server.events if e["event"] == "page")


def ask(url: str, path: str, method: str = "GET", **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
    """One request; of a stream, the first message."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=LIMIT_S)
    connection.putrequest(method, path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders()
    answer = connection.getresponse()
    if answer.headers.get_content_type() != "text/event-stream":
        body = answer.read()
    else:
        body = b"".join(iter(answer.readline, b"\n"))
    connection.close()
    return answer, body


def first_message(url: str, **headers: str) -> tuple[str, dict[str, Any]]:
    """Id and content of a stream's first message."""
    lines = dict(line.split(": ", 1) for line in ask(url, "/events", **headers)[1].decode().splitlines())
    return lines["id"], json.loads(lines["data"])


def figures(url: str) -> dict[tuple[str, ...], float]:
    """What Prometheus reads: values by name and labels."""
    families = list(text_string_to_metric_families(ask(url, "/metrics")[1].decode()))
    assert all(f.documentation and f.type != "unknown" for f in families)
    return {(s.name, *s.labels.values()): s.value for f in families for s in f.samples}


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def until_announced(server: Command, number: int) -> None:
    until(lambda: any(e["event"] == "announced" and e["round"] == number for e in server.events))


def text(driver: Chrome, css: str) -> str:
    found = driver.execute_script("return document.querySelector(arguments[0]).textContent", css)
    assert isinstance(found, str)
    return found.strip()


def texts(driver: Chrome, css: str) -> list[str]:
    found: list[str] = driver.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)", css
    )
    return found


def clients_of(driver: Chrome) -> dict[str, str]:
    return dict(zip(texts(driver, "#clients b"), texts(driver, "#clients span"), strict=True))


def errors(driver: Chrome) -> list[dict[str, Any]]:
    return [entry for entry in log_of(driver, "browser") if entry["level"] == "SEVERE"]


def shifted(driver: Chrome) -> float:
    """How much of what was already there has moved by itself, as browsers measure it."""
    return float(driver.execute_script("return window.shifted"))


def tab_order(driver: Chrome) -> list[str]:
    """What the Tab key reaches, from the top to the browser's own controls."""
    reached: list[str] = []
    driver.execute_script("document.activeElement.blur(); getSelection().collapse(document.body, 0)")
    while len(reached) < 50:
        ActionChains(driver).send_keys(Keys.TAB).perform()
        name = driver.execute_script(
            "const e = document.activeElement;"
            "return e === document.body ? '' : e.getAttribute('aria-label') || e.id || e.textContent.trim()"
        )
        if not name:
            break
        reached.append(name)
    return reached


def test_a_run_is_shown_live_until_it_ends(keys: Federation, tmp_path: Path, driver: Chrome) -> None:
    with keys:
        server = keys.serve(tmp_path / "server", "--rounds", "3", "--join-wait", "60", "--page-port", "0")
        driver.get(page_of(server))
        driver.execute_script(
            "window.shifted = 0; new PerformanceObserver((l) => l.getEntries().forEach((e) => shifted += e.value))"
            ".observe({type: 'layout-shift', buffered: true})"
        )
        until(lambda: clients_of(driver) == {"alice": "not here yet", "bob": "not here yet"})
        assert text(driver, "#doing") == "Waiting for clients: 0 here, at least 2 needed. Not here: alice and bob."
        alice = keys.client("alice", tmp_path / "alice", "--report-metrics", STEP="0.37")
        until(lambda: clients_of(driver)["alice"] == "here")
        assert text(driver, "#doing").endswith("Not here: bob.")
        assert "Shown where a client runs with --report-metrics" in text(driver, ".empty")

        bob = keys.client("bob", tmp_path / "bob", trainer="trainers:Slow", STEP="0.81", SLEEP="2.5")
        headings: list[str] = []

        def follow(heading: str, doing: str) -> bool:
            if text(driver, "h1") not in headings[-1:]:
                headings.append(text(driver, "h1"))
            return headings[-1] == heading and text(driver, "#doing").endswith(doing)

        until(lambda: follow("Round 2 of 3", "waiting for bob."))
        assert clients_of(driver) == {"alice": "update is in", "bob": "awaited"}
        assert re.fullmatch(r"Closes in (1:00|0:5\d)\.", text(driver, "#clock"))
        until(lambda: follow("Run ended after round 3", "this page stays as it is."))
        assert [c.wait() for c in (alice, bob, server)] == [0, 0, 0], [alice.error, bob.error, server.error]

    order = ["Initial model 3 rounds", *(f"Round {n} of 3" for n in (1, 2, 3)), "Closing after round 3"]
    assert [order.index(h) for h in headings[:-1]] == sorted({order.index(h) for h in headings[:-1]})
    assert text(driver, "#link") == "run ended"
    assert set(clients_of(driver).values()) == {"finished"}

    # the clients' own figures: averages that alice decrypted, of models 0 to 3
    told = [e["metrics"] for e in alice.events if e["event"] == "round" and e["round"]]
    assert texts(driver, "thead th")[:3] == ["Round", "Loss", "Accuracy"]
    cells = [texts(driver, f"tbody tr:nth-child({n}) > *") for n in (1, 2, 3, 4, 5)]
    assert [row[0] for row in cells] == ["initial", "1", "2", "3", "closing"]
    assert [[float(x) for x in row[1:3]] for row in cells[:4]] == [
        [float(f"{m[name]:.3g}") for name in ("loss", "accuracy")] for m in told
    ]
    assert cells[4][1:3] == ["\u2013", "\u2013"]
    assert [row[3] for row in cells] == ["1 of 1", *["2 of 2"] * 4]
    assert [len(driver.find_elements("css selector", f".chart:nth-child({n}) circle")) for n in (1, 2)] == [4, 4]
    assert "as alice reported" in text(driver, "#told")
    assert [(e["round"], e["client"]) for e in server.events if e["event"] == "metrics"] == [
        (number, "alice") for number in range(4)
    ]

    assert errors(driver) == []
    assert hosts(driver) == {"127.0.0.1"}
    assert shifted(driver) < 0.1  # what the web's vitals call good


def test_the_page_fits_every_screen_in_both_colours_and_the_keyboard_reaches_all_of_it(
    keys: Federation, tmp_path: Path, driver: Chrome
) -> None:
    """Goes on with a run without --report-metrics, whose server then dies and comes back."""
    with keys:
        server = keys.serve(tmp_path / "server", "--rounds", "2", "--join-wait", "0", "--page-port", "0")
        driver.get(page_of(server))
        for name in ("alice", "bob"):
            keys.client(name, tmp_path / name, trainer="trainers:Slow", SLEEP="60")
        until(lambda: "Round 2" in text(driver, "h1"))
        assert texts(driver, "thead th")[:2] == ["Round", "In the sum"]
        assert [t for t in texts(driver, ".empty:not([hidden])") if "--report-metrics" in t] == texts(driver, ".empty")[
            :2
        ]
        assert not driver.find_elements("css selector", "circle")

        grounds = set()
        for scheme in ("light", "dark"):
            colours(driver, scheme)
            for width in (320, 360, 1280):
                resize(driver, width, 780)
                assert not overflows(driver), (scheme, width)
            grounds.add(driver.execute_script("return getComputedStyle(document.documentElement).backgroundColor"))
        assert len(grounds) == 2

        reached = tab_order(driver)
        charts = ["Loss", "Accuracy", "Seconds a round", "Bytes a round"]
        assert reached == [
            "Skip to the table of rounds",
            *(f"{chart}. Arrow keys read single values." for chart in charts),
            "table",
            "metrics for Prometheus",
            "health",
        ]
        seconds = driver.find_element("css selector", ".chart:nth-child(3)")
        driver.execute_script("arguments[0].focus()", seconds)
        read = []
        for key in (Keys.HOME, Keys.ARROW_RIGHT):
            ActionChains(driver).send_keys(key).perform()
            read.append(text(driver, ".chart:nth-child(3) output"))
        assert read == ["initial", "round 1"]
        assert errors(driver) == []

        server.child.send_signal(signal.SIGKILL)
        until(lambda: text(driver, "#link") == "connection lost")
        assert text(driver, "#notice").startswith("The connection to the server is lost. What stands here is from")
        port = str(urlsplit(page_of(server)).port)
        again = keys.serve(tmp_path / "server", "--rounds", "2", "--page-port", port)
        until(lambda: text(driver, "#link") == "live")
        assert not driver.find_element("css selector", "#notice").is_displayed()
        assert texts(driver, "tbody th") == ["initial", "1"]
        # who opens it only now learns of these rounds from the journal
        rows = first_message(page_of(again))[1]["rows"]
        assert [(row["round"], row["exchange"], row["members"]) for row in rows] == [
            (0, "initial", ["alice"]),
            (1, "training", ["alice", "bob"]),
        ]


def test_a_client_tells_the_server_nothing_of_the_models_quality_unless_it_is_asked_to(
    keys: Federation, tmp_path: Path
) -> None:
    """And what it may tell is checked; meanwhile the page, Prometheus and whoever asks for health are told the same."""
    secret = read_client_folder(keys.folder / "clients/alice").secret
    with keys:
        flags = ("--insecure-http", "--join-wait", "60", "--page-port", "0")
        server = keys.serve(tmp_path / "server", "--rounds", "2", *flags)
        url = page_of(server)
        clients = [
            keys.client(n, tmp_path / n, "--insecure-http", trainer="trainers:Slow", SLEEP="2.5")
            for n in ("alice", "bob")
        ]
        until_announced(server, 2)
        # a row still changes while its model is fetched
        until(lambda: sum(e["event"] == "download" and e["round"] == 1 for e in server.events) == 2)
        last, message = first_message(url)
        assert [row["round"] for row in message["rows"]] == [0, 1]
        assert (message["now"]["round"], message["now"]["rounds"]) == (2, 2)
        assert 57 < message["now"]["deadline_s"] <= 60
        # whoever comes back is told what it has not heard; a page of another server's, everything
        assert first_message(url, Last_Event_ID=last)[1]["rows"] == []
        assert len(first_message(url, Last_Event_ID=f"00000000-{last.split('-')[1]}")[1]["rows"]) == 2
        health = json.loads(ask(url, "/healthz")[1])
        assert health == {"status": "ok", "phase": "collecting", "round": 2, "rounds": 2}
        check_figures(figures(url), server)

        nonce = json.loads((tmp_path / "alice/session.json").read_bytes())["join_nonce"]

        def post(body: str, session: str = nonce) -> int:
            connection = http.client.HTTPConnection(urlsplit(keys.url).netloc, timeout=LIMIT_S)
            headers = messages.headers(secret, session) | {messages.HEADER_CLIENT: "alice"}
            connection.request("POST", "/v1/metrics", body, headers)
            status = connection.getresponse().status
            connection.close()
            return status

        assert post('{"round": 2, "metrics": {"loss": 1}}') == 409  # there is no model 2 yet
        assert post('{"round": 1, "metrics": {"loss": 1}}', session="00" * 16) == 409
        for body in NO_METRICS:
            assert post(body) == 400, body
        # nothing was taken, and the clients, who were not asked to, have told nothing
        assert all(row["metrics"] is None for row in first_message(url)[1]["rows"])
        assert not any(e["event"] == "metrics" for e in server.events)
        assert "accuracy" not in "\n".join([*server.out, *server.err])

        for loss in ("1.5", "2.5"):  # the first is believed
            assert post('{"round": 1, "metrics": {"loss": ' + loss + ', "<script>": null}}') == 200
        row = first_message(url)[1]["rows"][1]
        assert (row["metrics"], row["reporter"]) == ({"loss": 1.5, "<script>": None}, "alice")
        assert [c.wait() for c in (*clients, server)] == [0, 0, 0], server.error
        assert [e["round"] for e in server.events if e["event"] == "metrics"] == [1]


def test_page_clients_and_status_count_the_rounds_of_an_extended_run_alike(
    keys: Federation, tmp_path: Path, driver: Chrome
) -> None:
    """Round 2 closed it after one training; then two more are asked for, one of them while its clients are there."""
    state, port = tmp_path / "server", free_port()
    with keys:
        keys.url = f"https://127.0.0.1:{port}"
        first = keys.start_server(state, "--rounds", "1", "--join-wait", "0", port=port)
        assert [c.wait() for c in (*both(keys, tmp_path), first)] == [0, 0, 0]
        second = keys.start_server(state, "--rounds", "2", port=port, module="crashing_server", DIE="after Announced 1")
        clients = both(keys, tmp_path)
        assert second.wait() == -signal.SIGKILL
        third = keys.start_server(state, "--rounds", "3", "--page-port", "0", port=port)
        driver.get(page_of(third))
        seen: list[str] = []

        def over() -> bool:
            seen.append(text(driver, "h1"))
            return seen[-1] == "Run ended after round 4"

        until(over)
        assert [c.wait() for c in (*clients, third)] == [0, 0, 0], [c.error for c in clients]
        status = keys.run("status", state)
        assert status.wait() == 0
    assert status.out[0].endswith("of 3 trainings, the last in round 4: ended after round 4")
    # The last round may be over between two looks.
    assert {"Round 3 of 4, with 3 trainings", "Round 4 of 4, with 3 trainings"} & set(seen)
    for client in clients:
        rounds = [(e["round"], e["rounds"]) for e in client.events if e["event"] == "round"]
        assert rounds[-3:] == [(3, 4), (4, 4), (5, 4)]


def both(keys: Federation, folder: Path) -> list[Command]:
    return [keys.client(name, folder / name, "--connect-timeout", "60") for name in ("alice", "bob")]


def check_figures(counted: dict[tuple[str, ...], float], server: Command) -> None:
    """In round 2 of 2, while both clients train."""
    assert counted["hefl_round",] == counted["hefl_rounds",] == 2
    assert counted["hefl_clients_known",] == counted["hefl_clients_joined",] == counted["hefl_clients_awaited",] == 2
    assert counted["hefl_clients_silent",] == counted["hefl_attempts_abandoned_total",] == 0
    assert {key[1]: value for key, value in counted.items() if key[0] == "hefl_phase"} == {
        phase.value: phase is Phase.COLLECTING for phase in Phase
    }
    assert [counted["hefl_updates_total", n] for n in ("alice", "bob")] == [2, 1]
    sizes = {kind: sum(e["bytes"] for e in server.events if e["event"] == kind) for kind in ("update", "download")}
    assert counted["hefl_bytes_received_total",] == sizes["update"] > 0
    assert counted["hefl_bytes_sent_total",] == sizes["download"] > 0
    assert [counted["hefl_round_seconds_count", p] for p in ("gathering", "collecting", "summing")] == [2, 2, 2]
    assert 0 < counted["hefl_deadline_seconds",] <= 60
    assert counted["process_resident_memory_bytes",] > 1e6
    assert counted["process_open_fds",] > 3


def test_the_page_is_read_only_answers_to_loopback_names_only_and_says_who_may_use_it(
    keys: Federation, tmp_path: Path
) -> None:
    with keys:
        server = keys.serve(tmp_path / "server", "--page-port", "0", "--insecure-http")
        url = page_of(server)
        port = urlsplit(url).port
        assert urlsplit(url).hostname == "127.0.0.1"
        for method in ("HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
            for path in PATHS:
                answer, _ = ask(url, path, method)
                assert (answer.status, answer.headers["Allow"]) == (405, "GET"), (method, path)
        for host in (
            "evil.example",
            f"evil.example:{port}",
            "127.0.0.1.evil.example",
            "192.0.2.1",
            "localhost.",
            "[",
            "",
        ):
            for path in PATHS:
                assert ask(url, path, Host=host)[0].status == 421, (host, path)
        for host in (f"127.0.0.1:{port}", "localhost:9000", f"[::1]:{port}", "LOCALHOST"):
            assert ask(url, "/", Host=host)[0].status == 200, host
        for path in PATHS:
            answer, _ = ask(url, path)
            assert answer.status == (404 if path == "/elsewhere" else 200)
            policy = answer.headers["Content-Security-Policy"]
            assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
            assert "unsafe" not in policy
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.headers["Set-Cookie"] is None
            assert answer.headers["Access-Control-Allow-Origin"] is None
        with socket.socket() as elsewhere:  # it listens on 127.0.0.1 and nowhere else, not even on 127.0.0.2
            assert elsewhere.connect_ex(("127.0.0.2", port)) != 0

        other = keys.run(
            "serve", keys.folder / "server", "--state", tmp_path / "b", "--port", "0", "--page-port", str(port)
        )
        assert other.wait() == 1
        assert other.err[0] == f"hefl: port {port} of 127.0.0.1 is in use"
        assert "--page-port" in other.err[1]

        assert ask(keys.url, "/v1/run")[0].status == 409
        counted = figures(url)
        assert counted["hefl_requests_refused_total", "VersionError"] == 1
        assert {key[1] for key in counted if key[0] == "hefl_updates_total"} == {"alice", "bob"}
