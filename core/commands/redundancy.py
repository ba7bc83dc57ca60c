"""``polydit <task> redundancy``: what a network computes anew in a step, and a plan that leaves the rest out."""

from __future__ import annotations

import tempfile
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import PolyditError
from ..jobs import Job, find_jobs
from ..open_pipeline import choose_weights, open_pipeline
from ..predict import predict_parser, run_one
from ..task import Option, TaskSpec
from .parser import Parser, add_options

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from PIL import Image

    from ..acceleration.redundancy import Redundancy

__all__ = ["open_uncached", "redundancy_parser", "run_redundancy"]

NAMES = {"attn": "attention", "mlp": "MLP", "k": "keys", "v": "values", "block": "block outputs"}


def redundancy_parser(task: TaskSpec) -> Parser:
    """The options of ``predict``, and the part of the plan that may be computed."""
    parser = predict_parser(
        task,
        "redundancy",
        "Sample once for each input, and write to DIR how much the features change from step to step "
        "(redundancy.json, redundancy.png) and a plan for `predict --cache DIR/plan.json`.",
    )
    share = Option("--share", "float", 0.5, "part of the attention and MLP outputs that the plan computes")
    add_options(parser, [share])
    return parser


def run_redundancy(task: TaskSpec, words: Sequence[str]) -> int:
    """Measure, write, and say what was found."""
    options = redundancy_parser(task).parse_args(words)
    pipe, jobs = open_uncached(task, options)

    from ..acceleration.redundancy import study
    from ..media import OutputWriter

    with tempfile.TemporaryDirectory() as folder:
        results = OutputWriter(Path(folder), overwrite=True)
        runs = [partial(run_one, task, pipe, job.source, results, job.options) for job in jobs]
        found = study(pipe, runs)
    plan = found.plan(options.share)
    writer = OutputWriter(options.output, overwrite=options.overwrite)
    files = [
        writer.text("redundancy.json", found.to_json()),
        writer.image("redundancy.png", draw(found, task.name)),
        writer.text("plan.json", plan.to_json()),
    ]
    print(f"{found.runs} runs of {found.steps} steps; mean relative change from step to step:")
    for kind in found.curves:
        values = found.mean(kind)
        print(f"  {NAMES[kind]:<14} {sum(values) / len(values):.4f} ({min(values):.4f} to {max(values):.4f})")
    print(f"plan that computes {1 - plan.reused:.0%}:\n{plan}")
    print(f"written: {', '.join(str(path) for path in files)}")
    return 0


def open_uncached(task: TaskSpec, options: Namespace) -> tuple[DiffusionPipeline, list[Job]]:
    """The pipeline without a cache, and what it shall be run on, for commands that look at runs.

    Args:
        task: whose pipeline.
        options: of ``predict``.

    Raises:
        PolyditError: a cache was asked for; or as ``predict`` complains.
    """
    if options.cache != "none":
        raise PolyditError(f"--cache {options.cache}: the network is looked at without one; leave it out")
    jobs = find_jobs(task, options).jobs
    weights = choose_weights(task, options.weights, getattr(options, "system", None))
    for job in jobs:
        job.options.progress = lambda done, total: None  # tasks with something to count call it
    return open_pipeline(task, weights, options, {}, print), jobs


def draw(found: Redundancy, title: str) -> Image.Image:
    """The curves of the kinds, each the mean over its sites."""
    from ..media.chart import line_chart

    series = {NAMES[kind]: list(enumerate(found.mean(kind), start=1)) for kind in found.curves}
    return line_chart(series, f"{title}: change from step to step", "step", "relative change")
