"""``polydit virtual-try-on draw``: drawn people and garments as files, in VITON-HD's layout."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...core.data.images import to_uint8
from ...core.errors import PolyditError
from ...core.media import OutputWriter
from .synthetic.scene import Scene, draw_scene
from .synthetic.sources import CorpusSources, ProceduralSources, pictures_for

__all__ = ["run", "scene_sheet", "write_scenes"]

FOLDERS = {"image": "{}.png", "cloth": "{}.png", "cloth-mask": "{}.png", "agnostic-mask": "{}_mask.png"}


def run(options: Namespace) -> int:
    """Draw scenes into a folder that `polydit.tasks.virtual_try_on.data.VitonHD` reads.

    Raises:
        PolyditError: no folder was named, there is no corpus, or a file exists.
    """
    if options.output is None:
        raise PolyditError("--output: required; name the folder to draw into")
    if options.sheet is not None and options.sheet.exists() and not options.overwrite:
        raise PolyditError(
            f"--sheet {options.sheet}: exists already; pass --overwrite or choose another name"
        )
    size = (options.height, options.width)
    pictures = pictures_for(None if options.corpus == Path("none") else options.corpus, options.split)
    settings: dict[str, Any] = {"split": options.split, "seed": options.seed}
    writer = OutputWriter(options.output, overwrite=options.overwrite)
    write_scenes(writer, options.count, size, pictures, first=options.first, **settings)
    if options.sheet is not None:
        sheet = scene_sheet(
            range(options.first, options.first + min(options.count, 8)), size, pictures, **settings
        )
        writer = OutputWriter(options.sheet.parent, overwrite=options.overwrite)
        print(f"wrote {writer.image(options.sheet.name, sheet)}", file=sys.stderr)  # noqa: T201
    print(f"{options.count} drawn, in {options.output}", file=sys.stderr)  # noqa: T201
    return 0


def write_scenes(
    writer: OutputWriter,
    count: int,
    size: tuple[int, int],
    pictures: CorpusSources | ProceduralSources,
    *,
    split: str = "test",
    seed: int = 0,
    first: int = 0,
) -> None:
    """Draw scenes as ``<split>/image``, ``cloth``, ``cloth-mask``, ``agnostic-mask``, and the list of pairs.

    A list that is there is continued: what it says of other people stays.

    Args:
        writer: into the root of the data set.
        count: scenes; person i is paired with garment i, and with i + 1 in the second column of the list.
        size: (height, width) in pixels.
        pictures: where fabrics, prints and backgrounds come from.
        split: of the draws; ``train`` goes to ``train``, the others to ``test``.
        seed: of all draws.
        first: number of the first scene.

    Raises:
        PolyditError: a file is there already; nothing was drawn then.
    """
    folder = "train" if split == "train" else "test"
    names = [f"{first + number:05d}_00" for number in range(count)]
    for name in names:
        for place, pattern in FOLDERS.items():
            if writer.exists(file := f"{folder}/{place}/{pattern.format(name)}"):
                raise PolyditError(
                    f"{writer.path(file)}: exists already; pass --overwrite, another --first or another --output"
                )
    listing = writer.path(f"{folder}_pairs.txt")
    listed = listing.read_text(encoding="utf-8").splitlines() if listing.is_file() else []
    for number, name in enumerate(names):
        scene = draw_scene(first + number, size, pictures, split=split, seed=seed, mask="body")
        parts = (scene.person, scene.garment, scene.garment_mask, scene.mask)
        for (place, pattern), values in zip(FOLDERS.items(), parts, strict=True):
            (writer.output_dir / folder / place).mkdir(parents=True, exist_ok=True)
            writer.image(f"{folder}/{place}/{pattern.format(name)}", to_uint8(values))
    lines = {f"{a}.png": f"{a}.png {b}.png" for a, b in zip(names, names[1:] + names[:1], strict=True)}
    others = [line for line in listed if line.split() and line.split()[0] not in lines]
    writer.text(listing.name, "\n".join([*others, *lines.values()]) + "\n", overwrite=True)


def scene_sheet(
    numbers: range,
    size: tuple[int, int],
    pictures: CorpusSources | ProceduralSources,
    *,
    split: str = "test",
    seed: int = 0,
) -> Any:
    """A picture of scenes, one in a column: garment, person, what a network is shown, and another person in it.

    Args:
        numbers: of the scenes.
        size: (height, width) of each picture.
        pictures: see `write_scenes`.
        split: likewise.
        seed: likewise.
    """
    columns = []
    for number in numbers:
        options: dict[str, Any] = {"split": split, "seed": seed, "mask": "body"}
        scene = draw_scene(number, size, pictures, **options)
        other = draw_scene(number + 1, size, pictures, garment=number, **options)
        rows = [scene.garment, scene.person, masked(scene), other.person]
        columns.append(
            np.concatenate([np.pad(row, ((0, 6), (0, 6), (0, 0)), constant_values=1) for row in rows])
        )
    return Image.fromarray(to_uint8(np.concatenate(columns, axis=1)[:-6, :-6]))


def masked(scene: Scene) -> NDArray[np.float32]:
    """The person with grey under the mask."""
    return scene.person + (0.5 - scene.person) * scene.mask[..., None]
