"""``results.json``: what ``predict`` did with which settings, and what an earlier run left."""

from __future__ import annotations

import argparse
import glob
import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from .task import TaskSpec

__all__ = ["RESULTS", "earlier_records", "existing_results", "report"]

RESULTS = "results.json"


def existing_results(task: TaskSpec, source: Path, options: argparse.Namespace) -> list[Path]:
    """What an earlier run left in the output folder for `source`."""
    fields = {name: glob.escape(str(value)) for name, value in vars(options).items()}
    fields["stem"] = glob.escape(source.stem)
    folder: Path = options.output
    found: set[Path] = set()
    for pattern in task.outputs_of(source):
        filled = pattern.format_map(fields)
        for path in folder.glob(filled):
            # "a.*" is not meant to find "a.b.png", which is the result of another input.
            if path.name != RESULTS and (not filled.endswith(".*") or fnmatchcase(path.stem, filled[:-2])):
                found.add(path)
    return sorted(found)


def earlier_records(file: Path) -> dict[str, dict[str, Any]]:
    """Records of an earlier run into the same folder by input; nothing if they cannot be read."""
    try:
        return {record["input"]: record for record in json.loads(file.read_text(encoding="utf-8"))["inputs"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def report(
    task: TaskSpec, options: argparse.Namespace, settings: dict[str, Any], records: list[dict[str, Any]]
) -> dict[str, Any]:
    """What ``results.json`` says: the task, every setting, versions, and a record per input."""
    import importlib.metadata

    from .. import __version__

    given = {
        name: value for name, value in vars(options).items() if name not in ("debug", "progress", "overwrite")
    }
    given = {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}
    return {
        "task": task.name,
        "settings": {**given, **settings},
        "versions": {
            "polydit": __version__,
            **{name: importlib.metadata.version(name) for name in ("torch", "diffusers")},
        },
        "inputs": records,
    }
