"""``polydit <task> check``: everything about a config and its data that would fail later, at once and before a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..task import TaskSpec
from .parser import Parser
from .train import find_config

if TYPE_CHECKING:
    from ..training.memory import Variant

__all__ = ["memory_table", "run_check"]


def run_check(task: TaskSpec, words: Sequence[str]) -> int:
    """Build the model without memory for its weights, read data, count memory, and list every problem."""
    parser = Parser(
        f"polydit {task.name} check",
        "Look at a config, its weights and its data, and count memory, disk and time, before a step is run. "
        "Options of fit may follow: --data.batch_size 8",
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        action="append",
        help="file, or name of a shipped one; of several, the last word on each key counts"
        + (f" (default: {task.default_config})" if task.default_config else ""),
    )
    parser.add_argument(
        "--memory",
        action="store_true",
        help="a table of what training needs with each option that saves memory",
    )
    options, overrides = parser.parse_known_args(words)
    names = options.config or ([task.default_config] if task.default_config else [])
    configs = [str(find_config(task, name)) for name in names]

    from ..training.cli import quiet
    from ..training.preflight import Preflight

    quiet()
    flight = Preflight(
        task, [*(word for config in configs for word in ("--config", config)), *overrides], options.memory
    )
    flight.run()
    print(f"config: {', '.join(configs) or 'none'}")
    for line in flight.lines:
        print(line)
    if flight.table:
        print(memory_table(flight.table))
    for problem in flight.problems:
        print(f"problem: {problem}")
    if flight.problems:
        return 2
    print("no problem found")
    return 0


def memory_table(rows: Sequence[Variant]) -> str:
    """Memory by option, a row each, and the words that ask for it."""
    parts = ("weights", "gradients", "optimizer", "average", "activations", "total")
    width = max(len(row.name) for row in rows)
    unit, size = ("GB", 1e9) if max(row.footprint.total for row in rows) > 2e9 else ("MB", 1e6)
    lines = [" ".join([f"{f'{unit} in a step':<{width}}", *(f"{part:>11}" for part in parts), " options"])]
    for row in rows:
        sizes = (f"{getattr(row.footprint, part) / size:11.2f}" for part in parts)
        lines.append(" ".join([f"{row.name:<{width}}", *sizes, f" {row.options or '-'}"]))
    return "\n".join(lines)
