"""``fit``, ``validate`` and ``test``: the way to the training part, which takes seconds to import."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast

from ..errors import PolyditError
from ..task import TaskSpec, nearest

__all__ = ["find_config", "run_lightning"]


def run_lightning(task: TaskSpec, subcommand: str, words: Sequence[str]) -> int:
    """Hand over to Lightning's command line, with the config file found by its name too."""
    typed = [word for word in words if word != "--debug"]
    words = list(typed)
    for number, word in enumerate(words):
        if word in ("--config", "-c") and number + 1 < len(words):
            words[number + 1] = str(find_config(task, words[number + 1]))
        elif word.startswith("--config="):
            words[number] = f"--config={find_config(task, word.partition('=')[2])}"
    from ..training.cli import run

    run(task, cast(Literal["fit", "validate", "test"], subcommand), words, typed)
    return 0


def find_config(task: TaskSpec, name: str) -> Path:
    """The config file `name`: a path, or the name of a shipped one.

    Raises:
        PolyditError: there is neither.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    shipped = {file.name: file for file in task.config_folder().glob("*.yaml")}
    for candidate in (path.name, f"{path.name}.yaml"):
        # "configs/super_resolution/small.yaml" also from a folder where there is no configs/.
        if candidate in shipped and path.parts[:-1] in ((), (task.package,), ("configs", task.package)):
            return shipped[candidate]
    raise PolyditError(
        f"--config {name}: no such file{nearest(path.name, shipped)}; shipped with {task.name} are "
        f"{', '.join(sorted(shipped)) or 'none'}"
    )
