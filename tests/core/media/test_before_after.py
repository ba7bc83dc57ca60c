"""The page works from a folder without network, and says what it shows."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from polydit.core.errors import PolyditError
from polydit.core.media import BeforeAfter, OutputWriter, ResultsTable, before_after_html, before_after_page


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def named(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


def test_pictures_are_referred_to_by_relative_name_and_nothing_else_is_loaded():
    text = before_after_html("cat before#1.png", "sub/cat.png", "Cats & dogs <x4>", caption="+1.2 dB")
    page = Page(text)
    assert page.open == []
    assert [image["src"] for image in page.named("img")] == ["cat%20before%231.png", "sub/cat.png"]
    assert "Cats &amp; dogs &lt;x4&gt;" in text
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text)
    assert not page.named("link")
    assert all("src" not in script for script in page.named("script"))


def test_labels_for_people_who_do_not_see_the_pictures():
    page = Page(before_after_html("a.png", "b.png", "t", caption="Cat", labels=("Bicubic", "PolyDiT")))
    assert [image["alt"] for image in page.named("img")] == ["Cat: Bicubic", "Cat: PolyDiT"]
    (slider,) = page.named("input")
    assert slider["aria-label"] == "Cat: divide between Bicubic and PolyDiT"
    assert page.named("html") == [{"lang": "en"}]


def test_embedded_pictures_are_in_the_page(tmp_path):
    writer = OutputWriter(tmp_path)
    before = writer.image("a.png", np.zeros((4, 4, 3), np.uint8))
    after = writer.image("b.jpg", np.zeros((4, 4, 3), np.uint8))
    images = Page(before_after_html(before, after, "t", embed=True)).named("img")
    for image, path, kind in zip(images, (before, after), ("image/png", "image/jpeg"), strict=True):
        head, body = image["src"].split(",")
        assert head == f"data:{kind};base64"
        assert base64.b64decode(body) == path.read_bytes()
    with pytest.raises(PolyditError, match=r"missing\.png: cannot read"):
        before_after_html(tmp_path / "missing.png", after, "t", embed=True)


def test_absolute_names_are_refused(tmp_path):
    for name in (tmp_path / "a.png", "https://example.org/a.png"):
        with pytest.raises(ValueError, match="relative to the page"):
            before_after_html(name, "b.png", "t")


def test_page_with_several_pairs_and_tables():
    table = ResultsTable(["picture", "PSNR"], title="x2 & x4")
    table.add("cat <1>", 27.123)
    pairs = [BeforeAfter(f"{i}a.png", f"{i}b.png", f"number {i}") for i in range(3)]
    text = before_after_page(pairs, "All", introduction="Three & a table", tables=[table, table])
    page = Page(text)
    assert len(page.named("input")) == 3
    assert len(page.named("td")) == 4
    assert text.count("<caption>x2 &amp; x4</caption>") == 2
    assert "cat &lt;1&gt;" in text
    assert "Three &amp; a table" in text


def test_braces_in_labels_are_plain_text():
    assert "{0} {x}" in before_after_html("a.png", "b.png", "t", caption="{0} {x}")
