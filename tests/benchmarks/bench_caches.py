"""What ``--cache`` saves and costs with the weights that come with the tasks: every method, against no cache.

    python tests/benchmarks/bench_caches.py [--quick] [--only TASK ...] [--steps 8 20] [--caches NAME ...]
        [--rounds 1] [--output FILE]

``predict`` runs on the package's own samples, once without a cache and once with each. ``gain`` is the processor
seconds without a cache over those with it, reading and writing included; ``PSNR`` that of the pictures written (all
PNGs; of shapes the sheet of views) against those written without it, the worst of the inputs. Networks that answer in
one step have nothing to cache and are left out.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from polydit.core.errors import PolyditError
from polydit.core.media import OutputWriter
from polydit.core.media.table import ResultsTable
from polydit.core.open_pipeline import CACHES
from polydit.core.task import find_task
from polydit.demos.session import PredictSession, Result

SAMPLES = Path(__file__).resolve().parents[2] / "demos" / "samples"
Job = tuple[Path | None, dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """Weights of a task, what they are run on, and in how many steps."""

    task: str
    jobs: Callable[[Path], Iterator[Job]]
    steps: tuple[int, ...]
    settings: dict[str, Any] = field(default_factory=dict)


def photographs(folder: Path) -> Iterator[Job]:
    """The samples, 192 pixels wide."""
    for file in sorted(SAMPLES.glob("*.png")):
        picture = Image.open(file).convert("RGB")
        picture.thumbnail((192, 192))
        yield folder / OutputWriter(folder, overwrite=True).image(file.name, picture).name, {}


def balls(folder: Path) -> Iterator[Job]:
    """A ball with its shadow on each, and its mask."""
    from polydit.demos.layer_decomposition import sample_scenes
    from polydit.demos.painting import painted

    files = sample_scenes(folder)
    for scene, layer in zip(files[::2], files[1::2], strict=True):
        mask = OutputWriter(folder, overwrite=True).image(
            f"{scene.stem}_mask.png", painted([layer], Image.open(scene).size)
        )
        yield scene, {"mask": mask}


def people(folder: Path) -> Iterator[Job]:
    """The page's people, each with a garment."""
    root = SAMPLES / "virtual_try_on"
    garments = sorted((root / "garments").glob("*.png"))
    for number, person in enumerate(sorted((root / "people").glob("*.png"))):
        worn = garments[number % len(garments)]
        yield person, {"garment": worn, "mask": root / "masks" / person.name}


def categories(folder: Path) -> Iterator[Job]:
    """Two shapes of each of the page's categories."""
    from polydit.demos.shape_3d import page_categories

    for category in page_categories(None):
        yield None, {"category": category, "num": 2}


CASES = (
    Case("super-resolution", photographs, (4, 20), {"scale": 2}),
    Case("layer-decomposition", balls, (8, 20)),
    Case("virtual-try-on", people, (8, 32)),
    Case("shape-3d", categories, (30,)),
)


def nearness(found: Result, true: Result) -> float:
    """PSNR in dB over all pictures of a run; infinite if they are equal."""
    errors = []
    for one, other in zip(found.files, true.files, strict=True):
        if one.suffix == ".png":
            a, b = (np.asarray(Image.open(file), np.float64) for file in (one, other))
            if a.shape != b.shape:  # a layer was cut to another box
                return 0.0
            errors.append(((a - b) ** 2).reshape(-1))
    mean = float(np.concatenate(errors).mean())
    return 10 * math.log10(255**2 / mean) if mean else math.inf


def timed(session: PredictSession, source: Path | None, settings: dict[str, Any]) -> tuple[Result, float]:
    """A run, and its processor seconds."""
    start = time.process_time()
    result = session.run(source, settings)
    return result, time.process_time() - start


def measure(
    case: Case, steps: int, caches: Iterable[str], inputs: int | None, rounds: int
) -> list[dict[str, Any]]:
    """A row for each cache that the network takes."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        jobs = list(case.jobs(Path(folder)))[:inputs]
        plain, own = (PredictSession(find_task(case.task)) for _ in range(2))
        first, most = jobs[0][0], {**case.settings, **jobs[0][1], "steps": steps}
        plain.run(first, most)  # opens the pipeline, and is slower
        for cache in caches:
            gains, worst, computed, said = [], math.inf, None, None
            try:
                own.run(first, {**most, "cache": cache})
                for source, more in jobs:
                    settings = {**case.settings, **more, "steps": steps}
                    for _ in range(rounds):
                        true, without = timed(plain, source, settings)
                        found, took = timed(own, source, {**settings, "cache": cache})
                        gains.append(without / took)
                    worst = min(worst, nearness(found, true))
                    computed = found.record["cache"]
            except PolyditError as error:
                said = str(error)
            row = {"task": case.task, "steps": steps, "cache": cache}
            if said is None:
                row |= {"gain": statistics.median(gains), "psnr": worst, "computed": computed}
                print(f"  {row}", file=sys.stderr)
            else:
                row["refused"] = said
                print(f"  {case.task}: {said}", file=sys.stderr)
            rows.append(row)
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one input each")
    parser.add_argument("--only", nargs="+", metavar="TASK", help="these tasks only")
    parser.add_argument("--steps", type=int, nargs="+", help="instead of those that suit each")
    parser.add_argument("--caches", nargs="+", metavar="NAME", help="as --cache takes them; default: each")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for case in CASES:
        if (options.only and case.task not in options.only) or not shipped(case.task):
            continue
        for steps in options.steps or case.steps:
            rows += measure(
                case, steps, options.caches or CACHES, 1 if options.quick else None, options.rounds
            )
    table = ResultsTable(["task", "steps", "cache", "gain", "PSNR"])
    for row in rows:
        if "refused" not in row:
            psnr = "exact" if math.isinf(row["psnr"]) else f"{row['psnr']:.1f} dB"
            table.add(row["task"], row["steps"], row["cache"], f"{row['gain']:.2f}x", psnr)
    print(table.markdown())
    if options.output is not None:
        options.output.write_text(json.dumps(rows, indent=1, default=str) + "\n")


def shipped(task: str) -> bool:
    """Whether the weights are there."""
    folder = find_task(task).weights_folder()
    return folder is not None and folder.is_dir()


if __name__ == "__main__":
    main()
