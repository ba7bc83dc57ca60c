"""A stage for layers in the browser: list with visibility, opacity and blend mode, dragging, the composite live."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from polydit.core.alpha import BLEND_MODES
from polydit.core.errors import PolyditError
from polydit.core.media import LayerStack

__all__ = ["CSS", "HTML", "SCRIPT", "edited", "staged"]

LARGEST_SIDE = 1600
"""Of what is sent to the page; exports are made of the layers themselves."""

HTML = """
<div class="stage">
  <div class="board"><canvas width="1" height="1" aria-label="composite"></canvas></div>
  <ol class="layers" aria-label="layers, topmost first"></ol>
</div>
"""

CSS = """
.stage { display: flex; flex-direction: column; gap: 10px; }
.board { background: repeating-conic-gradient(#ccc 0% 25%, #fff 0% 50%) 0 0 / 16px 16px; line-height: 0;
  display: flex; justify-content: center; border-radius: 6px; overflow: hidden; }
canvas { max-width: 100%; max-height: 520px; cursor: grab; touch-action: none; }
canvas.dragging { cursor: grabbing; }
.layers { list-style: none; margin: 0; padding: 0; display: flex; flex-direction: column; gap: 4px; }
.layers li { display: flex; align-items: center; gap: 10px; padding: 6px 10px; border-radius: 6px;
  border: 1px solid var(--border-color-primary); }
.layers li.selected { border-color: var(--color-accent); }
.layers .name { flex: 1; min-width: 70px; cursor: pointer; }
.layers img { width: 34px; height: 34px; object-fit: contain; cursor: pointer;
  background: repeating-conic-gradient(#ccc 0% 25%, #fff 0% 50%) 0 0 / 8px 8px; }
.layers input[type=range] { width: 90px; }
.layers select { background: var(--input-background-fill); color: inherit; padding: 2px 4px; border-radius: 4px; }
"""

SCRIPT = """
const NATIVE = {normal: 'source-over', plus: 'lighter'};
let stage = null, pictures = [], selected = 0, drag = null;
const canvas = () => element.querySelector('canvas');

function draw() {
  const board = canvas(), pen = board.getContext('2d');
  pen.globalAlpha = 1; pen.globalCompositeOperation = 'source-over';
  pen.clearRect(0, 0, board.width, board.height);
  if (stage.paper) {
    pen.fillStyle = `rgb(${stage.paper.join(',')})`;
    pen.fillRect(0, 0, board.width, board.height);
  }
  stage.layers.forEach((layer, i) => {
    if (!layer.visible) return;
    pen.globalAlpha = layer.opacity;
    pen.globalCompositeOperation = NATIVE[layer.blend_mode] || layer.blend_mode;
    pen.drawImage(pictures[i], layer.x * stage.scale, layer.y * stage.scale);
  });
  const kept = stage.layers.map(({name, x, y, opacity, blend_mode, visible}) =>
    ({name, x, y, opacity, blend_mode, visible}));
  element.dataset.edits = JSON.stringify(kept);
}

function control(kind, settings, listen) {
  const made = Object.assign(document.createElement(kind), settings);
  if (listen) made.addEventListener('input', () => { listen(made); draw(); });
  return made;
}

function list() {
  const rows = element.querySelector('.layers');
  rows.replaceChildren();
  stage.layers.map((layer, i) => [layer, i]).reverse().forEach(([layer, i]) => {
    const row = control('li', {className: i === selected ? 'selected' : ''});
    row.dataset.layer = layer.name;
    const pick = () => { selected = i; list(); };
    const shown = control('input', {type: 'checkbox', checked: layer.visible, title: 'visible'},
      box => { layer.visible = box.checked; });
    const thumb = control('img', {src: layer.src, alt: ''});
    const name = control('span', {className: 'name', textContent: layer.name, title: 'drag this layer'});
    thumb.addEventListener('click', pick); name.addEventListener('click', pick);
    const opacity = control('input',
      {type: 'range', min: 0, max: 1, step: 0.01, value: layer.opacity, title: 'opacity'},
      bar => { layer.opacity = Number(bar.value); });
    const mode = control('select', {title: 'blend mode'}, menu => { layer.blend_mode = menu.value; });
    stage.modes.forEach(m => mode.append(
      control('option', {value: m, textContent: m, selected: m === layer.blend_mode})));
    row.append(shown, thumb, name, opacity, mode);
    rows.append(row);
  });
}

function place(event) {
  const board = canvas(), box = board.getBoundingClientRect();
  return [(event.clientX - box.left) * board.width / box.width / stage.scale,
          (event.clientY - box.top) * board.height / box.height / stage.scale];
}

async function load() {
  const given = props.value;
  if (!given) return;
  const next = JSON.parse(given);
  const loaded = await Promise.all(next.layers.map(layer => new Promise((done, fail) => {
    const picture = new Image();
    picture.onload = () => done(picture); picture.onerror = fail; picture.src = layer.src;
  })));
  stage = next; pictures = loaded; selected = stage.layers.length - 1;
  const board = canvas();
  board.width = Math.round(stage.width * stage.scale); board.height = Math.round(stage.height * stage.scale);
  board.onpointerdown = event => {
    const layer = stage.layers[selected], [x, y] = place(event);
    drag = {dx: layer.x - x, dy: layer.y - y};
    board.setPointerCapture(event.pointerId); board.classList.add('dragging');
  };
  board.onpointermove = event => {
    if (!drag) return;
    const layer = stage.layers[selected], [x, y] = place(event);
    layer.x = Math.round(x + drag.dx); layer.y = Math.round(y + drag.dy);
    draw();
  };
  board.onpointerup = board.onpointercancel = () => { drag = null; board.classList.remove('dragging'); };
  list(); draw();
}

watch('value', load);
load();
"""


def staged(stack: LayerStack) -> str:
    """What the stage is given: the layers with their pictures, as JSON."""
    scale = min(1.0, LARGEST_SIDE / max(stack.width, stack.height))
    layers = []
    for layer in stack.layers:
        small = layer.cropped()
        picture = Image.fromarray(small.pixels)
        if scale < 1:
            size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
            picture = picture.convert("RGBa").resize(size, Image.Resampling.BICUBIC).convert("RGBA")
        file = io.BytesIO()
        picture.save(file, "PNG")
        source = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
        kept = {"name": small.name, "x": small.x, "y": small.y, "opacity": small.opacity}
        layers.append({**kept, "blend_mode": small.blend_mode, "visible": small.visible, "src": source})
    paper = list(stack.paper) if stack.paper is not None else None
    size = {"width": stack.width, "height": stack.height, "scale": scale}
    return json.dumps({**size, "paper": paper, "modes": list(BLEND_MODES), "layers": layers})


def edited(stack: LayerStack, edits: str | Sequence[dict[str, Any]] | None) -> LayerStack:
    """A stack with what was changed on the stage.

    Args:
        stack: what was given to the stage.
        edits: what the stage keeps, JSON or its contents: for each layer x, y, opacity, blend_mode and visible; nothing
            leaves the stack as it is.

    Raises:
        PolyditError: they are of another stack, or no such thing.
    """
    if not edits:
        return stack
    try:
        changes = json.loads(edits) if isinstance(edits, str) else list(edits)
        if [change["name"] for change in changes] != [layer.name for layer in stack.layers]:
            raise PolyditError("layers: these changes are of another picture; decompose it again")
        layers = tuple(
            replace(
                layer.cropped(),
                x=int(np.clip(change["x"], -100_000, 100_000)),
                y=int(np.clip(change["y"], -100_000, 100_000)),
                opacity=float(change["opacity"]),
                blend_mode=str(change["blend_mode"]),
                visible=bool(change["visible"]),
            )
            for layer, change in zip(stack.layers, changes, strict=True)
        )
    except (ValueError, KeyError, TypeError) as error:
        raise PolyditError(
            f"layers: the changes cannot be read ({error}); decompose the picture again"
        ) from error
    return replace(stack, layers=layers)
