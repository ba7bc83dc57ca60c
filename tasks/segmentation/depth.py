"""Where the depth of a picture comes from: a folder of maps, or a depth network that the user has."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from ...core.commands.failures import explain, is_disk_full
from ...core.data.images import IMAGE_SUFFIXES, read_image, to_uint8
from ...core.devices import choose_device
from ...core.errors import PolyditError
from ...core.inputs import find_inputs

__all__ = ["DepthModel", "DepthSource", "open_depth", "run"]

DepthSource = Callable[[NDArray[np.uint8], Path], NDArray[np.float32]]
"""Depth (h, w), of any range, of a picture (H, W, 3) and the file it is from."""


def open_depth(path: str | Path, device: torch.device | str = "cpu") -> DepthSource:
    """A folder of depth maps paired with pictures by name, or a folder of a depth network.

    Raises:
        PolyditError: it is neither.
    """
    folder = Path(path).expanduser()
    if (folder / "config.json").is_file():
        return DepthModel(folder, device)
    if folder.is_dir():
        maps = {file.stem: file for file in sorted(folder.iterdir()) if file.suffix.lower() in IMAGE_SUFFIXES}
        if maps:
            return lambda picture, source: _read(maps, source, folder)
    raise PolyditError(
        f"--depth {path}: holds neither depth maps nor a depth network (config.json); give a folder with one of them"
    )


def _read(maps: dict[str, Path], source: Path, folder: Path) -> NDArray[np.float32]:
    if source.stem not in maps:
        # Not of the option alone: other pictures may have theirs.
        raise PolyditError(f"{source.name}: --depth {folder} has no map called {source.stem}; make one")
    pixels, _ = read_image(maps[source.stem])
    return np.asarray(pixels, np.float32).mean(2)


class DepthModel:
    """A network for monocular depth, such as Depth Anything, from a folder in transformers' format.

    Args:
        folder: with ``config.json`` and safetensors; ``preprocessor_config.json`` is read where there is one.
        device: where it runs.
        option: that the folder was given to, for messages.

    Raises:
        PolyditError: there is no such folder, or it is of another kind of network, or damaged.
    """

    def __init__(
        self, folder: str | Path, device: torch.device | str = "cpu", option: str = "--depth"
    ) -> None:
        from safetensors import SafetensorError
        from transformers import AutoModelForDepthEstimation

        if not Path(folder).is_dir():  # transformers would take it for the name of a network on a hub
            raise PolyditError(f"{option} {folder}: no such folder; give that of a depth network")
        try:
            self.model = AutoModelForDepthEstimation.from_pretrained(
                str(folder), local_files_only=True, use_safetensors=True, trust_remote_code=False
            )
        except (OSError, ValueError, RuntimeError, LookupError, TypeError, SafetensorError) as error:
            line = " ".join(str(error).split())[:200]
            raise PolyditError(
                f"{option} {folder}: no depth network that transformers can load ({line}); give a whole one"
            ) from error
        self.model = self.model.to(device).eval()
        file = Path(folder) / "preprocessor_config.json"
        try:
            settings: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
            self.mean = [float(value) for value in settings.get("image_mean", (0.485, 0.456, 0.406))]
            self.std = [float(value) for value in settings.get("image_std", (0.229, 0.224, 0.225))]
            size = settings.get("size", 518)
            self.side = int(min(size.values())) if isinstance(size, dict) else int(size)
            # Sides in whole patches; 32 serves networks that halve five times.
            backbone = getattr(self.model.config, "backbone_config", None)
            patch = getattr(backbone, "patch_size", None) or settings.get("ensure_multiple_of") or 32
            self.multiple = int(patch if isinstance(patch, int) else patch[0])
            if (len(self.mean), len(self.std)) != (3, 3) or self.side < 1 or self.multiple < 1:
                raise ValueError("it needs three means, three deviations and a size")
        except (OSError, ValueError, TypeError, AttributeError, LookupError) as error:
            line = " ".join(str(error).split())[:200]
            raise PolyditError(f"{option} {folder}: {file.name} is damaged ({line}); replace it") from error

    @torch.no_grad()
    def __call__(self, picture: NDArray[np.uint8], source: Path | None = None) -> NDArray[np.float32]:
        """(H, W, 3) to (H, W) in the network's own unit."""
        height, width = picture.shape[:2]
        ratio = self.side / min(height, width)
        size = [max(1, round(length * ratio / self.multiple)) * self.multiple for length in (height, width)]
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255
        pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True, align_corners=False)
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (self.mean, self.std))
        answer = self.model(((pixels - mean) / std).to(self.model.device, self.model.dtype))
        depth = answer.predicted_depth.float()[:, None]
        depth = F.interpolate(depth, (height, width), mode="bilinear", align_corners=False)
        return depth[0, 0].cpu().numpy()


def run(options: Namespace) -> int:
    """``polydit segmentation depth``: write a map for each picture of a folder, 8-bit and of the picture's size.

    Maps that are there already are kept; a picture that fails is named, and the others go on.

    Returns:
        0, or 2 if some of several pictures failed.

    Raises:
        PolyditError: an option is missing or wrong, two maps would have one name, or the only picture failed.
    """
    from rich.console import Console
    from rich.progress import track

    from ...core.media import OutputWriter

    for option in ("input", "model", "output"):
        if getattr(options, option) is None:
            raise PolyditError(f"--{option}: is missing; give a folder")
    device = choose_device(options.device)
    found = find_inputs([str(options.input)], ("image",))
    output = Path(options.output).expanduser()
    for path in found.files:
        if path.resolve().parent == output.resolve():
            raise PolyditError(f"--output {output}: is the folder of {path.name}; choose another folder")
    for path, other in found.clashes.items():
        raise PolyditError(f"{path}: its map would have the name of that of {other}; rename one of them")
    writer = OutputWriter(output, overwrite=options.overwrite)
    todo = [path for path in found.files if not writer.exists(f"{path.stem}.png")]
    model = DepthModel(Path(options.model).expanduser(), device, "--model") if todo else None
    console, failed = Console(stderr=True), 0
    for path in track(todo, "pictures", console=console, disable=not console.is_terminal):
        assert model is not None
        try:
            writer.image(f"{path.stem}.png", _as_bytes(model(to_uint8(read_image(path)[0])), path))
        except Exception as error:
            line = explain(error)
            # Alone, or without room, going on makes no sense; a defect should show.
            if line is None or len(found.files) == 1 or is_disk_full(error):
                raise
            failed += 1
            _say(f"polydit: {line}")
    kept = len(found.files) - len(todo)
    parts = [f"{len(todo) - failed} done, in {output}"] if len(todo) > failed else []
    if kept:
        parts.append(f"{kept} kept as they were (--overwrite replaces them)")
    if failed:
        parts.append(f"{failed} of {len(found.files)} failed")
    _say("polydit: " + "; ".join(parts))
    return 2 if failed else 0


def _as_bytes(depth: NDArray[np.float32], path: Path) -> NDArray[np.uint8]:
    """The range of a depth stretched to 0..255.

    Raises:
        PolyditError: it has no range.
    """
    if not np.isfinite(depth).all():
        raise PolyditError(f"{path}: the depth network gave NaN or infinity; use another --model")
    spread = max(float(np.ptp(depth)), 1e-12)
    return np.rint((depth - depth.min()) / spread * 255).astype(np.uint8)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201 - what the user reads
