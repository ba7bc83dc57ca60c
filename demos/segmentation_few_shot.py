"""The page's part where a thing that was marked in some pictures is found in others (few-shot segmentation)."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from polydit.core.data.images import read_image, to_uint8
from polydit.core.errors import PolyditError
from polydit.core.media import OutputWriter
from polydit.demos.session import PredictSession, explain_upload
from polydit.demos.widgets import before_after, upload_picture
from polydit.tasks.segmentation import TASK
from polydit.tasks.segmentation.predict import THRESHOLD

if TYPE_CHECKING:
    import gradio as gr

__all__ = ["build", "few_shot_session", "few_shot_tab", "find", "painted"]

HEADER = """### Show me one, and I find the others
Paint over a thing in one or several pictures, then find it in another one. Without a support there is nothing to find.
"""
TINT = np.array([255, 40, 40], np.float32)


def few_shot_session(weights: str | Path | None = None) -> PredictSession:
    """A session of the few-shot weights: those given, or the shipped ones."""
    return PredictSession(TASK, TASK.weights_folder("few-shot") if weights is None else weights)


def painted(editor: dict[str, Any] | None) -> tuple[Image.Image, Image.Image]:
    """Picture and mask of what an image editor holds: the mask is what was painted, whatever its colour.

    Raises:
        PolyditError: there is no picture, or nothing was painted.
    """
    if not editor or editor.get("background") is None:
        raise PolyditError("support: there is no picture to paint on; load one first")
    picture = editor["background"].convert("RGB")
    mask = np.zeros((picture.height, picture.width), bool)
    for layer in editor.get("layers") or []:
        mask |= np.asarray(layer.convert("RGBA").resize(picture.size))[..., 3] > 0
    if not mask.any():
        raise PolyditError("support: nothing is marked; paint over the thing to find, or load its mask")
    return picture, Image.fromarray(mask.astype(np.uint8) * 255)


def find(
    session: PredictSession, query: Path, supports: Sequence[Path], masks: Sequence[Path], threshold: float
) -> tuple[Path, Path, Path, str]:
    """Run ``predict``: the picture with what was found in red, its hard and its soft mask, and a note.

    Raises:
        PolyditError: as the command complains.
    """
    settings = {
        "support": [Path(file) for file in supports],
        "support-mask": [Path(file) for file in masks],
        "threshold": threshold if threshold != THRESHOLD else None,
    }
    result = session.run(query, settings)
    by_name = {file.stem.rpartition("_")[2]: file for file in result.files}
    alpha = np.asarray(Image.open(by_name["alpha"]), np.float32)[..., None] / 255
    picture = to_uint8(read_image(query)[0]).astype(np.float32)
    shown = np.rint(picture * (1 - 0.55 * alpha) + TINT * 0.55 * alpha).astype(np.uint8)
    overlay = OutputWriter(result.folder).image(f"{query.stem}_found.png", shown)
    names = {
        **settings,
        "support": [Path(file).name for file in supports],
        "support-mask": [Path(file).name for file in masks],
    }
    share = 100 * result.record["foreground"]
    note = (
        f"**{share:.1f} % of the picture**, by {len(supports)} support{'s' * (len(supports) != 1)}, in "
        f"{result.seconds:.1f} s. This command makes the same masks:\n\n"
        f"```sh\n{session.command(query.name, 'results', names)}\n```"
    )
    return overlay, by_name["mask"], by_name["alpha"], note


def few_shot_tab(session: PredictSession) -> None:
    """Build the page's part inside the ``gr.Blocks`` (or tab) that is open.

    Args:
        session: see `few_shot_session`.
    """
    import gradio as gr

    def on_mark(
        editor: dict[str, Any] | None, supports: list[str] | None, masks: list[str] | None
    ) -> tuple[list[str], list[str]]:
        try:
            picture, mask = painted(editor)
        except PolyditError as error:
            raise gr.Error(str(error), duration=None, print_exception=False) from error
        number = len(supports or []) + 1

        def write(folder: Path) -> list[Path]:
            writer = OutputWriter(folder)
            return [
                writer.image(f"support_{number}.png", picture),
                writer.image(f"support_{number}_mask.png", mask),
            ]

        files = [str(file) for file in session.keep(write)]
        return [*(supports or []), files[0]], [*(masks or []), files[1]]

    def on_press(
        query: str | None = None,
        supports: list[str] | None = None,
        masks: list[str] | None = None,
        threshold: float = THRESHOLD,
    ) -> tuple[tuple[Path, Path], str, str, str]:
        given = [Path(file) for file in (*(supports or []), *(masks or []))]
        source = Path(query) if query else None
        try:
            if source is None:
                raise PolyditError("picture: there is none to look at; load one")
            count = len(supports or [])
            overlay, mask, alpha, note = find(session, source, given[:count], given[count:], threshold)
            # As uploaded, a picture may be of a kind that pages do not show.
            before = overlay.with_name("query.png")
            Image.fromarray(to_uint8(read_image(source)[0])).save(before)
            kept = session.keep(lambda folder: [Path(shutil.copy(file, folder)) for file in (mask, alpha)])
        except Exception as error:
            line = explain_upload(error, source, *given)
            if line is None:
                raise
            raise gr.Error(line, duration=None, print_exception=False) from error
        return (before, overlay), str(kept[0]), str(kept[1]), note

    gr.Markdown(HEADER)
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=320):
            editor = gr.ImageEditor(
                format="png",
                label="A support: paint over the thing",
                type="pil",
                image_mode="RGBA",
                sources=["upload", "clipboard"],
                brush=gr.Brush(colors=["#ff2828"], default_size=16, color_mode="fixed"),
                layers=False,
                transforms=(),
                height=300,
                elem_id="support-editor",
            )
            mark = gr.Button("Use it as a support", elem_id="mark")
            # One below the other: side by side there is no room for the names.
            supports = gr.File(
                label="Supports",
                file_count="multiple",
                file_types=["image"],
                type="filepath",
                height=130,
                elem_id="supports",
            )
            masks = gr.File(
                label="Their masks, white on black",
                file_count="multiple",
                file_types=["image"],
                type="filepath",
                height=130,
                elem_id="support-masks",
            )
            query = upload_picture("Picture to look at", "query", 220)
            threshold = gr.Slider(
                0.05, 0.95, value=THRESHOLD, step=0.05, label="Threshold", info="Of the hard mask."
            )
            button = gr.Button("Find it", variant="primary", size="lg", elem_id="find")
        with gr.Column(scale=5, min_width=420):
            slider = before_after("The picture (left) and what was found (right)", "found", 520)
            with gr.Row():
                hard = gr.File(label="Mask (0 / 255)", interactive=False, elem_id="hard-mask")
                soft = gr.File(label="Soft mask", interactive=False, elem_id="soft-mask")
            note = gr.Markdown(elem_id="few-shot-note")
    mark.click(on_mark, [editor, supports, masks], [supports, masks], api_visibility="private")
    button.click(
        on_press,
        [query, supports, masks, threshold],
        [slider, hard, soft, note],
        api_name="find",
        show_progress_on=slider,
    )


def build(weights: str | Path | None = None) -> gr.Blocks:
    """A page with this part alone.

    Args:
        weights: folder or hub id of a saved few-shot pipeline; the shipped weights when ``None``.
    """
    import gradio as gr

    with gr.Blocks(title="PolyDiT: few-shot segmentation", analytics_enabled=False) as page:
        few_shot_tab(few_shot_session(weights))
    return page
