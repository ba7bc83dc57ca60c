"""Tables of results."""

from __future__ import annotations

import io

import pytest

from polydit.core.media import ResultsTable


def filled() -> ResultsTable:
    table = ResultsTable(["picture", "PSNR", "seconds"], title="Results", digits=1)
    table.add("cat|dog [bold]", 27.16, 3)
    table.add("mean", None, 12)
    return table


def test_markdown():
    assert filled().markdown() == (
        "| picture         | PSNR | seconds |\n"
        "| --------------- | ---: | ------: |\n"
        "| cat\\|dog [bold] | 27.2 |       3 |\n"
        "| mean            |    - |      12 |\n"
    )


def test_terminal_shows_names_as_they_are():
    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=80).print(filled().rich())
    assert "cat|dog [bold]" in out.getvalue()
    assert "27.2" in out.getvalue()
    assert "Results" in out.getvalue()


def test_html_marks_numbers():
    text = filled().html()
    assert '<td class="number">27.2</td>' in text
    assert "<td>mean</td>" in text


def test_row_must_fit():
    with pytest.raises(ValueError, match="2 cells for 3 columns"):
        filled().add("a", 1)
