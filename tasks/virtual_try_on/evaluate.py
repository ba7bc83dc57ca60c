"""``polydit virtual-try-on evaluate``: the test protocol from the command line."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from ...core.devices import check_device_name
from ...core.errors import PolyditError
from ...core.media import OutputWriter, to_uint8
from ...core.open_pipeline import choose_weights, open_pipeline
from . import TASK
from .data import DrawnPairs, DressCode, PhotographedPairs, SyntheticTryOn, VitonHD
from .metrics import Dress, Sample, distribution_distances, evaluate, pasted
from .pipeline import VirtualTryOnPipeline

__all__ = ["run"]

BATCH = 16


def run(options: Namespace) -> int:
    """Print the table of an evaluation; write it as JSON, and a sheet of pictures, where asked to.

    Raises:
        PolyditError: no data, no weights, an output that exists, or something that does not fit.
    """
    check_device_name(options.device)
    for flag, output in (("--output", options.output), ("--sheet", options.sheet)):
        if output is not None and output.exists() and not options.overwrite:
            raise PolyditError(f"{flag} {output}: exists already; pass --overwrite or choose another name")
    settings = {key: value for key, value in vars(options).items() if key not in ("debug", "overwrite")}
    settings["weights"] = choose_weights(TASK, options.weights, options.system)
    lpips, features = learned_metrics(options)
    options.cache = "none"  # a figure should be the network's own
    pipe = open_pipeline(TASK, settings["weights"], options, settings, say)
    pipe.set_progress_bar_config(disable=True)
    size = (pipe.formulation.height, pipe.formulation.width)
    pairs = held_out(options, size, paired=True)
    methods = compared(pipe, options, drawn=options.data == "drawn")
    sheet = Sheet(options.examples if options.sheet is not None else 0)
    with progress_bar(len(pairs)) as progress:  # type: ignore[arg-type]
        result = evaluate(
            methods,
            DataLoader(pairs, batch_size=BATCH),
            seed=options.seed,
            lpips=lpips,
            progress=progress,
            look=sheet.look,
        )
    if features is not None:
        unpaired = held_out(options, size, paired=False)
        result.distances = distribution_distances(
            {name: methods[name] for name in methods if name != "pasted by the worn box"},
            DataLoader(unpaired, batch_size=BATCH),
            features,
            2048,
            seed=options.seed,
            count=len(unpaired),  # type: ignore[arg-type]
        )
    table = result.table()
    print(f"{describe(options, pipe, result.count)}\n\n{table.markdown()}")  # noqa: T201 - what was asked for
    name = next(iter(methods))
    for other in methods:
        if other != name:
            gain = (result.mean(name, "psnr_mask") or 0) - (result.mean(other, "psnr_mask") or 0)
            print(f"{name} over {other}, PSNR in mask: {gain:+.2f} dB")  # noqa: T201
    for output, write in (
        (options.output, lambda writer, name: writer.json(name, {"settings": settings, **result.record()})),
        (options.sheet, lambda writer, name: writer.image(name, sheet.picture())),
    ):
        if output is not None:
            writer = OutputWriter(output.parent, overwrite=options.overwrite)
            say(f"wrote {write(writer, output.name)}")
    return 0


def held_out(options: Namespace, size: tuple[int, int], paired: bool) -> Dataset[dict[str, Tensor]]:
    """The samples of an evaluation."""
    if options.data == "drawn":
        if options.path is not None:
            raise PolyditError(
                f"--path {options.path}: drawn pairs have no folder; say --data viton-hd or dresscode"
            )
        data = SyntheticTryOn(None if options.corpus == Path("none") else str(options.corpus), *size)
        return DrawnPairs(
            size,
            data.pictures(options.split),
            split=options.split,
            distinct=options.count,
            mask="body",
            shift=0 if paired else 1,
            seed=options.seed,
        )
    if options.path is None:
        raise PolyditError(f"--path: required; give the folder of {options.data}")
    for flag, value, default in (
        ("--split", options.split, "test"),
        ("--corpus", str(options.corpus), "data/corpus"),
    ):
        if value != default:
            raise PolyditError(
                f"{flag} {value}: is of drawn pairs; leave it out, or leave out --data {options.data}"
            )
    kind: Any = {"viton-hd": VitonHD, "dresscode": DressCode}[options.data]
    found = PhotographedPairs(
        kind(str(options.path), height=size[0], width=size[1]).complete_pairs("test", paired), size
    )
    return Subset(found, range(min(options.count, len(found))))


def compared(pipe: VirtualTryOnPipeline, options: Namespace, drawn: bool) -> dict[str, Dress]:
    """The model and the baselines it is compared with."""

    def with_steps(steps: int | None, garment: bool = True, source: VirtualTryOnPipeline = pipe) -> Dress:
        def dress(sample: Sample, generator: torch.Generator) -> Tensor:
            return source.generate(
                sample["person"],
                sample["garment"] if garment else None,
                sample["mask"],
                steps,
                generator,
                options.guidance_scale if garment else 1.0,
            )

        return dress

    methods = {"model": with_steps(options.steps)}
    if options.against_steps is not None:
        methods[f"model, {options.against_steps} steps"] = with_steps(options.against_steps)
    if options.against is not None:
        other = open_pipeline(TASK, options.against, Namespace(**{**vars(options), "lora": None}), {}, say)
        other.set_progress_bar_config(disable=True)
        methods[f"{options.against.name}"] = with_steps(options.against_steps or options.steps, source=other)
    methods["without garment"] = with_steps(options.steps, garment=False)
    methods["pasted by the mask's box"] = lambda sample, _: pasted(sample)
    if drawn:
        methods["pasted by the worn box"] = lambda sample, _: pasted(sample, "worn_mask")
    return methods


def learned_metrics(options: Namespace) -> tuple[Callable[..., Tensor] | None, Callable[..., Tensor] | None]:
    """LPIPS and Inception's features where their weights were given; complains before anything is computed."""
    from ...core.metrics import LPIPS, InceptionFeatures

    lpips = features = None
    if options.lpips_backbone is not None or options.lpips_heads is not None:
        lpips = LPIPS(options.lpips_backbone, options.lpips_heads, options.lpips_network)
    if options.inception is not None:
        features = InceptionFeatures(options.inception).eval()
    return lpips, features


