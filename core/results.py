"""``results.json``: what ``predict`` did with which settings, and what an earlier run left."""

from __future__ import annotations

import argparse
import glob
import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from .task import TaskSpec

__all__ = [
    "RESULTS",
    "changed_settings",
    "earlier_record",
    "earlier_records",
    "existing_results",
    "expected_results",
    "report",
]

RESULTS = "results.json"
# What may differ between two runs into one folder without another result.
_INDIFFERENT = {"debug", "progress", "overwrite", "input", "output", "device", "dtype", "weights"}


def expected_results(task: TaskSpec, source: Path, options: argparse.Namespace) -> tuple[str, ...]:
    """The patterns of `source`'s results, with the names of input and options filled in."""
    fields = {name: glob.escape(str(value)) for name, value in vars(options).items()}
    for option in task.predict_options:
        if option.type == "path" and not option.many:
            value = getattr(options, option.dest)
            fields[f"{option.dest}_stem"] = glob.escape(value.stem) if value is not None else ""
    fields["stem"] = glob.escape(source.stem)
    return tuple(pattern.format_map(fields) for pattern in task.outputs_of(source))


def existing_results(task: TaskSpec, source: Path, options: argparse.Namespace) -> list[Path]:
    """What an earlier run left in the output folder for `source`."""
    folder: Path = options.output
    found: set[Path] = set()
    for filled in expected_results(task, source, options):
        for path in folder.glob(filled):
            # "a.*" is not meant to find "a.b.png", which is the result of another input.
            if path.name != RESULTS and (not filled.endswith(".*") or fnmatchcase(path.stem, filled[:-2])):
                found.add(path)
    return sorted(found)


def earlier_records(file: Path) -> list[dict[str, Any]]:
    """Records of an earlier run into the same folder; nothing if they cannot be read."""
    try:
        records = json.loads(file.read_text(encoding="utf-8"))["inputs"]
        return [record for record in records if isinstance(record["input"], str)]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def earlier_record(records: list[dict[str, Any]], source: Path, files: list[Path]) -> dict[str, Any]:
    """What an earlier run said of `source` when it made `files`; of several, the one that names them."""
    own = [record for record in records if record["input"] == str(source)]
    names = {file.name for file in files}
    return next(
        (record for record in own if names & set(record.get("files", ()))),
        own[0] if own else {"input": str(source)},
    )


def changed_settings(file: Path, options: argparse.Namespace, weights: Path) -> list[str]:
    """The settings that an earlier run into the folder of `file` did not have, as ``--steps 8 (was 1)``."""
    try:
        before = dict(json.loads(file.read_text(encoding="utf-8"))["settings"])
    except (OSError, ValueError, KeyError, TypeError):
        return []
    now = {name: _plain(value) for name, value in vars(options).items() if name not in _INDIFFERENT}
    now["weights"] = str(weights)
    return [
        f"--{name.replace('_', '-')} {_spoken(value)} (was {_spoken(before[name])})"
        for name, value in now.items()
        if name in before and before[name] != value
    ]


def _spoken(value: Any) -> str:
    return "not given" if value is None else str(value)


def report(
    task: TaskSpec, options: argparse.Namespace, settings: dict[str, Any], records: list[dict[str, Any]]
) -> dict[str, Any]:
    """What ``results.json`` says: the task, every setting, versions, and a record per input."""
    import importlib.metadata

    from .. import __version__

    given = {
        name: value for name, value in vars(options).items() if name not in ("debug", "progress", "overwrite")
    }
    return {
        "task": task.name,
        "settings": {**{name: _plain(value) for name, value in given.items()}, **settings},
        "versions": {
            "polydit": __version__,
            **{name: importlib.metadata.version(name) for name in ("torch", "diffusers")},
        },
        "inputs": records,
    }


def _plain(value: Any) -> Any:
    """The value of an option, paths as text."""
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value
