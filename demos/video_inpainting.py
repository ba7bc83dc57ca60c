"""The web demo of video inpainting: paint over something in the first frame, and it is gone from the clip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polydit.core.data.masks import bounding_box
from polydit.core.data.video import open_frames
from polydit.core.errors import PolyditError
from polydit.core.media import OutputWriter
from polydit.core.media.video import video_output
from polydit.demos.painting import BRUSH, painted
from polydit.demos.session import PredictSession, explain_upload
from polydit.demos.widgets import cache_choice, cache_setting, offer_when_done
from polydit.tasks.video_inpainting import TASK

if TYPE_CHECKING:
    import gradio as gr

__all__ = ["MOVES", "Shown", "build", "compose", "erase", "first_frame"]

MOVES = ("is followed", "stands still")
PREVIEW = 16  # frames
SUFFIXES = [".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v"]

HEADER = """
# Video inpainting

Paint over something in the first frame of a clip and take it out of all of them. Everything runs on this machine;
nothing is sent anywhere.
"""
WELCOME = "Upload a clip, paint over what is to go, and press **Remove**."
COMPOSE = "Upload a clip and a second one of something on a plain background, say where it goes, and press **Put in**."


@dataclass(frozen=True)
class Shown:
    """What the page shows.

    Attributes:
        before: the clip, as a browser plays it.
        after: what ``predict`` wrote.
        note: size, time, the command, in Markdown.
    """

    before: Path
    after: Path
    note: str


def first_frame(source: Path, folder: Path) -> tuple[Path, str]:
    """The first frame as PNG, and what the clip is."""
    with open_frames(source) as reader:
        frame = next(iter(reader))
        about = (
            f"{reader.width} × {reader.height}, {reader.frames} frames, {float(reader.rate):.3g} per second"
        )
    return OutputWriter(folder, overwrite=True).image(f"{source.stem}_first.png", frame.pixels), about


def erase(
    session: PredictSession,
    source: Path | None,
    layers: list[Path],
    mask: Path | None = None,
    moves: str = MOVES[0],
    dilate: int = 4,
    preview: bool = False,
    seed: int = 0,
    steps: int = 0,
    cache: str = "none",
    progress: Callable[[int, int], None] | None = None,
) -> Shown:
    """Remove what was painted over; what the button does.

    Args:
        session: of the task.
        source: the uploaded clip.
        layers: what was painted on its first frame.
        mask: a mask file instead: picture, video, or CSV of boxes.
        moves: one of :data:`MOVES`: the painted box is followed, or the paint is for all frames.
        dilate: pixels by which masks grow.
        preview: the first frames only.
        seed: of the noise.
        steps: of the network; 0 is what the weights were trained for.
        cache: see ``predict``; for several steps.
        progress: called with (frames done, frames in all).

    Raises:
        PolyditError: as the command complains; or nothing was painted.
    """
    if source is None:
        raise PolyditError("clip: there is none yet; upload one")
    settings: dict[str, Any] = {
        "dilate": dilate,
        "seed": seed,
        "steps": steps or None,
        **cache_setting(cache),
    }
    files = session.keep(lambda folder: [folder])[0]
    if mask is not None:
        settings["mask"] = mask
    else:
        with open_frames(source) as reader:
            size = (reader.width, reader.height)
        area = painted(layers, size)
        box = bounding_box(area)
        if box is None:
            raise PolyditError("clip: nothing is painted yet; paint over what is to go, or upload a mask")
        if moves == MOVES[0]:
            settings["track"] = f"{box.left},{box.top},{box.width},{box.height}@0"
        else:
            settings["mask"] = OutputWriter(files).image("mask.png", area)
    clip = source
    if preview:
        if mask is not None and mask.suffix.lower() not in (".png", ".jpg", ".csv"):
            raise PolyditError("preview: a mask video is for the whole clip; leave the preview out")
        clip = _beginning(source, files)
    result = session.run(clip, settings, progress)
    return Shown(_playable(clip, files), result.files[0], _describe(session, source, settings, result))


def compose(
    session: PredictSession,
    source: Path | None,
    element: Path | None,
    path: str = "",
    size: int = 0,
    gamma: float = 1.0,
    seed: int = 0,
    steps: int = 0,
    cache: str = "none",
    progress: Callable[[int, int], None] | None = None,
) -> Shown:
    """Put one clip into another; what the button of the second tab does.

    Args:
        session: over weights that composite, or those that came with the task.
        source: the clip.
        element: what is put in, on a plain background.
        path: where its middle goes, ``x,y@frame ...``; empty is the middle.
        size: rows that it takes; 0 is the default.
        gamma: of its luminance.
        seed: of the noise.
        steps: of the network; 0 is what the weights were trained for.
        cache: see ``predict``; for several steps.
        progress: called with (frames done, frames in all).

    Raises:
        PolyditError: as the command complains.
    """
    if source is None or element is None:
        raise PolyditError("clips: two are needed; upload the one to put into, and what is put in")
    settings = {
        "system": "compositing" if session.weights is None else None,
        "composite": element,
        "path": path or None,
        "size-pixels": size or None,
        "gamma": gamma,
        "seed": seed,
        "steps": steps or None,
        **cache_setting(cache),
    }
    files = session.keep(lambda folder: [folder])[0]
    result = session.run(source, settings, progress)
    return Shown(_playable(source, files), result.files[0], _describe(session, source, settings, result))


def _beginning(source: Path, folder: Path) -> Path:
    return _copied(source, folder, f"{source.stem}_preview.mp4", PREVIEW)


def _playable(source: Path, folder: Path) -> Path:
    """The clip in what every browser plays."""
    return (
        source
        if source.suffix.lower() == ".mp4"
        else _copied(source, folder, f"{source.stem}_shown.mp4", None)
    )


def _copied(source: Path, folder: Path, name: str, most: int | None) -> Path:
    writer = OutputWriter(folder, overwrite=True)
    with (
        open_frames(source) as reader,
        video_output(writer, name, reader.width, reader.height, reader.rate, quality=4) as video,
    ):
        for frame in islice(reader, most):
            video.write(frame.pixels, frame.time)
    return writer.path(name)


def _describe(session: PredictSession, source: Path, settings: dict[str, Any], result: Any) -> str:
    record = result.record
    width, height = record["size"]
    lines = [
        f"**{width} × {height}**, {record['frames']} frames in {result.seconds:.1f} s "
        f"({result.seconds / max(1, record['frames']):.2f} s each)."
    ]
    lines += [f"Note: {note}." for note in record["notes"]]
    lines += ["The command:", f"```sh\n{session.command(source.name, 'results', settings)}\n```"]
    return "\n\n".join(lines)


def build(weights: str | None = None, composite_weights: str | None = None) -> gr.Blocks:
    """Build the page.

    Args:
        weights: folder or hub id of a pipeline that inpaints; those that came with the task when ``None``.
        composite_weights: the same of one that composites.
    """
    import gradio as gr

    session = PredictSession(TASK, weights)
    compositor = PredictSession(TASK, composite_weights or weights)
    defaults = session.options("input", "output", {})

    def on_clip(file: str | None) -> tuple[Any, str]:
        if file is None:
            return None, ""
        source = Path(file)
        try:
            picture, about = first_frame(source, session.keep(lambda folder: [folder])[0])
        except Exception as error:
            line = explain_upload(error, source)
            if line is None:
                raise
            return None, f"⚠️ **{line}**"
        return {"background": str(picture), "layers": [], "composite": None}, about

    def on_remove(
        clip: str | None = None,
        first: dict[str, Any] | None = None,
        mask: str | None = None,
        moves: str = MOVES[0],
        dilate: float = defaults.dilate,
        preview: bool = False,
        seed: float = 0,
        steps: float = 0,
        cache: str = defaults.cache,
        progress: Any = gr.Progress(),  # noqa: B008 - gradio finds the bar by its default value
    ) -> tuple[Path, Path, Path, str]:
        source, region = (Path(file) if file else None for file in (clip, mask))
        layers = [Path(file) for file in (first or {}).get("layers") or ()]
        try:
            progress(0, desc="preparing")
            shown = erase(
                session, source, layers, region, moves, int(dilate), preview, int(seed), int(steps), cache,
                lambda done, total: progress((done, total), unit="frames"),
            )  # fmt: skip
        except Exception as error:
            line = explain_upload(error, source, region)
            if line is None:
                raise
            raise gr.Error(line, duration=None, print_exception=False) from error
        return shown.before, shown.after, shown.after, shown.note

    def on_compose(
        clip: str | None = None,
        element: str | None = None,
        path: str = "",
        size: float = 0,
        gamma: float = 1.0,
        seed: float = 0,
        steps: float = 0,
        cache: str = defaults.cache,
        progress: Any = gr.Progress(),  # noqa: B008
    ) -> tuple[Path, Path, Path, str]:
        source, put = (Path(file) if file else None for file in (clip, element))
        try:
            progress(0, desc="preparing")
            shown = compose(
                compositor, source, put, path, int(size), float(gamma), int(seed), int(steps), cache,
                lambda done, total: progress((done, total), unit="frames"),
            )  # fmt: skip
        except Exception as error:
            line = explain_upload(error, source, put)
            if line is None:
                raise
            raise gr.Error(line, duration=None, print_exception=False) from error
        return shown.before, shown.after, shown.after, shown.note

    def sampling(name: str) -> tuple[Any, Any]:
        with gr.Row():
            steps = gr.Number(
                0, precision=0, minimum=0, label="Steps", info="0: as the weights were trained", min_width=110
            )
            return steps, cache_choice(f"{name}-cache")

    def results(name: str, welcome: str) -> tuple[Any, Any, Any, Any]:
        with gr.Row():
            before = gr.Video(
                label="Before", interactive=False, autoplay=True, loop=True, elem_id=f"{name}-before"
            )
            after = gr.Video(
                label="After", interactive=False, autoplay=True, loop=True, elem_id=f"{name}-after"
            )
        note = gr.Markdown(welcome, elem_id=f"{name}-note")
        download = gr.DownloadButton("Download MP4", interactive=False, elem_id=f"{name}-download")
        return before, after, download, note

    with gr.Blocks(
        title="PolyDiT: video inpainting", analytics_enabled=False, delete_cache=(3600, 86400)
    ) as page:
        gr.Markdown(HEADER)
        with gr.Tabs():
            with gr.Tab("Remove", render_children=True), gr.Row(equal_height=False):
                with gr.Column(scale=3, min_width=340):
                    clip = gr.File(label="Clip", file_types=SUFFIXES, height=110, elem_id="clip")
                    about = gr.Markdown(elem_id="about")
                    editor = gr.ImageEditor(
                        label="First frame: paint over what is to go",
                        type="filepath",
                        format="png",
                        sources=(),
                        transforms=(),
                        layers=False,
                        brush=gr.Brush(colors=[BRUSH], default_size=24, color_mode="fixed"),
                        height=380,
                        elem_id="first",
                    )
                    moves = gr.Radio(list(MOVES), value=MOVES[0], label="What is painted", elem_id="moves")
                    mask = gr.File(
                        label="Mask, instead of painting: picture, video or CSV of boxes",
                        height=90,
                        elem_id="mask",
                    )
                    with gr.Row():
                        dilate = gr.Slider(0, 32, value=defaults.dilate, step=1, label="Grow the mask")
                        seed = gr.Number(0, precision=0, minimum=0, label="Seed", min_width=90)
                        preview = gr.Checkbox(False, label=f"Preview: {PREVIEW} frames", elem_id="preview")
                    sampled = sampling("remove")
                    button = gr.Button("Remove", variant="primary", size="lg", elem_id="remove")
                with gr.Column(scale=5, min_width=420):
                    out = results("remove", WELCOME)
            with gr.Tab("Put in", render_children=True), gr.Row(equal_height=False):
                with gr.Column(scale=3, min_width=340):
                    scene = gr.File(label="Clip", file_types=SUFFIXES, height=110, elem_id="scene")
                    element = gr.File(
                        label="What is put in, on a plain background",
                        file_types=SUFFIXES,
                        height=110,
                        elem_id="element",
                    )
                    path = gr.Textbox(
                        "", label="Path of its middle", placeholder="40,60@0 200,80@24", elem_id="path"
                    )
                    with gr.Row():
                        size = gr.Number(0, precision=0, minimum=0, label="Rows (0: default)", min_width=110)
                        gamma = gr.Slider(0.4, 1.9, value=1.0, step=0.05, label="Gamma")
                        seed_of_composite = gr.Number(0, precision=0, minimum=0, label="Seed", min_width=90)
                    put_sampled = sampling("put")
                    put = gr.Button("Put in", variant="primary", size="lg", elem_id="put")
                with gr.Column(scale=5, min_width=420):
                    composed = results("put", COMPOSE)
        clip.change(on_clip, clip, [editor, about], api_visibility="private", show_progress="hidden")
        made = button.click(
            on_remove,
            [clip, editor, mask, moves, dilate, preview, seed, *sampled],
            list(out),
            api_name="remove",
            show_progress_on=out[1],
        )
        offer_when_done(made, out[2])
        done = put.click(
            on_compose,
            [scene, element, path, size, gamma, seed_of_composite, *put_sampled],
            list(composed),
            api_name="put_in",
            show_progress_on=composed[1],
        )
        offer_when_done(done, composed[2])
    return page
