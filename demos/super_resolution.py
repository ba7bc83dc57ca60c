"""The web demo of super-resolution."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from polydit.core.data.images import image_size, read_image, to_uint8
from polydit.core.errors import PolyditError
from polydit.core.media import OutputWriter
from polydit.demos.session import PredictSession, explain_upload
from polydit.demos.widgets import (
    before_after,
    cache_choice,
    cache_setting,
    examples,
    offer_when_done,
    upload_picture,
)
from polydit.tasks.super_resolution import TASK

if TYPE_CHECKING:
    import gradio as gr

__all__ = ["Comparison", "build", "upscale"]

SAMPLES = Path(__file__).parent / "samples"
MAX_PIXELS = 50_000_000  # of the result: a browser holds two such pictures as 400 MB
EXAMPLE_WIDTH = 256

HEADER = """
# Super-resolution

Enlarge a photograph two, three or four times with a small diffusion transformer. Everything runs on this machine;
nothing is sent anywhere.
"""
WELCOME = "Choose a picture, or click on an example, and press **Enlarge**."
LORA = """
A LoRA adapts the model to one kind of picture, such as scanned text.
`polydit super-resolution fit` trains one on your own pictures within a minute.
"""


@dataclass(frozen=True)
class Comparison:
    """What the page shows.

    Attributes:
        before: the picture enlarged by bicubic interpolation, as PNG.
        after: what `predict` wrote, of the same size.
        note: sizes, time, the command, in Markdown.
    """

    before: Path
    after: Path
    note: str


def upscale(
    session: PredictSession,
    source: Path | None,
    settings: dict[str, Any],
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Enlarge one picture; what the button does.

    Args:
        session: of the task.
        source: the uploaded file.
        settings: options of ``predict`` by name.
        progress: called with (tiles done, tiles in all).

    Raises:
        PolyditError: as the command complains; or there is no picture, or its result is too large for a page.
    """
    if source is None:
        raise PolyditError("picture: there is none yet; upload one or click on an example")
    _, size = sizes(session, source, session.options(source, "results", settings).scale)
    result = session.run(source, settings, progress)
    (after,) = result.files
    enlarged = Image.fromarray(to_uint8(read_image(source)[0])).resize(size, Image.Resampling.BICUBIC)
    before = OutputWriter(result.folder).image(f"{source.stem}_bicubic.png", enlarged)
    return Comparison(before, after, _describe(session, source, settings, result))


