"""Pictures of web pages by Debian's Chromium, without a display."""

from __future__ import annotations

import base64
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from selenium.webdriver import Chrome, ChromeOptions, ChromeService

SWITCHES = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--hide-scrollbars",
)
PHONE_RATIO = 2.0  # pixels of the picture for one of the page
LOAD_TIMEOUT_S = 60.0


@contextmanager
def browser(width: int, height: int = 900, *, phone: bool = False) -> Iterator[Chrome]:
    """A window so wide; a phone's pages are laid out as a phone does it."""
    options = ChromeOptions()
    options.binary_location = _installed("chromium")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for switch in (*SWITCHES, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
            options.add_argument(switch)
        if phone:
            metrics = {"width": width, "height": height, "pixelRatio": PHONE_RATIO}
            options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
        chrome = Chrome(options=options, service=ChromeService(_installed("chromedriver")))
        chrome.set_page_load_timeout(LOAD_TIMEOUT_S)
        try:
            yield chrome
        finally:
            chrome.quit()


def _installed(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise SystemExit(f"{name} is missing: apt-get install chromium chromium-driver")
    return path


def look(
    chrome: Chrome,
    url: str,
    target: Path,
    *,
    settle_s: float = 0.5,
    max_height: float = 4000.0,
    cookies: Mapping[str, str] | None = None,
) -> None:
    """A picture of the whole page once it has settled, cut at `max_height`."""
    chrome.get(url)
    if cookies:
        for name, value in cookies.items():
            chrome.add_cookie({"name": name, "value": value, "path": "/"})
        chrome.refresh()
    time.sleep(settle_s)
    size = chrome.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
    chrome.execute_script("document.activeElement.blur(); window.scrollTo(0, 0)")
    width: int = chrome.execute_script("return window.innerWidth")
    clip = {"x": 0, "y": 0, "width": width, "height": min(size["height"], max_height)}
    options = {"captureBeyondViewport": True, "clip": {**clip, "scale": 1}}
    picture = chrome.execute_cdp_cmd("Page.captureScreenshot", options)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(base64.b64decode(picture["data"]))
    wider = size["width"] - width
    print(target, f"({wider:.0f} pixels wider than the window)" if wider > 0 else "", flush=True)
