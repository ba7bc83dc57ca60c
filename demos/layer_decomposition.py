"""The web demo of layer decomposition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from polydit.core.alpha import recompose
from polydit.core.data.images import image_size
from polydit.core.errors import PolyditError
from polydit.core.media import OutputWriter, export_layers, read_layers
from polydit.demos.layer_stage import CSS, HTML, SCRIPT, edited, staged
from polydit.demos.painting import BRUSH, as_layer, painted
from polydit.demos.session import PredictSession, explain_upload
from polydit.demos.widgets import cache_choice, cache_setting
from polydit.tasks.layer_decomposition import TASK

if TYPE_CHECKING:
    import gradio as gr

__all__ = ["Decomposed", "build", "decompose", "export", "sample_scenes"]

SAMPLES = Path(__file__).parent / "samples"
MAX_PIXELS = 20_000_000  # an editor holds several copies in the browser
KINDS = {"PSD": "psd", "OpenRaster": "ora", "ZIP of PNGs": "zip"}

HEADER = """
# Layer decomposition

Take an object with its shadow off a photograph, or an illustration apart into its layers; then hide, fade, blend and
drag them. Everything runs on this machine; nothing is sent anywhere.
"""
WELCOME = """
Click on a picture below (its mask is painted already), or upload one and paint over an object **without** its shadow;
then press **Decompose**.
"""
EDITS = "(stack, edits, kind) => [stack, document.querySelector('[data-edits]')?.dataset.edits ?? '', kind]"


@dataclass(frozen=True)
class Decomposed:
    """What the page shows.

    Attributes:
        stack: the JSON file that ``predict`` wrote.
        stage: the layers for the stage.
        note: sizes, time, the command, in Markdown.
    """

    stack: Path
    stage: str
    note: str


def decompose(
    session: PredictSession,
    picture: Path | None,
    layers: Sequence[Path],
    settings: dict[str, Any],
    masked: bool,
) -> Decomposed:
    """Take one picture apart; what the button does.

    Args:
        session: of the task.
        picture: the uploaded file.
        layers: what was painted on it.
        settings: options of ``predict`` by name.
        masked: the system wants a mask.

    Raises:
        PolyditError: as the command complains; or the picture is missing or too large, or nothing is painted.
    """
    if picture is None:
        raise PolyditError("picture: there is none yet; upload one or click on an example")
    size = image_size(picture)
    if size[0] * size[1] > MAX_PIXELS:
        raise PolyditError(
            f"{picture}: {size[0]} x {size[1]} pixels are too many for a page; "
            f"use `polydit {session.task.name} predict`, or a smaller picture"
        )
    options = dict(settings)
    if masked:
        mask = painted(layers, size)
        if not mask.any():
            raise PolyditError("mask: nothing is painted yet; paint over an object")
        options["mask"] = OutputWriter(layers[0].parent, overwrite=True).image(
            f"{picture.stem}_mask.png", mask
        )
    result = session.run(picture, options)
    file = next(path for path in result.files if path.name.endswith("_layers.json"))
    stack = read_layers(file)
    named = {name: value.name if isinstance(value, Path) else value for name, value in options.items()}
    note = "\n\n".join(
        (
            f"**{stack.width} × {stack.height}**, {len(stack.layers)} layers in {result.seconds:.1f} s. Click on a "
            "layer's name to choose which one to drag.",
            *result.record.get("notes", ()),
            "This command makes the same files, byte for byte:",
            f"```sh\n{session.command(picture.name, 'results', named)}\n```",
        )
    )
    return Decomposed(file, staged(stack), note)


def export(session: PredictSession, stack: Path | None, edits: str, kind: str) -> Path:
    """One file of the layers as they are on the stage.

    Raises:
        PolyditError: there are none any more, or a library is missing.
    """
    if stack is None or not stack.is_file():
        raise PolyditError("layers: there are none (any more); press Decompose first")
    changed = edited(read_layers(stack), edits)
    stem = stack.name.removesuffix("_layers.json")

    def write(folder: Path) -> list[Path]:
        name = export_layers(OutputWriter(folder), stem, changed, kind)
        assert name is not None
        return [folder / name]

    return session.keep(write)[0]


def sample_scenes(folder: Path) -> list[Path]:
    """For every sample a picture and, after it, its mask as a layer of the editor: a ball, drawn, on a photograph."""
    from polydit.tasks.layer_decomposition.shadows import ShadowOptions, with_effects

    writer, files = OutputWriter(folder), []
    options = ShadowOptions(shadow=1.0, reflection=0.0, slant=(0.5, 0.8), length=(0.3, 0.5))
    for number, file in enumerate(sorted(SAMPLES.glob("*.png"))):
        photo = Image.open(file).convert("RGB")
        photo.thumbnail((384, 384), Image.Resampling.BICUBIC)
        background = torch.from_numpy(np.array(photo)).permute(2, 0, 1).float() / 255
        ball = _ball(photo.height, photo.width, number)
        foreground, _ = with_effects(ball, np.random.default_rng(number), options)
        image = recompose(background, foreground)
        files.append(writer.image(file.name, _to_bytes(image)))
        mask = (ball[3] > 0.5).byte().numpy() * 255
        files.append(writer.image(f"{file.stem}_layer.png", as_layer(mask)))
    return files


def _ball(height: int, width: int, number: int) -> torch.Tensor:
    """A striped ball with light on it, (4, H, W)."""
    radius = 0.2 * min(height, width)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    down, right = (y - 0.6 * height) / radius, (x - (0.3 + 0.15 * number) * width) / radius
    depth = np.sqrt(np.clip(1 - down**2 - right**2, 0, 1))
    light = 0.35 + 0.65 * np.clip(-0.5 * down - 0.5 * right + 0.7 * depth, 0, 1)
    colours = np.array([[0.9, 0.3, 0.1], [0.1, 0.5, 0.8], [0.95, 0.75, 0.1]], np.float32)
    stripe = np.cos(6 * right + 2 * down) > 0.3
    colour = np.where(stripe[..., None], 0.95, colours[number % 3]) * light[..., None]
    alpha = np.clip((1 - np.hypot(down, right)) * radius + 0.5, 0, 1)
    return torch.from_numpy(np.dstack([colour, alpha]).astype(np.float32)).permute(2, 0, 1).clamp(0, 1)


def _to_bytes(image: torch.Tensor) -> np.ndarray:
    return (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()


def _editor_files(payload: Any) -> dict[str, Any] | None:
    """The paths of what is in the editor."""
    if payload is None:
        return None
    background = payload.background.path if payload.background is not None else None
    return {"background": background, "layers": [layer.path for layer in payload.layers or ()]}


def build(weights: str | Path | None = None) -> gr.Blocks:
    """Build the page; the pipeline is loaded when the button is first pressed, and stays.

    Args:
        weights: folder or hub id of a saved pipeline; the shipped weights when ``None``.
    """
    import gradio as gr

    session = PredictSession(TASK, weights)
    defaults = session.options("input", "output", {})
    scenes = session.keep(sample_scenes)
    choices = [("object in a photograph", "small")]
    if weights is None and (TASK.weights_folder("illustration") or Path()).is_dir():
        choices.append(("illustration", "illustration"))

    def on_press(
        picture: dict[str, Any] | None = None,
        system: str = "small",
        steps: int = defaults.steps or 1,
        seed: int | None = defaults.seed,
        cache: str = defaults.cache,
        progress: Any = gr.Progress(),  # noqa: B008 - gradio finds the bar by its default value
    ) -> tuple[str, str, str]:
        editor = picture or {}
        source = Path(editor["background"]) if editor.get("background") else None
        layers = [Path(file) for file in editor.get("layers") or ()]
        chosen = system if system != "small" else None
        settings = {"steps": steps, "seed": seed, "system": chosen, **cache_setting(cache)}
        try:
            progress(0, desc="decomposing")
            shown = decompose(session, source, layers, settings, masked=system == "small")
        except Exception as error:
            line = explain_upload(error, source)
            if line is None:
                raise
            raise gr.Error(line, duration=None, print_exception=False) from error
        return str(shown.stack), shown.stage, shown.note

    def on_export(stack: str | None = None, edits: str = "", kind: str = "psd") -> str:
        try:
            return str(export(session, Path(stack) if stack else None, edits, kind))
        except Exception as error:
            line = explain_upload(error)
            if line is None:
                raise
            raise gr.Error(line, duration=None, print_exception=False) from error

    def on_scene(event: gr.SelectData) -> dict[str, Any]:
        photo, layer = scenes[2 * event.index : 2 * event.index + 2]
        return {"background": str(photo), "layers": [str(layer)], "composite": None}

    # gradio looks for this type by the annotation, which is a text of a name that this module does not hold.
    on_scene.__annotations__["event"] = gr.SelectData
    with gr.Blocks(
        title="PolyDiT: layer decomposition", analytics_enabled=False, delete_cache=(3600, 86400)
    ) as page:
        gr.Markdown(HEADER)
        stack = gr.State(None)
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=360):
                editor = gr.ImageEditor(
                    label="Picture: paint over an object",
                    type="filepath",
                    format="png",
                    sources=["upload", "clipboard"],
                    transforms=(),
                    layers=False,
                    brush=gr.Brush(colors=[BRUSH], default_size=24, color_mode="fixed"),
                    height=460,
                    elem_id="picture",
                )
                # The files as they were uploaded. Gradio would open them first and tell of bad ones in its own words.
                editor.preprocess = _editor_files
                examples = gr.Gallery(
                    [str(file) for file in scenes[::2]],
                    label="Examples",
                    format="png",
                    columns=3,
                    height=150,
                    allow_preview=False,
                    buttons=[],
                    interactive=False,
                    elem_id="examples",
                )
                system = gr.Radio(choices, value="small", label="What it is", elem_id="system")
                with gr.Row():
                    steps = gr.Slider(1, 8, value=defaults.steps or 1, step=1, label="Steps")
                    seed = gr.Number(
                        defaults.seed,
                        precision=0,
                        minimum=0,
                        maximum=2**32 - 1,
                        min_width=120,
                        label="Seed",
                        elem_id="seed",
                    )
                    cache = cache_choice()
                button = gr.Button("Decompose", variant="primary", size="lg", elem_id="decompose")
            with gr.Column(scale=4, min_width=420):
                stage = gr.HTML(
                    "",
                    html_template=HTML,
                    css_template=CSS,
                    js_on_load=SCRIPT,
                    elem_id="stage",
                    container=True,
                )
                note = gr.Markdown(WELCOME, elem_id="note")
                with gr.Row():
                    kind = gr.Radio(list(KINDS.items()), value="psd", label="File", elem_id="kind")
                    save = gr.Button("Export as shown", elem_id="export")
                file = gr.File(label="Layers", interactive=False, elem_id="file")
        examples.select(on_scene, outputs=editor, api_visibility="private", show_progress="hidden")
        button.click(
            on_press,
            [editor, system, steps, seed, cache],
            [stack, stage, note],
            api_name="decompose",
            show_progress_on=note,
        )
        edits = gr.Textbox(visible="hidden", elem_id="edits")
        save.click(on_export, [stack, edits, kind], file, api_name="export", js=EDITS)
    return page
