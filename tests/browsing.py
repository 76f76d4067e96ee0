"""A headless browser for pages: it notes every request, console error and dialog."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from torch import nn

#: A name that would run if any page took it as markup.
HOSTILE: Final = "</script><img src=x onerror=alert(1)><b>&\u2028"
SETTLED_MS: Final = 150
_PATIENCE_MS: Final = 5000


class HostileNet(nn.Module):
    """Its layer is named to break out of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module(HOSTILE, nn.Conv2d(3, 8, 3))
        self.head = nn.Linear(8, 5)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(getattr(self, HOSTILE)(pictures).mean(dim=(2, 3)))
        return logits


@contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium; tests are skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    with playwright.sync_playwright() as running:
        found = running.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        try:
            yield found
        finally:
            found.close()


@contextmanager
def opened(found: Any, path: Path, *, width: int = 1280, scheme: str = "light") -> Iterator[Any]:
    """A page in a window of its own.

    Whatever the test did with it, it asked for nothing but its file, logged no error, and let no foreign text run.
    """
    page = found.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.set_default_timeout(_PATIENCE_MS)
    requests: list[str] = []
    problems: list[str] = []

    def dismiss(dialog: Any) -> None:
        problems.append(f"dialog {dialog.message}")
        dialog.dismiss()

    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", dismiss)
    try:
        page.goto(path.as_uri())
        page.wait_for_timeout(SETTLED_MS)
        assert problems == []
        yield page
        assert problems == []
        assert requests == [path.as_uri()]
        assert page.locator("img[src='x']").count() == 0
    finally:
        page.close()


def is_within(page: Any) -> bool:
    """Whether the page scrolls up and down alone."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))
