"""``polydit <task> predict``: the loop over inputs that every task shares.

The task gives ``predict_one(pipe, source, writer, options, generator) -> dict``, which handles one file and returns
what it has to say for ``results.json``. Inputs, weights, devices, seeds, progress, what is kept, and failures are
handled here.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .commands.failures import explain, is_disk_full
from .commands.parser import Parser, add_options
from .devices import check_device_name
from .errors import PolyditError
from .inputs import count_suffixes
from .jobs import Job, Jobs, find_jobs, subject_dest
from .open_pipeline import CACHES, check_cache_name, choose_weights, open_pipeline
from .results import RESULTS, changed_settings, earlier_record, earlier_records, existing_results, report
from .task import Option, TaskSpec, resolve

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from .media import OutputWriter

__all__ = ["predict", "predict_parser", "run", "run_one"]

DTYPES = ("auto", "float32", "bfloat16", "float16")

OPTIONS = (
    Option(
        "--weights",
        "path",
        None,
        "folder or hub id of a saved pipeline; default: the small weights of the task",
    ),
    Option("--lora", "path", None, "LoRA file to add to the weights", metavar="FILE"),
    Option("--lora-scale", "float", 1.0, "its strength; 0 is off"),
    Option("--steps", "int", None, "denoising steps; default: what the weights were trained for", minimum=1),
    Option("--seed", "int", 0, "start of the noise; the same number gives the same result", minimum=0),
    Option("--device", "str", "auto", "auto, cpu, cuda, cuda:1 or mps", metavar="DEVICE"),
    Option("--dtype", "str", "auto", "precision of the network", choices=DTYPES),
    Option(
        "--cache",
        "str",
        "none",
        f"reuse between steps: {', '.join(CACHES)}, with settings as in taylorseer:interval=2; or a file that "
        "`redundancy` or `learn-cache` wrote",
        metavar="NAME",
    ),
    Option("--overwrite", "bool", False, "replace results that are there already"),
)


def predict_parser(task: TaskSpec, command: str = "predict", summary: str | None = None) -> Parser:
    """The options of ``polydit <task> predict``, or of another command that runs it."""
    kinds = " or ".join(kind for kind in task.input_kinds if not kind.startswith(".")) or "file"
    parser = Parser(
        f"polydit {task.name} {command}",
        summary
        or f"{task.summary} One result per {kinds}, and results.json with settings, seed and timings.",
    )
    parser.add_argument(
        *dict.fromkeys(("--input", task.input_flag)),
        required=task.table is None and task.subject is None,
        dest="input",
        nargs="+",
        metavar="PATH",
        help="file, folder, or pattern such as 'photos/*.jpg'",
    )
    if task.table is not None:
        columns = f"{task.input_flag.lstrip('-')} and the options of {task.name} below, without dashes"
        text = f"instead: CSV file with a row for each result and the columns {columns}"
        add_options(parser, [Option(task.table, "path", None, text, metavar="FILE")])
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder for the results")
    add_options(parser, OPTIONS)
    if systems := [entry for entry in task.systems if entry.weights]:
        names = tuple(entry.name for entry in systems)
        add_options(
            parser,
            [Option("--system", "str", None, "whose weights, of those that came with the task", names)],
        )
    if task.predict_options:
        add_options(parser.add_argument_group(task.name), task.predict_options)
    return parser


def run(task: TaskSpec, words: Sequence[str]) -> int:
    """Parse and predict; the exit code."""
    options = predict_parser(task).parse_args(words)
    if sum(word.partition("=")[0] == "--cache" for word in words) > 1:
        raise PolyditError("--cache: given twice, and a network takes one cache; leave the others out")
    check_device_name(options.device)
    check_cache_name(options.cache)
    return predict(task, options)


def predict(task: TaskSpec, options: argparse.Namespace, note: Callable[[str], None] | None = None) -> int:
    """Run `task` on every input; what ``polydit <task> predict`` does after parsing.

    Args:
        task: whose ``predict`` is called.
        options: as `predict_parser` gives them.
        note: where lines for the user go; standard error when ``None``.

    Returns:
        0, or 2 if some of several inputs failed.

    Raises:
        PolyditError: nothing could be done, or the only input failed.
    """
    say = note or _say
    found = find_jobs(task, options)
    from_nothing = task.subject is not None and getattr(options, subject_dest(task)) is not None
    for job in [] if from_nothing else found.jobs:
        if job.source.resolve().parent == options.output.expanduser().resolve():
            raise PolyditError(
                f"--output {options.output}: is the folder of {job.source.name}; choose another folder"
            )
    weights = choose_weights(task, options.weights, getattr(options, "system", None))
    kept = {}
    if not options.overwrite:
        kept = {job: existing_results(task, job.source, job.options) for job in found.jobs}
    todo = [job for job in found.jobs if not kept.get(job)]

    from .media import OutputWriter

    writer = OutputWriter(options.output, overwrite=options.overwrite)
    earlier = earlier_records(writer.path(RESULTS))
    records: dict[Job, dict[str, Any]] = {
        job: {**earlier_record(earlier, job.source, files), "status": "kept"}
        for job, files in kept.items()
        if files
    }
    if any(kept.values()) and (changed := changed_settings(writer.path(RESULTS), options, weights)):
        say(
            f"polydit: results that are there already were made with other settings: {', '.join(changed)}; "
            "--overwrite makes them anew, or choose another --output"
        )
    settings: dict[str, Any] = {"weights": str(weights)}
    begin = time.perf_counter()
    try:
        if todo:
            pipe = open_pipeline(task, weights, options, settings, say)
            settings["load_seconds"] = round(time.perf_counter() - begin, 3)
            _run_all(task, pipe, todo, found, writer, options.debug, records, say)
    except KeyboardInterrupt:
        settings["interrupted"] = True
        raise
    finally:
        if any(job in records for job in todo):
            settings["seconds"] = round(time.perf_counter() - begin, 3)
            content = report(task, options, settings, [records[job] for job in found.jobs if job in records])
            if not is_disk_full(sys.exception()):
                writer.json(RESULTS, content, overwrite=True)
    return _summary(records, found, options, say)


def run_one(
    task: TaskSpec, pipe: DiffusionPipeline, source: Path, writer: OutputWriter, options: argparse.Namespace
) -> dict[str, Any]:
    """Run `task` on one input with a pipeline that is open.

    Args:
        task: whose ``predict`` is called.
        pipe: as `open_pipeline` gives it.
        source: the input.
        writer: where the results go.
        options: as `predict_parser` gives them; ``progress``, where set, is called with (parts done, parts in all).

    Returns:
        What the task says of it, JSON-ready; ``files`` are the names of the results.
    """
    import torch

    # Seeded for each input: a seed means the same for a file whatever else is in the folder.
    generator = torch.Generator().manual_seed(options.seed)
    if options.cache == "none":
        record: dict[str, Any] = resolve(task.predict)(pipe, source, writer, options, generator)
        return record
    from .acceleration.handle import handle_of

    handle = handle_of(pipe)
    assert handle is not None
    try:
        record = resolve(task.predict)(pipe, source, writer, options, generator)
        return {**record, "cache": handle.report().summary()}
    except PolyditError as error:
        if handle.explains(error):
            raise PolyditError(f"--cache {options.cache}: {error}, or leave the option out") from error
        raise


def _run_all(
    task: TaskSpec,
    pipe: DiffusionPipeline,
    todo: list[Job],
    found: Jobs,
    writer: OutputWriter,
    debug: bool,
    records: dict[Job, dict[str, Any]],
    say: Callable[[str], None],
) -> None:
    with _progress(len(todo)) as step:
        for number, job in enumerate(todo):
            source = job.source
            step(number, 0, 1, source.name)

            def within(done: int, total: int, number: int = number, name: str = source.name) -> None:
                step(number, done, total, name)

            job.options.progress = within  # a task that has something to count calls it
            begin = time.perf_counter()
            record: dict[str, Any] = {"input": str(source)}
            if job.row:
                record["row"] = {
                    name: str(value) if isinstance(value, Path) else value for name, value in job.row.items()
                }
            try:
                if job.clash is not None:
                    raise PolyditError(
                        f"{source}: its results would have the names of those of {job.clash}; "
                        "run it into another --output"
                    )
                with writer.together():
                    made = run_one(task, pipe, source, writer, job.options)
                record |= {"status": "done", **made, "seconds": round(time.perf_counter() - begin, 3)}
            except Exception as error:
                line = explain(error)
                # Alone, with a wrong option, or without room, going on makes no sense; a defect should show. What a
                # row of a table says is of that row only.
                wrong_option = line is not None and line.startswith("--") and not job.row
                if len(found.jobs) == 1 or debug or line is None or wrong_option:
                    raise
                if is_disk_full(error):
                    raise
                record |= {"status": "failed", "error": line}
                say(f"polydit: {line}")
            records[job] = record
            step(number + 1, 0, 1, source.name)


def _summary(
    records: dict[Job, dict[str, Any]],
    found: Jobs,
    options: argparse.Namespace,
    say: Callable[[str], None],
) -> int:
    count = Counter(record["status"] for record in records.values())
    parts = [f"{count['done']} done, in {options.output}"] if count["done"] else []
    if count["kept"]:
        parts.append(f"{count['kept']} kept as they were (--overwrite replaces them)")
    if found.skipped:
        parts.append(
            f"{sum(found.skipped.values())} files of other kinds skipped ({count_suffixes(found.skipped)})"
        )
    caches = [record["cache"] for record in records.values() if "cache" in record]
    if caches and all(cache["computed"] == cache["of"] for cache in caches):
        # Thresholds and few steps may leave a cache without anything to do, which only its name would hide.
        parts.append(f"--cache {options.cache} left nothing out; its settings or more --steps would")
    if count["failed"]:
        parts.append(f"{count['failed']} of {len(found.jobs)} failed (see {options.output / RESULTS})")
    say("polydit: " + "; ".join(parts))
    return 2 if count["failed"] else 0


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int, int, int, str], None]]:
    """A bar on standard error, where that is a terminal: inputs done, and the part of the present one."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        bar = progress.add_task("", total=total)

        def step(number: int, done: int, parts: int, name: str) -> None:
            where = f"{min(number + 1, total)}/{total} {name}"
            progress.update(bar, completed=number + done / max(parts, 1), description=where)

        yield step


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201 - what the user reads
