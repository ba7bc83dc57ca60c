"""Every option of every command is written down; adding one is a decision.

After a decision: ``python tests/integration/test_cli_surface.py`` writes the file again.
"""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

from polydit.core.cli import main, task_menu
from polydit.core.task import find_tasks

EXPECTED = Path(__file__).with_name("cli_surface.txt")
LIGHTNING = ("fit", "validate", "test")  # their options are those of the config; see tests/core/training


def help_text(*words: str) -> str:
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        assert main([*words, "--help"]) == 0
    return text.getvalue()


def surface() -> str:
    """Commands, and under each its options with their values, in the order of the help."""
    tasks = [task for task in find_tasks()[0].values() if task.module.startswith("polydit.")]
    commands = [("list",), ("doctor",), ("corpus", "build"), ("shards", "build")]
    commands += [("lora", "inspect"), ("lora", "convert")]
    lines = []
    for task in tasks:
        names = [name for _, rows in task_menu(task).sections for name, _ in rows]
        lines.append(f"{task.name}: {' '.join(names)}")
        commands += [(task.name, name) for name in names if name not in LIGHTNING]
    for words in commands:
        lines += ["", " ".join(words)]
        for line in help_text(*words).splitlines():
            if match := re.match(r"  (-\S.*?|[a-z_]+)(  +.*)?$", line):
                lines.append(f"  {match[1]}")
    return "\n".join(lines) + "\n"


def test_no_option_appeared_or_vanished_unnoticed():
    assert surface() == EXPECTED.read_text(encoding="utf-8"), (
        f"if this is meant, run: python {Path(__file__).name}"
    )


if __name__ == "__main__":
    EXPECTED.write_text(surface(), encoding="utf-8")
