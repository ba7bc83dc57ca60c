"""One table of results for the terminal and for a README."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["ResultsTable"]

Cell = str | int | float | None


@dataclass
class ResultsTable:
    """Rows of results; numbers are right-aligned and floats rounded, a missing value is a dash.

    Attributes:
        columns: headings.
        title: shown above the table, except in Markdown.
        digits: decimals of a float.
        rows: filled by `add`.
    """

    columns: Sequence[str]
    title: str = ""
    digits: int = 2
    rows: list[list[Cell]] = field(default_factory=list)

    def add(self, *cells: Cell) -> None:
        """Append a row; raises ValueError unless it has one cell per column."""
        if len(cells) != len(self.columns):
            raise ValueError(f"results table: {len(cells)} cells for {len(self.columns)} columns")
        self.rows.append(list(cells))

    def markdown(self) -> str:
        """Return a GitHub table, padded so that it reads as plain text too; ends with a newline."""
        body = [[self._text(cell).replace("|", "\\|") for cell in row] for row in self.rows]
        heads = [head.replace("|", "\\|") for head in self.columns]
        widths = [max(3, *(len(row[i]) for row in [heads, *body])) for i in range(len(heads))]
        right = [self._is_numeric(i) for i in range(len(heads))]

        def line(cells: list[str]) -> str:
            padded = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right, strict=True)]
            return f"| {' | '.join(padded)} |\n"

        rule = ["-" * (w - 1) + ":" if r else "-" * w for w, r in zip(widths, right, strict=True)]
        return line(heads) + line(rule) + "".join(line(row) for row in body)

    def html(self) -> str:
        """Return a plain HTML table; cells with numbers have the class ``number``."""

        def row(cells: list[str], tag: str) -> str:
            kinds = [' class="number"' if self._is_numeric(i) else "" for i in range(len(cells))]
            inner = "".join(f"<{tag}{k}>{escape(c)}</{tag}>" for k, c in zip(kinds, cells, strict=True))
            return f"<tr>{inner}</tr>"

        body = "\n".join(row([self._text(cell) for cell in cells], "td") for cells in self.rows)
        caption = f"<caption>{escape(self.title)}</caption>\n" if self.title else ""
        return f"<table>\n{caption}<thead>{row(list(self.columns), 'th')}</thead>\n<tbody>\n{body}\n</tbody>\n</table>"

    def rich(self) -> Table:
        """Return the table for ``rich.console.Console.print``."""
        from rich.table import Table
        from rich.text import Text

        table = Table(title=self.title or None)
        for i, head in enumerate(self.columns):
            table.add_column(Text(head), justify="right" if self._is_numeric(i) else "left")
        for row in self.rows:
            table.add_row(*(Text(self._text(cell)) for cell in row))  # Text: a file name is not markup
        return table

    def _text(self, cell: Cell) -> str:
        if cell is None:
            return "-"
        return f"{cell:.{self.digits}f}" if isinstance(cell, float) else str(cell)

    def _is_numeric(self, column: int) -> bool:
        cells = [row[column] for row in self.rows if row[column] is not None]
        return bool(cells) and not any(isinstance(cell, str) for cell in cells)
