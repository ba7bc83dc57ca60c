"""The web demo of 3D shapes: of a category, or from a picture, in a viewer that turns."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polydit.core.errors import PolyditError
from polydit.core.load import locate
from polydit.core.open_pipeline import choose_weights
from polydit.demos.session import PredictSession, explain_upload
from polydit.demos.widgets import cache_choice, cache_setting, upload_picture
from polydit.tasks.shape_3d import TASK

if TYPE_CHECKING:
    import gradio as gr

__all__ = ["build", "make", "page_categories"]

HEADER = """
# 3D shapes

Make shapes of a category, or one from a picture of an object, with a small diffusion transformer. Everything runs on
this machine; nothing is sent anywhere. Drag to turn, scroll to zoom.
"""
FORMATS = ("glb", "obj", "ply", "stl")


def page_categories(weights: str | Path | None) -> list[str]:
    """The categories that the weights say they know, read without loading them; none if there are no weights."""
    import json

    try:
        folder = locate(str(choose_weights(TASK, weights)), TASK.name).folder
    except PolyditError:
        return []
    told = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    form = told.get("formulation") or {}
    return list(form.get("categories") or [])


def make(
    session: PredictSession,
    picture: Path | None,
    category: str | None,
    settings: dict[str, Any],
    progress: Any = None,
) -> tuple[list[Path], Path, str]:
    """Run ``predict``: the meshes (or clouds), the sheet of pictures, and a note.

    Raises:
        PolyditError: as the command complains; or there is neither a picture nor a category.
    """
    if picture is None and not category:
        raise PolyditError("picture: there is none; load one, or choose a category")
    own = {"category": category} if picture is None else {}
    result = session.run(picture, {**own, **settings}, progress)
    kind = settings.get("format", "glb")
    shapes = [
        file for file in result.files if file.suffix == f".{kind}" and not file.stem.endswith("_points")
    ]
    sheet = next(file for file in result.files if file.name.endswith("_sheet.png"))
    shape = result.record["shapes"][0]
    about = f"{shape['points']:,} points"
    if "faces" in shape:
        closed = "closed" if shape["watertight"] else "not closed"
        about += (
            f", {result.record['resolution']} cells along each axis, {shape['faces']:,} faces, {closed}, "
            f"volume {shape['volume']:.3f} of a box of 8"
        )
    command = session.command(picture.name if picture else None, "results", {**own, **settings})
    note = (
        f"**{about}**, in {result.seconds:.1f} s. This command makes the same files:\n\n```sh\n{command}\n```"
    )
    return shapes, sheet, note


def build(weights: str | Path | None = None) -> gr.Blocks:
    """Build the page; the pipeline is loaded when a button is first pressed, and stays.

    Args:
        weights: folder or hub id of a saved pipeline; the shipped weights when ``None``.
    """
    import gradio as gr

    session = PredictSession(TASK, weights)
    known = page_categories(weights)

    def run(
        picture: str | None,
        category: str | None,
        num: float,
        seed: float,
        steps: float,
        guidance: float,
        resolution: float,
        kind: str,
        cache: str,
        progress: gr.Progress,
    ) -> tuple[str, list[str], str, str]:
        source = Path(picture) if picture else None
        settings: dict[str, Any] = {
            "num": int(num),
            "seed": int(seed),
            "steps": int(steps) or None,
            "guidance-scale": guidance or None,
            "resolution": int(resolution),
            "format": kind,
            **cache_setting(cache),
        }
        if source is not None:
            settings.pop("num")
        try:
            shapes, sheet, note = make(
                session, source, category, settings, lambda done, total: progress((done, total), unit="steps")
            )
            files = session.keep(lambda folder: [Path(shutil.copy(f, folder)) for f in (*shapes, sheet)])
        except Exception as error:
            line = explain_upload(error, source)
            if line is None:
                raise
            raise gr.Error(line, duration=None, print_exception=False) from error
        return str(files[0]), [str(file) for file in files[:-1]], str(files[-1]), note

    def of_category(
        category: str | None = None,
        num: float = 2,
        seed: float = 0,
        steps: float = 0,
        guidance: float = 0,
        resolution: float = 96,
        kind: str = "glb",
        cache: str = "none",
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - gradio's way to ask for it
    ) -> tuple[str, list[str], str, str]:
        return run(None, category, num, seed, steps, guidance, resolution, kind, cache, progress)

    def from_picture(
        picture: str | None = None,
        seed: float = 0,
        steps: float = 0,
        guidance: float = 0,
        resolution: float = 96,
        kind: str = "glb",
        cache: str = "none",
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple[str, list[str], str, str]:
        return run(picture, None, 1, seed, steps, guidance, resolution, kind, cache, progress)

    with gr.Blocks(title="PolyDiT: 3D shapes", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        gr.Markdown(HEADER)
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=320):
                with gr.Tabs():
                    with gr.Tab("Of a category", render_children=True):
                        category = gr.Dropdown(
                            known, value=known[0] if known else None, label="Category", elem_id="category"
                        )
                        num = gr.Slider(1, 8, 2, step=1, label="Shapes")
                        by_name = gr.Button("Make shapes", variant="primary", elem_id="make")
                    with gr.Tab("From a picture", render_children=True, elem_id="from-picture"):
                        picture = upload_picture(
                            "One object, cut out or on a plain background", "picture", 280
                        )
                        by_picture = gr.Button(
                            "Make the shape", variant="primary", elem_id="make-from-picture"
                        )
                with gr.Accordion("Settings", open=False):
                    seed = gr.Number(0, label="Seed", precision=0, minimum=0)
                    steps = gr.Slider(0, 200, 0, step=1, label="Steps (0: as the weights were made for)")
                    guidance = gr.Slider(
                        0, 8, 0, step=0.1, label="Guidance (0: as the weights were made for)"
                    )
                    resolution = gr.Slider(32, 256, 96, step=8, label="Cells of the mesh along each axis")
                    kind = gr.Dropdown(FORMATS, value="glb", label="Format")
                    cache = cache_choice()
            with gr.Column(scale=3, min_width=360):
                viewer = gr.Model3D(
                    label="The first shape", height=420, clear_color=(1, 1, 1, 1), elem_id="viewer"
                )
                files = gr.File(label="Meshes", file_count="multiple", elem_id="files")
                sheet = gr.Image(
                    label="All around", type="filepath", format="png", interactive=False, elem_id="sheet"
                )
                note = gr.Markdown(elem_id="note")
        shared = [seed, steps, guidance, resolution, kind, cache]
        shown = [viewer, files, sheet, note]
        by_name.click(of_category, [category, num, *shared], shown, api_name="category", concurrency_limit=1)
        by_picture.click(from_picture, [picture, *shared], shown, api_name="picture", concurrency_limit=1)
    return page
