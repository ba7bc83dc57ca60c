"""``polydit list``: tasks, their systems, the weights at hand."""

from __future__ import annotations

from collections.abc import Sequence

from ..task import find_tasks
from .parser import Parser

__all__ = ["run_list"]


def run_list(words: Sequence[str]) -> int:
    """Print a table of tasks; every entry point that gives no task gets one line."""
    Parser("polydit list", "Tasks, the systems they implement, and the weights at hand.").parse_args(words)
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    tasks, broken = find_tasks()
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("task", "system", "config", "about"):
        table.add_column(title, overflow="fold")
    weights: list[tuple[str, str]] = []
    for task in tasks.values():
        first = True
        for system in task.systems:
            path = task.config_folder() / system.config
            about = system.title + (f", arXiv {system.arxiv}" if system.arxiv else "")
            if system.note:
                about += f" ({system.note})"
            table.add_row(
                escape(task.name) if first else "",
                escape(system.name),
                escape(f"{task.package}/{system.config}") if path.is_file() else "-",
                escape(about),
            )
            first = False
        if not task.systems:
            table.add_row(escape(task.name), "-", "-", escape(task.summary))
        default = task.weights_folder()
        for folder in task.weights_at_hand():
            size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
            mark = ", the default of predict" if folder == default else ""
            weights.append((task.name, f"{folder} ({size:.1f} MB{mark})"))
    console = Console(width=None if _is_terminal() else 140, soft_wrap=False, highlight=False)
    console.print(table)
    console.print("\nweights at hand:" if weights else "\nno weights at hand", style="bold")
    for name, line in weights:
        console.print(f"  {escape(name)}: {escape(line)}", soft_wrap=True)
    for failed in broken:
        console.print(
            f"{escape(failed.name)}: cannot be loaded from {escape(failed.origin)}: {escape(failed.reason)}",
            style="red",
            soft_wrap=True,
        )
    return 0


def _is_terminal() -> bool:
    import sys

    return sys.stdout.isatty()
