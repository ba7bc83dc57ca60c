"""``polydit segmentation evaluate``: the test protocol from the command line."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ...core.devices import check_device_name
from ...core.errors import PolyditError
from ...core.media import OutputWriter
from ...core.open_pipeline import choose_weights, open_pipeline
from . import EVALUATE_OPTIONS, TASK
from .few_shot.pipeline import FewShotPipeline
from .folders import MaskFolder
from .metrics import Example, Segmenter, composites, evaluate, of_folder
from .peers import PEERS
from .predict import check_options, segmenter

__all__ = ["check_output", "run"]

OF_COMPOSITES = ("--corpus", "--split", "--size", "--small")
"""Options that say what composites are made of."""


def run(options: Namespace) -> int:
    """Print the table of an evaluation, and write it as JSON where asked to.

    A picture that cannot be read or segmented is named and left out.

    Returns:
        0, or 2 if pictures were left out.

    Raises:
        PolyditError: no pictures, no weights, an output that exists, or something that does not fit.
    """
    output: Path | None = options.output
    check_output(output, options.overwrite)
    check_device_name(options.device)
    if options.binarize is not None and not 0 <= options.binarize <= 1:
        raise PolyditError(f"--binarize {options.binarize:g}: must lie between 0 and 1")
    left_out: list[str] = []

    def leave_out(line: str) -> None:
        left_out.append(line)
        say(f"polydit: {line}")

    examples, count, about = find_examples(options, leave_out)
    settings = {key: value for key, value in vars(options).items() if key not in ("debug", "overwrite")}
    settings["weights"] = choose_weights(TASK, options.weights)
    options.cache = "none"
    pipe = open_pipeline(TASK, settings["weights"], options, settings, say)
    segment = segmenter(pipe)
    given = Namespace(**{**vars(options), "steps": None, "box": None, "progress": None, "threshold": None})
    if isinstance(pipe, FewShotPipeline):
        raise PolyditError(
            f"--weights {settings['weights']}: need supports; use `polydit segmentation evaluate-few-shot`"
        )
    check_options(pipe, given)

    def ours(picture: NDArray[np.uint8], source: Path) -> NDArray[np.float32]:
        generator = torch.Generator().manual_seed(options.seed)
        return segment(pipe, picture, source, given, generator).alpha

    peers = {name: _peer(function) for name, function in PEERS.items()} if options.peers else {}
    segmenters = {Path(str(settings["weights"])).name: ours, **peers}
    with progress_bar(count) as progress:
        result = evaluate(
            segmenters, examples, about, options.binarize, options.hce, progress, count, leave_out
        )
    if left_out and not result.count:
        raise PolyditError(f"{about}: none of {count} pictures could be evaluated; {left_out[0]}")
    table = result.table()
    print(f"{table.title}\n\n{table.markdown()}")  # noqa: T201 - what was asked for
    if output is not None:
        writer = OutputWriter(output.parent, overwrite=options.overwrite)
        say(f"wrote {writer.json(output.name, {'settings': settings, **result.record()})}")
    if left_out:
        say(f"polydit: {len(left_out)} of {count} pictures are not in the table")
    return 2 if left_out else 0


def check_output(output: Path | None, overwrite: bool) -> None:
    """Whether the figures can be written, before they are computed.

    Raises:
        PolyditError: the file exists, or is a folder.
    """
    if output is not None and output.is_dir():
        raise PolyditError(f"--output {output}: is a folder; give the name of a JSON file")
    if output is not None and output.exists() and not overwrite:
        raise PolyditError(f"--output {output}: exists already; pass --overwrite or choose another name")


def find_examples(options: Namespace, leave_out: Callable[[str], None]) -> tuple[Iterable[Example], int, str]:
    """The examples that the options ask for, their number, and what they are.

    ``leave_out`` is told of files that cannot be read.
    """
    if options.composites is not None:
        if options.input is not None or options.masks is not None:
            raise PolyditError("--composites: takes the pictures of --corpus; leave --input and --masks out")
        sizes = "of any size" if options.small else "as the subject"
        about = (
            f"composites of {options.size} pixels, {options.split} cut-outs {sizes} over {options.split} "
            f"photographs, seed {options.seed}"
        )
        return (
            composites(
                options.corpus,
                options.composites,
                options.size,
                options.split,
                options.seed,
                options.small,
            ),
            options.composites,
            about,
        )
    if options.input is None or options.masks is None:
        raise PolyditError(
            "--input: give a folder of pictures and --masks with one of their masks, or --composites N"
        )
    for option in EVALUATE_OPTIONS:
        if option.flag in OF_COMPOSITES and str(getattr(options, option.dest)) != str(option.default):
            raise PolyditError(
                f"{option.flag}: is for --composites, and --input has its own pictures; leave it out"
            )
    folder = MaskFolder(options.input, options.masks)
    if folder.unmatched:
        say(f"{len(folder.unmatched)} files without a partner are left out, {folder.unmatched[0]} first")
    return of_folder(folder, leave_out), len(folder), str(options.input)


def _peer(function: Callable[[NDArray[np.uint8]], NDArray[np.float32]]) -> Segmenter:
    return lambda picture, _source: function(picture)


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
