"""``polydit <task> learn-cache``: a cache that learns on the sampling runs of a task's own weights."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import PolyditError
from ..predict import predict_parser, run_one
from ..task import Option, TaskSpec
from .parser import Parser, add_options
from .redundancy import open_uncached

if TYPE_CHECKING:
    from ..acceleration.policy import Policy

__all__ = ["learn_cache_parser", "run_learn_cache"]

METHODS = ("harmonica", "inner-loop", "mag-cache")
OPTIONS = (
    Option(
        "--method",
        "str",
        "harmonica",
        "harmonica: a router, which says in each step what to compute; inner-loop: a block that corrects the middle of "
        "the network where its front is left out; mag-cache: ratios that are only measured",
        METHODS,
    ),
    Option("--passes", "int", 100, "runs to learn from; the inputs take turns", minimum=1),
    Option("--share", "float", 0.5, "harmonica: part of the attention and MLP outputs that is computed"),
)


def learn_cache_parser(task: TaskSpec) -> Parser:
    """The options of ``predict``, and how to learn."""
    parser = predict_parser(
        task,
        "learn-cache",
        "Sample again and again for the inputs while a cache learns, and write it to DIR for `predict --cache FILE` "
        "with as many steps. The weights stay as they are.",
    )
    add_options(parser.add_argument_group("learn-cache"), OPTIONS)
    return parser


def run_learn_cache(task: TaskSpec, words: Sequence[str]) -> int:
    """Learn, write, and say how near the result is to the network without a cache."""
    options = learn_cache_parser(task).parse_args(words)
    pipe, jobs = open_uncached(task, options)

    from ..acceleration.learning import count_steps
    from ..media import OutputWriter

    writer = OutputWriter(options.output, overwrite=options.overwrite)
    name = "mag_cache.json" if options.method == "mag-cache" else f"{options.method}.safetensors"
    with tempfile.TemporaryDirectory() as folder, writer.open(name) as file:

        def run(number: int) -> object:
            job = jobs[number % len(jobs)]
            chosen = argparse.Namespace(**{**vars(job.options), "seed": options.seed + number})
            return run_one(task, pipe, job.source, OutputWriter(Path(folder), overwrite=True), chosen)

        try:
            steps = count_steps(pipe, lambda: run(0))
            learned, peers = learn(pipe, run, options, Path(folder) / name)
        except PolyditError as error:
            raise PolyditError(f"learn-cache: {error}") from error
        lines = [compare(pipe, lambda: run(options.passes), policy) for policy in (learned, *peers)]
        file.write((Path(folder) / name).read_bytes())
    print(f"{steps} steps; relative error of the last state and answer against the network without a cache:")
    for line in lines:
        print(f"  {line}")
    print(f"use it: polydit {task.name} predict --cache {options.output / name} --steps {steps} ...")
    return 0


def learn(
    pipe: Any, run: Callable[[int], object], options: argparse.Namespace, file: Path
) -> tuple[Policy, list[Policy]]:
    """Learn what ``--method`` says and write it.

    Returns:
        The cache, and fixed ones to compare it with.
    """
    from .. import acceleration as a

    if options.method == "mag-cache":
        ratios = a.magnitude_ratios(pipe, lambda: run(0))
        file.write_text(json.dumps({"method": "mag-cache", "ratios": [round(r, 6) for r in ratios]}))
        return a.MagCache(ratios), [a.BlockSpan(0, None, 2, order=0)]
    with progress(options.passes) as told:
        if options.method == "harmonica":
            router = a.learn_router(pipe, run, options.passes, options.share, seed=options.seed, told=told)
            router.save(file)
            return a.Routed(router), [a.FORA(interval) for interval in (2, 3)]
        feedback = a.learn_feedback(pipe, run, options.passes, seed=options.seed, told=told)
    feedback.save(file)
    return a.InnerLoop(feedback), [a.BlockSpan(0, feedback.start, 2, order=0, residual=False)]


def compare(pipe: Any, run: Callable[[], object], policy: Policy) -> str:
    """How far a run with the cache ends from one without, and what it computed."""
    from ..acceleration.handle import accelerate
    from ..acceleration.learning import last_call

    plain = last_call(pipe, run)
    with accelerate(pipe, policy) as handle:
        cached = last_call(pipe, run)
        report = handle.report()
    far = sum(float((x - y).square().sum()) for x, y in zip(cached, plain, strict=True))
    error = (far / sum(float(y.square().sum()) for y in plain)) ** 0.5
    return f"{error:.4f}  {report.computed} of {report.asked} sites computed  {policy}"


@contextmanager
def progress(total: int) -> Iterator[Callable[[int, float], None]]:
    """A bar on standard error, where that is a terminal, and otherwise a line now and then."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bars:
        bar = bars.add_task("passes", total=total)

        def told(done: int, error: float) -> None:
            bars.update(bar, completed=done, description=f"mean square error {error:.3g}")
            if not console.is_terminal and (done % max(1, total // 10) == 0 or done == total):
                console.print(f"pass {done} of {total}: mean square error {error:.3g}")

        yield told
