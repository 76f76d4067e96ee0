"""What all HTML pages share: one file that opens offline, asks nothing of the network, and takes names as text."""

import base64
import hashlib
import html
import json
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Final

from trady.planner.errors import TradyError
from trady.planner.files import check_writable
from trady.planner.reports.plotting import check_suffix

PAGE_SUFFIXES: Final = (".html",)
#: What would end a script's block, or begin a comment in it; and line ends that old parsers of scripts trip over.
_ESCAPES: Final = {ord(letter): f"\\u{ord(letter):04x}" for letter in "<>&\u2028\u2029"}


def page(title: str, body: str, data: object, scripts: Iterable[str]) -> str:
    """A page of its own: style, scripts, plotly and data in one file.

    The browser is told to run no script but these, by their hashes, and to fetch nothing at all.

    Args:
        title: Foreign text.
        body: Its main part, markup without foreign text: scripts fill it in from the data.
        data: What JSON can hold.
        scripts: Sources that run after plotly and :file:`assets/page.js`.

    Returns:
        HTML that opens offline.

    Error:
        TradyError: plotly is not installed.
    """
    sources = [_one_line_ends(source) for source in (plotly_source(), asset("page.js"), *scripts)]
    policy = _policy(sources)
    blocks = "\n".join(f"<script>{source}</script>" for source in sources)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="Trady">
<link rel="icon" href="data:,">
<title>{html.escape(title)}</title>
<style>
{asset("page.css")}</style>
</head>
<body>
<header>
  <h1 id="title"></h1>
  <button type="button" id="theme"></button>
</header>
<main>
{body}</main>
<footer>Made by Trady. Bytes are decimal: 1 kB is 1,000 bytes. This file needs no network.</footer>
<noscript><p>This page needs JavaScript, which is turned off.</p></noscript>
<script type="application/json" id="data">{embedded_json(data)}</script>
{blocks}
</body>
</html>
"""


def embedded_json(data: object) -> str:
    """JSON that may stand in a script's block, whatever its texts are."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).translate(_ESCAPES)


def asset(name: str, package: str = "trady.planner.reports") -> str:
    """A style sheet, script or skeleton that lies in a package's ``assets``."""
    return (files(package) / "assets" / name).read_text(encoding="utf-8")


def plotly_source() -> str:
    """The script of plotly.

    Raises:
        TradyError: plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise TradyError('Pages need plotly, which is not installed. Run: pip install "trady[study]"') from error
    source: str = get_plotlyjs()
    return source


def check_page_path(path: str | Path) -> None:
    """Fail before the work: another suffix, a place that cannot be written, or no plotly.

    Error:
        TradyError: With what to do about it.
    """
    check_suffix(Path(path), PAGE_SUFFIXES, "Page")
    check_writable(Path(path))
    plotly_source()


def _policy(sources: Iterable[str]) -> str:
    """What the browser may do: run these scripts, and show pictures that plotly draws. Its styles have no hash."""
    hashes = " ".join(f"'sha256-{_hash(source)}'" for source in sources)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(source: str) -> str:
    return base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()


def _one_line_ends(source: str) -> str:
    """As the browser reads it: it hashes a script with plain line ends."""
    return source.replace("\r\n", "\n").replace("\r", "\n")
