"""``make demo``: enlarge three photographs, adapt to pages of text in a minute, and show what came of it."""

from __future__ import annotations

import argparse
import os
import random
import shlex
import shutil
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console

from polydit.core.cli import main as polydit
from polydit.core.commands.failures import explain
from polydit.core.media import (
    BeforeAfter,
    OutputWriter,
    ResultsTable,
    before_after_page,
    comparison_sheet,
    detail_boxes,
)
from polydit.core.metrics import psnr, ssim

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "demos" / "samples"
WEIGHTS = ROOT / "demos" / "weights" / "super_resolution"
CONFIGS = ROOT / "configs" / "super_resolution"
SCALE = 4
TEXT = (
    "the diffusion transformer restores a picture from noise one step at a time while its condition shows what was "
    "there before light fell through the lens and rounding took the edges away letters are thin strokes on paper"
)
WORDS = TEXT.split()
INTRODUCTION = (
    f"Each picture was reduced to 1/{SCALE} of its width and enlarged again. Drag the line to compare. "
    "The model was trained on none of these pictures; the LoRA of the last one on other pages of text."
)
FILES = (
    ("index.html", "open it in a browser: before and after with a slider, and the tables"),
    ("*_sheet.png", "details beside the originals"),
    ("results.md", "the tables"),
)


