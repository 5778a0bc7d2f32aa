"""A real browser where there is one: what it makes of a page, what it draws, and what it asks the network for."""

from __future__ import annotations

import functools
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-sync", "--hide-scrollbars", "--allow-file-access-from-files")  # fmt: skip


def _run(page: Path, *flags: str) -> str:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", *flags, page.as_uri()]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


def dom(page: Path) -> str:
    """The page as the browser understood it, after it loaded."""
    return _run(page, "--dump-dom")


def colours(page: Path, width: int, folder: Path) -> set[tuple[int, int, int]]:
    """Every colour of a screenshot."""
    from PIL import Image

    shot = folder / f"{width}.png"
    _run(page, f"--window-size={width},2400", f"--screenshot={shot}")
    with Image.open(shot) as image:
        return {colour for _, colour in image.convert("RGB").getcolors(1 << 24)}


def width_needed(page: Path, width: int) -> int:
    """How wide the page becomes in a window of `width` pixels: more than that, and the reader must scroll sideways."""
    frame = page.with_name(f"frame-{width}.html")
    measure = "document.title = this.contentDocument.documentElement.scrollWidth"
    frame.write_text(f'<iframe src="{page.name}" style="border:0;width:{width}px;height:2000px" onload="{measure}">')
    return int(dom(frame).split("<title>")[1].split("</title>")[0])


@contextmanager
def asked() -> Iterator[tuple[str, list[str]]]:
    """A server's address and, as it goes, the paths that anything asked it for."""
    paths: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=functools.partial(server.serve_forever, 0.05), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", paths
        server.shutdown()