class Sheet:
    """Collects the first samples of an evaluation as rows of pictures.

    Args:
        count: how many.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.rows: list[list[tuple[str, Tensor]]] = []

    def look(self, number: int, sample: Sample, made: dict[str, Tensor]) -> None:
        """Take what is still wanted of a batch."""
        for i in range(min(len(sample["person"]), self.count - len(self.rows))):
            shown = {"garment": sample["garment"], "masked": sample["masked_person"], **made}
            row = [(name, pictures[i]) for name, pictures in shown.items()]
            self.rows.append([*row, ("photograph", sample["person"][i])])

    def picture(self, scale: int = 2) -> Any:
        """The rows below one another, labelled, enlarged without smoothing."""
        from PIL import Image, ImageDraw, ImageFont

        font = ImageFont.load_default(13)
        height, width = (side * scale for side in self.rows[0][0][1].shape[-2:])
        gap, head = 6, 34
        wide = len(self.rows[0]) * (width + gap) + gap
        result = Image.new("RGB", (wide, head + len(self.rows) * (height + gap)), (250, 250, 250))
        draw = ImageDraw.Draw(result)
        for column, (label, _) in enumerate(self.rows[0]):
            draw.multiline_text(
                (gap + column * (width + gap), 2), _wrapped(label, width // 7), fill=(30, 30, 30), font=font
            )
        for number, row in enumerate(self.rows):
            for column, (_, pixels) in enumerate(row):
                picture = Image.fromarray(to_uint8(pixels)).resize((width, height), Image.Resampling.NEAREST)
                result.paste(picture, (gap + column * (width + gap), head + number * (height + gap)))
        return result


def _wrapped(text: str, width: int) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, max(6, width))[:2])


def describe(options: Namespace, pipe: VirtualTryOnPipeline, count: int) -> str:
    """What was measured, in one line."""
    what = f"drawn pairs, split {options.split}" if options.data == "drawn" else options.data
    steps = options.steps or pipe.config.steps
    size = f"{pipe.formulation.width}x{pipe.formulation.height}"
    return f"{count} {what}, {size} pixels, {steps} steps, repainted outside of the mask"


@contextmanager
def progress_bar(total: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, where that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        bar = progress.add_task("pairs", total=total)
        yield lambda done: progress.update(bar, completed=done)


def say(line: str) -> None:
    """One line to the user."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201
