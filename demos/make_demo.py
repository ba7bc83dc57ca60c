"""``make demo``: enlarge three photographs, adapt to pages of text in a minute, and show what came of it."""

from __future__ import annotations

import random
import shutil
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console

from polydit.core.cli import main as polydit
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


def run(arguments: list[str | Path]) -> None:
    """Run a polydit command as a user would, saying which."""
    words = [str(a) for a in arguments]
    print("\n$ polydit " + " ".join(words), flush=True)
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
        ["picture", "bicubic PSNR", "PolyDiT PSNR", "gain dB", "bicubic SSIM", "PolyDiT SSIM"],
        title=f"x{SCALE}, RGB, 4-pixel border cropped",
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
    shutil.rmtree(output / "run", ignore_errors=True)
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
    lora = next((output / "run").rglob("*.safetensors"))
    predict(output / "pages" / "low", output / "pages" / "adapted", "--lora", lora)
    table = ResultsTable(
        ["held-out page", "bicubic PSNR", "base PSNR", "with LoRA", "gain over base dB"],
        title="one minute of LoRA on six pages of text",
        digits=2,
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
    start, say = time.monotonic(), Console().print
    writer = OutputWriter(output)
    results, sliders = photographs(output, writer)
    adaptation, slider = adapt(output, writer)
    page_html = before_after_page([*sliders, slider], "PolyDiT super-resolution", table=results)
    writer.text("index.html", page_html, overwrite=True)
    writer.text("results.md", results.markdown() + "\n" + adaptation.markdown(), overwrite=True)
    say(results.rich())
    say(adaptation.rich())
    sheets = sorted(path.name for path in output.glob("*_sheet.png"))
    say(f"\nwritten to {output}/ in {time.monotonic() - start:.0f} s:")
    say(f"  index.html    before and after, with a slider\n  results.md    the tables\n  {', '.join(sheets)}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
