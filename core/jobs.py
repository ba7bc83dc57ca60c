"""What ``predict`` has to do: one job for each input, or for each row of a table of inputs and options."""

from __future__ import annotations

import argparse
import csv
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .commands.parser import reader
from .errors import PolyditError
from .inputs import find_inputs
from .results import expected_results
from .task import Option, TaskSpec, nearest

__all__ = ["Job", "Jobs", "find_jobs", "subject_dest"]


@dataclass(frozen=True, eq=False)
class Job:
    """One input with its options.

    Attributes:
        source: the file.
        options: as `predict_parser` gives them, with what the row of a table says in place of the command's.
        row: what the row says, by option.
        clash: the input of an earlier job whose results have the same names.
    """

    source: Path
    options: argparse.Namespace
    row: dict[str, Any] = field(default_factory=dict)
    clash: Path | None = None


@dataclass(frozen=True)
class Jobs:
    """All jobs of a command.

    Attributes:
        jobs: in order.
        skipped: how many files of a folder or pattern were left out, by suffix.
    """

    jobs: list[Job]
    skipped: Counter[str] = field(default_factory=Counter)


def find_jobs(task: TaskSpec, options: argparse.Namespace) -> Jobs:
    """The jobs that the command line asks for.

    Raises:
        PolyditError: inputs and a table were given, or neither; an input is missing; the table is damaged.
    """
    table: Path | None = getattr(options, table_dest(task), None) if task.table else None
    subject: str | None = getattr(options, subject_dest(task), None) if task.subject else None
    if subject is not None:
        if options.input:
            raise PolyditError(
                f"{task.subject} {subject}: makes it from nothing; leave out {task.input_flag}"
            )
        if not subject.strip() or "/" in subject or subject.startswith("."):
            raise PolyditError(f"{task.subject} {subject!r}: give a name")
        return Jobs([Job(Path(subject), options)])
    if table is None:
        if not options.input:
            flags = " or ".join(flag for flag in (task.input_flag, task.table, task.subject) if flag)
            raise PolyditError(f"{flags}: required; `polydit {task.name} predict --help` shows what there is")
        inputs = find_inputs(options.input, task.input_kinds, task.outputs_of, task.input_flag)
        return Jobs(
            [Job(file, options, {}, inputs.clashes.get(file)) for file in inputs.files], inputs.skipped
        )
    if options.input:
        raise PolyditError(f"{task.table} {table}: names its inputs itself; leave out {task.input_flag}")
    jobs: list[Job] = []
    owners: dict[tuple[str, ...], Path] = {}
    for source, row in read_table(table, task):
        own = argparse.Namespace(**{**vars(options), **row})
        names = expected_results(task, source, own)
        clash = owners.get(names)
        owners.setdefault(names, source)
        jobs.append(Job(source, own, row, clash))
    return Jobs(jobs)


def subject_dest(task: TaskSpec) -> str:
    """The name of the subject's option in the parsed namespace."""
    return (task.subject or "").lstrip("-").replace("-", "_")


def table_dest(task: TaskSpec) -> str:
    """The name of the table's option in the parsed namespace."""
    return (task.table or "").lstrip("-").replace("-", "_")


def read_table(file: Path, task: TaskSpec) -> list[tuple[Path, dict[str, Any]]]:
    """Inputs and options of each row; paths are relative to the folder of the table.

    The first line names the columns: the input, then options of the task without dashes. An empty cell leaves the
    option as the command line has it.

    Raises:
        PolyditError: the table cannot be read, a column is unknown, or a cell is wrong; the line is named.
    """
    first = task.input_flag.lstrip("-")
    known = {option.flag.lstrip("-"): option for option in task.predict_options}
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader_of_rows = csv.DictReader(stream, skipinitialspace=True)
            columns = [name.strip() for name in reader_of_rows.fieldnames or ()]
            reader_of_rows.fieldnames = columns
            for name in columns:
                if name != first and name not in known:
                    words = [first, *known]
                    raise PolyditError(
                        f"{file}: column {name!r} is unknown{nearest(name, words)}; columns are {', '.join(words)}"
                    )
            if first not in columns:
                raise PolyditError(f"{file}: has no column {first!r}; its first line must name the columns")
            rows = [(reader_of_rows.line_num, cells) for cells in reader_of_rows]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise PolyditError(f"{file}: cannot be read as a table ({reason}); give a CSV file") from error
    found = []
    for line, cells in rows:
        where = f"{file}: line {line}"
        if None in cells:
            raise PolyditError(f"{where} has more cells than there are columns; quote names with commas")
        values = {name: text.strip() for name, text in cells.items() if text and text.strip()}
        if not values:
            continue
        if first not in values:
            raise PolyditError(f"{where}: names no {first}")
        source = _beside(file, Path(values.pop(first)).expanduser())
        row = {known[name].dest: _value(known[name], text, file, where) for name, text in values.items()}
        found.append((source, row))
    if not found:
        raise PolyditError(f"{file}: has no rows below its first line")
    return found


def _value(option: Option, text: str, file: Path, where: str) -> Any:
    if option.type == "bool":
        truth = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if text.lower() not in truth:
            raise PolyditError(f"{where}: {option.flag} {text!r}: give true or false")
        return truth[text.lower()]
    try:
        value = reader(option)(text)
    except argparse.ArgumentTypeError as error:
        raise PolyditError(f"{where}: {option.flag}: {error}") from error
    return _beside(file, value) if isinstance(value, Path) else value


def _beside(table: Path, path: Path) -> Path:
    return path if path.is_absolute() else table.parent / path