def sizes(session: PredictSession, source: Path, scale: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Width and height of a picture, and of its enlargement.

    Raises:
        PolyditError: it is not a picture, or its enlargement is too large for a page.
    """
    width, height = image_size(source)
    wide, high = width * scale, height * scale
    if wide * high > MAX_PIXELS:
        raise PolyditError(
            f"{source}: {wide} x {high} pixels at x{scale} are too many for a page; "
            f"use `polydit {session.task.name} predict`, or a smaller picture"
        )
    return (width, height), (wide, high)


def small_samples(folder: Path) -> list[Path]:
    """The sample pictures, reduced so that enlarging one takes seconds and shows something."""
    writer = OutputWriter(folder)
    reduced = []
    for file in sorted(SAMPLES.glob("*.png")):
        picture = Image.open(file).convert("RGB")
        picture.thumbnail((EXAMPLE_WIDTH, EXAMPLE_WIDTH), Image.Resampling.BICUBIC)
        reduced.append(writer.image(file.name, picture))
    return reduced


def _describe(session: PredictSession, source: Path, settings: dict[str, Any], result: Any) -> str:
    (width, height), (wide, high) = result.record["input_size"], result.record["output_size"]
    lora = settings.get("lora")
    named = {**settings, "lora": lora and Path(lora).name}
    return "\n\n".join(
        (
            f"**{width} × {height} → {wide} × {high}** in {result.seconds:.1f} s"
            + (f" · LoRA: {result.lora}" if result.lora else "")
            + ". Drag the handle to compare, scroll to zoom.",
            "This command makes the same file, byte for byte:",
            f"```sh\n{session.command(source.name, 'results', named)}\n```",
        )
    )


def build(weights: str | Path | None = None) -> gr.Blocks:
    """Build the page; the pipeline is loaded when the button is first pressed, and stays.

    Args:
        weights: folder or hub id of a saved pipeline; the shipped weights when ``None``.
    """
    import gradio as gr

    session = PredictSession(TASK, weights)
    defaults = session.options("input", "output", {})

    def on_choice(image: str | None, scale: int) -> str:
        if image is None:
            return ""
        source = Path(image)
        try:
            (width, height), (wide, high) = sizes(session, source, scale)
        except PolyditError as error:
            return f"⚠️ **{explain_upload(error, source)}**"
        return f"{width} × {height} pixels become {wide} × {high}."

    # The programming interface takes its defaults from the components, except where they hold None.
    def on_press(
        image: str | None = None,
        scale: int = defaults.scale,
        steps: int = defaults.steps or 1,
        seed: int | None = defaults.seed,
        color_fix: str = defaults.color_fix,
        lora: str | None = None,
        lora_scale: float = defaults.lora_scale,
        cache: str = defaults.cache,
        progress: Any = gr.Progress(),  # noqa: B008 - gradio finds the bar by its default value
    ) -> tuple[tuple[Path, Path], Path, str]:
        source, adapter = (Path(file) if file else None for file in (image, lora))
        settings = {
            "scale": scale,
            "steps": steps,
            "seed": seed,
            "color-fix": color_fix if color_fix != defaults.color_fix else None,
            "lora": adapter,
            "lora-scale": lora_scale if adapter else None,
            **cache_setting(cache),
        }
        try:
            progress(0, desc="preparing")
            shown = upscale(
                session, source, settings, lambda done, total: progress((done, total), unit="tiles")
            )
        except Exception as error:
            line = explain_upload(error, source, adapter)
            if line is None:
                raise
            # It stays until it is closed: who waited for a large picture may look elsewhere meanwhile.
            raise gr.Error(line, duration=None, print_exception=False) from error
        return (shown.before, shown.after), shown.after, shown.note

    with gr.Blocks(
        title="PolyDiT: super-resolution", analytics_enabled=False, delete_cache=(3600, 86400)
    ) as page:
        gr.Markdown(HEADER)
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=320):
                image = upload_picture("Picture", "picture", 260)
                examples(session.keep(small_samples), image)
                size = gr.Markdown(elem_id="size")
                # Children that are rendered late lose what is entered in their first moments.
                with gr.Tabs():
                    with gr.Tab("Settings", render_children=True):
                        scale = gr.Radio(
                            [(f"×{factor}", factor) for factor in (2, 3, 4)],
                            value=defaults.scale,
                            label="Scale",
                            elem_id="scale",
                        )
                        steps = gr.Slider(
                            1,
                            4,
                            value=defaults.steps or 1,
                            step=1,
                            label="Steps",
                            info="1 stays closest to the photograph; more add detail and time.",
                        )
                        with gr.Row():
                            seed = gr.Number(
                                defaults.seed,
                                precision=0,
                                minimum=0,
                                maximum=2**32 - 1,
                                min_width=120,
                                label="Seed",
                                info="The same seed, the same picture.",
                                elem_id="seed",
                            )
                            color_fix = gr.Dropdown(
                                ["none", "adain", "wavelet"],
                                value=defaults.color_fix,
                                min_width=120,
                                label="Colour fix",
                                info="Take colours from the input.",
                                elem_id="color-fix",
                            )
                        cache = cache_choice()
                    with gr.Tab("LoRA", render_children=True):
                        gr.Markdown(LORA)
                        lora = gr.File(
                            label="LoRA file (.safetensors)",
                            file_types=[".safetensors"],
                            type="filepath",
                            height=140,
                            elem_id="lora",
                        )
                        lora_scale = gr.Slider(
                            0, 2, value=defaults.lora_scale, step=0.05, label="Strength", info="0 is off."
                        )
                button = gr.Button("Enlarge", variant="primary", size="lg", elem_id="enlarge")
            with gr.Column(scale=5, min_width=420):
                slider = before_after("Bicubic (left) and PolyDiT (right)")
                note = gr.Markdown(WELCOME, elem_id="note")
                download = gr.DownloadButton("Download PNG", interactive=False, elem_id="download")
        gr.on(
            [image.change, scale.change],
            on_choice,
            [image, scale],
            size,
            api_visibility="private",
            show_progress="hidden",
        )
        made = button.click(
            on_press,
            [image, scale, steps, seed, color_fix, lora, lora_scale, cache],
            [slider, download, note],
            api_name="upscale",
            show_progress_on=slider,
        )
        offer_when_done(made, download)
    return page
