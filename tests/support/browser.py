"""A real browser for tests of the page: Debian's chromium, headless, with a profile of its own that is thrown away."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService

REQUIRED = "HEFL_REQUIRE_BROWSER"
"""Set where a missing browser is a failure: there these tests must not be skipped."""

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def browser(profile: Path) -> Iterator[Chrome]:
    """A browser whose console and network are on record; skips, or fails, where there is none."""
    chromium, driver_path = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver_path is None:
        why = "chromium and chromium-driver, Debian's packages, are not installed"
        if os.environ.get(REQUIRED):
            pytest.fail(f"{why}, and {REQUIRED} is set")
        pytest.skip(why)
    options = ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options, ChromeService(driver_path))
    try:
        yield driver
    finally:
        driver.quit()


def log_of(driver: Chrome, kind: str) -> list[dict[str, Any]]:
    """What has come since it was last asked for."""
    entries: list[dict[str, Any]] = driver.get_log(kind)  # type: ignore[no-untyped-call]
    return entries


def hosts(driver: Chrome) -> set[str]:
    """Whom pages have sent requests to."""
    asked = set()
    for entry in log_of(driver, "performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            asked.add(urlsplit(message["params"]["request"]["url"]).hostname or "")
    return asked


def resize(driver: Chrome, width: int, height: int) -> None:
    """The page's own size, which a window's frame would lessen."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def colours(driver: Chrome, scheme: str) -> None:
    """``dark`` or ``light``, as a person's system would prefer."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def overflows(driver: Chrome) -> bool:
    """The page is wider than the window."""
    return bool(driver.execute_script("const r = document.documentElement; return r.scrollWidth > r.clientWidth"))