def bicubic(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Pillow's bicubic resampling."""
    return picture.resize(size, Image.Resampling.BICUBIC)


def page(seed: int, size: tuple[int, int] = (640, 480)) -> Image.Image:
    """A page of text as a scanner sees it: paper tone, ink, a little grain."""
    rng = random.Random(seed)
    picture = Image.new("L", size, 236)
    draw = ImageDraw.Draw(picture)
    y = 12
    while y < size[1] - 48:
        height = rng.choice((26, 32, 38, 46))
        font = ImageFont.load_default(height)
        line = " ".join(rng.choice(WORDS) for _ in range(12))
        draw.text((12, y), line if rng.random() < 0.7 else line.title(), fill=rng.randint(20, 70), font=font)
        y += int(height * 1.35)
    grain = np.random.default_rng(seed).normal(0, 2, (size[1], size[0]))
    grey = np.clip(np.asarray(picture, dtype=float) + grain, 0, 255).round().astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def shown(argument: str | Path) -> str:
    """A path as one would type it here."""
    near = isinstance(argument, Path) and argument.is_absolute() and argument.is_relative_to(Path.cwd())
    return os.path.relpath(argument) if near else str(argument)


def run(arguments: list[str | Path]) -> None:
    """Run a polydit command as a user would, saying which."""
    words = [shown(argument) for argument in arguments]
    print(f"\n$ polydit {shlex.join(words)}", flush=True)
    code = polydit(words)
    if code:
        sys.exit(code)


def predict(low: Path, output: Path, *options: str | Path) -> None:
    """Enlarge every picture of a folder with the shipped weights."""
    run(["super-resolution", "predict", "--input", low, "--output", output, "--overwrite", *options])


def measure(picture: Image.Image, truth: Image.Image) -> tuple[float, float]:
    """PSNR and SSIM on RGB with a border of 4 pixels cropped."""
    pair = np.asarray(picture), np.asarray(truth)
    return float(psnr(*pair, crop=SCALE)[0]), float(ssim(*pair, crop=SCALE)[0])


def photographs(output: Path, writer: OutputWriter) -> tuple[ResultsTable, list[BeforeAfter]]:
    """Reduce the samples, enlarge them with the model, compare."""
    truths = {path.stem: Image.open(path).convert("RGB") for path in sorted(SAMPLES.glob("*.png"))}
    for name, truth in truths.items():
        small = bicubic(truth, (truth.width // SCALE, truth.height // SCALE))
        writer.image(f"low/{name}.png", np.asarray(small), overwrite=True)
    predict(output / "low", output / "photographs")
    table = ResultsTable(
        ["picture", "bicubic dB", "PolyDiT dB", "gain dB", "bicubic SSIM", "PolyDiT SSIM"],
        title=f"Photographs, x{SCALE}: PSNR and SSIM on RGB, 4-pixel border cropped",
        digits=3,
    )
    sliders = []
    for name, truth in truths.items():
        low = Image.open(output / "low" / f"{name}.png")
        enlarged = bicubic(low, truth.size)
        restored = Image.open(output / "photographs" / f"{name}.png")
        before, after = measure(enlarged, truth), measure(restored, truth)
        table.add(name, before[0], after[0], after[0] - before[0], before[1], after[1])
        writer.image(f"photographs/{name}_bicubic.png", np.asarray(enlarged), overwrite=True)
        panels = [
            (f"input {low.width}x{low.height}", low),
            (f"bicubic\n{before[0]:.2f} dB", enlarged),
            (f"PolyDiT small\n{after[0]:.2f} dB", restored),
            ("original", truth),
        ]
        sheet = comparison_sheet(panels, detail_boxes(truth, 3), title=f"{name}, x{SCALE}")
        writer.image(f"{name}_sheet.png", sheet, overwrite=True)
        sliders.append(
            BeforeAfter(
                f"photographs/{name}_bicubic.png", f"photographs/{name}.png", name, ("bicubic", "PolyDiT")
            )
        )
    return table, sliders


def adapt(output: Path, writer: OutputWriter) -> tuple[ResultsTable, BeforeAfter]:
    """One minute of LoRA on pages of text; measured on pages that it has not seen."""
    training = output / "run" / "super_resolution" / "text"
    shutil.rmtree(training, ignore_errors=True)  # an earlier demo's
    for seed in range(6):
        writer.image(f"pages/train/page_{seed}.png", np.asarray(page(seed)), overwrite=True)
    held_out = {f"page_{seed}": page(seed) for seed in (101, 102)}
    for name, truth in held_out.items():
        small = bicubic(truth, (truth.width // SCALE, truth.height // SCALE))
        writer.image(f"pages/low/{name}.png", np.asarray(small), overwrite=True)
    predict(output / "pages" / "low", output / "pages" / "base")
    run(
        [
            "super-resolution", "fit", "--config", CONFIGS / "small.yaml", "--config", CONFIGS / "lora.yaml",
            "--model.init_weights", WEIGHTS, "--data.path", output / "pages" / "train", "--output", output / "run",
            "--name", "text", "--pictures", "false",
        ]
    )  # fmt: skip
    lora = training / "lora.safetensors"
    predict(output / "pages" / "low", output / "pages" / "adapted", "--lora", lora)
    table = ResultsTable(
        ["held-out page", "bicubic dB", "PolyDiT dB", "with LoRA dB", "LoRA gain dB"],
        title="Pages of text, before and after one minute of LoRA on six others",
        digits=3,
    )
    for name, truth in held_out.items():
        enlarged = bicubic(Image.open(output / "pages" / "low" / f"{name}.png"), truth.size)
        base, adapted = (Image.open(output / "pages" / kind / f"{name}.png") for kind in ("base", "adapted"))
        figures = [measure(picture, truth)[0] for picture in (enlarged, base, adapted)]
        table.add(name, *figures, figures[2] - figures[1])
        names = ("bicubic", "base weights", "with LoRA")
        panels = [
            *(
                (f"{n}\n{f:.2f} dB", p)
                for n, f, p in zip(names, figures, (enlarged, base, adapted), strict=True)
            ),
            ("original", truth),
        ]
        writer.image(
            f"text_{name}_sheet.png", comparison_sheet(panels, detail_boxes(truth, 2)), overwrite=True
        )
    name = next(iter(held_out))
    labels = ("base weights", "with LoRA")
    return table, BeforeAfter(f"pages/base/{name}.png", f"pages/adapted/{name}.png", "a page of text", labels)


def main(output: Path = Path("demo_output")) -> None:
    """Write everything below ``output``."""
    start = time.monotonic()
    writer = OutputWriter(output)
    print("1 of 2: enlarge three photographs that were reduced to a quarter of their size", flush=True)
    results, sliders = photographs(output, writer)
    print("\n2 of 2: adapt the model to pages of text, one minute of LoRA", flush=True)
    adaptation, slider = adapt(output, writer)
    tables = (results, adaptation)
    content = before_after_page(
        [*sliders, slider], "PolyDiT super-resolution", introduction=INTRODUCTION, tables=tables
    )
    writer.text("index.html", content, overwrite=True)
    markdown = "\n".join(f"{table.title}\n\n{table.markdown()}" for table in tables)
    writer.text("results.md", markdown, overwrite=True)
    for table in tables:
        print()
        Console().print(table.rich())
    print(f"\nDone in {time.monotonic() - start:.0f} s. Look at")
    for name, what in FILES:
        print(f"  {shown(output / name):28} {what}")
    command = shown(Path(sys.executable).parent / "polydit")
    print("\nGo on with")
    print(f"  {command} super-resolution predict --input YOUR_PHOTO.jpg --output results")
    print("  make serve    the same in the browser")


def command_line(words: list[str]) -> int:
    """What ``python -m polydit.demos.make_demo`` does; the exit code."""
    parser = argparse.ArgumentParser(prog="make_demo", description=__doc__)
    parser.add_argument(
        "output",
        nargs="?",
        type=Path,
        default=Path("demo_output"),
        help="folder of the results (default: %(default)s)",
    )
    try:
        main(parser.parse_args(words).output)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        print(f"polydit: error: {line}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(command_line(sys.argv[1:]))
