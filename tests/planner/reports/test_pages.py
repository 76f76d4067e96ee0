"""Pages are whole, ask nothing of the network, and hold foreign text as text."""

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from trady.planner.errors import TradyError
from trady.planner.reports.pages import check_page_path, embedded_json, page

HOSTILE = "</script><img src=x onerror=alert(1)><!--\u2028&"


class Outline(HTMLParser):
    """Tags with their attributes, and what the blocks of scripts hold."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "input", "br"):
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data


@pytest.fixture(scope="module")
def text() -> str:
    return page(HOSTILE, "<p></p>", {"names": [HOSTILE]}, ["'use strict';\r\n"])


@pytest.fixture(scope="module")
def outline(text: str) -> Outline:
    return Outline(text)


def test_foreign_text_survives_the_way_through_a_script(outline: Outline) -> None:
    embedded = embedded_json([HOSTILE])
    assert not re.search("[<>&\u2028\u2029]", embedded)
    assert json.loads(embedded) == [HOSTILE]
    assert json.loads(outline.scripts[0]) == {"names": [HOSTILE]}


def test_a_page_is_well_formed_and_no_name_made_an_element(outline: Outline) -> None:
    assert outline.open == []
    assert "img" not in [tag for tag, _ in outline.tags]


def test_plotly_is_in_the_page_once(text: str) -> None:
    assert text.count("* plotly.js v") == 1


def test_nothing_is_fetched(outline: Outline) -> None:
    for _, attributes in outline.tags:
        assert "src" not in attributes
        assert attributes.get("href", "data:,") == "data:,"
    policies = [found["content"] or "" for _, found in outline.tags if "http-equiv" in found]
    assert len(policies) == 1 and "default-src 'none'" in policies[0]
    assert "http" not in policies[0] and "unsafe-eval" not in policies[0]
    assert "'unsafe-inline'" not in policies[0].split("style-src")[0]


def test_a_page_has_its_suffix(tmp_path: Path) -> None:
    check_page_path(tmp_path / "page.html")
    with pytest.raises(TradyError, match=r"Page .*page.png: suffix '.png' is not known. Use .html"):
        check_page_path(tmp_path / "page.png")
    with pytest.raises(TradyError, match="does not exist"):
        check_page_path(tmp_path / "missing" / "page.html")


def test_without_plotly_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(TradyError, match=r'pip install "trady\[study\]"'):
        check_page_path(tmp_path / "page.html")
