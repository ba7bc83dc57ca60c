"""``polydit super-resolution evaluate``: the test protocol from the command line."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ...core.data.images import image_size, list_images
from ...core.data.pairs import Pair, match
from ...core.devices import check_device_name
from ...core.errors import PolyditError
from ...core.media import OutputWriter
from ...core.open_pipeline import choose_weights, open_pipeline
from . import TASK
from .metrics import evaluate

__all__ = ["run"]


def run(options: Namespace) -> int:
    """Print the table of an evaluation, and write it as JSON where asked to.

    Raises:
        PolyditError: no pictures, no weights, an output that exists, or something that does not fit.
    """
    if options.input is None:
        raise PolyditError("--input: required; give a folder of high-resolution pictures")
    output: Path | None = options.output
    if output is not None and output.exists() and not options.overwrite:
        raise PolyditError(f"--output {output}: exists already; pass --overwrite or choose another name")
    check_device_name(options.device)
    files = list_images(options.input)
    for path in files:
        image_size(path)  # complains before anything is computed
    pictures: Sequence[Path] | Sequence[Pair] = files
    if options.low is not None:
        pictures = match(files, list_images(options.low))
    settings = {key: value for key, value in vars(options).items() if key not in ("debug", "overwrite")}
    settings["weights"] = choose_weights(TASK, options.weights)
    options.cache = "none"  # one step has nothing to reuse, and a figure should be the network's own
    pipe = open_pipeline(TASK, settings["weights"], options, settings, say)
    with progress_bar(len(pictures)) as progress:
        result = evaluate(
            pipe,
            pictures,
            degradation=options.degradation,
            scale=options.scale,
            limit_side=options.limit_side,
            num_inference_steps=options.steps,
            seed=options.seed,
            progress=progress,
            tile=options.tile,
            overlap=options.overlap,
            color_fix=options.color_fix,
            guidance_scale=options.guidance_scale,
        )
    table = result.table()
    print(f"{table.title}\n\n{table.markdown()}")  # noqa: T201 - what was asked for
    print(f"mean gain over bicubic: {result.mean('gain'):+.2f} dB")  # noqa: T201
    if output is not None:
        writer = OutputWriter(output.parent, overwrite=options.overwrite)
        say(f"wrote {writer.json(output.name, {'settings': settings, **result.record()})}")
    return 0


@contextmanager
def progress_bar(total: int) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, where that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        bar = progress.add_task("pictures", total=total)
        yield lambda done, _: progress.update(bar, completed=done)


def say(line: str) -> None:
    """One line to the user."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201
