"""Where the depth of a picture comes from: a folder of maps, or a depth network that the user has."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from ...core.data.images import IMAGE_SUFFIXES, list_images, read_image, to_uint8
from ...core.errors import PolyditError

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
        raise PolyditError(
            f"--depth {folder}: has no map called {source.stem}, after {source.name}; make one"
        )
    pixels, _ = read_image(maps[source.stem])
    return np.asarray(pixels, np.float32).mean(2)


class DepthModel:
    """A network for monocular depth, such as Depth Anything, from a folder in transformers' format.

    Args:
        folder: with ``config.json`` and safetensors; ``preprocessor_config.json`` is read where there is one.
        device: where it runs.

    Raises:
        PolyditError: the folder is of another kind of network, or damaged.
    """

    def __init__(self, folder: str | Path, device: torch.device | str = "cpu") -> None:
        from transformers import AutoModelForDepthEstimation

        try:
            self.model = AutoModelForDepthEstimation.from_pretrained(
                str(folder), local_files_only=True, use_safetensors=True, trust_remote_code=False
            )
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            line = " ".join(str(error).split())[:200]
            raise PolyditError(
                f"--depth {folder}: no depth network that transformers can load ({line})"
            ) from error
        self.model = self.model.to(device).eval()
        file = Path(folder) / "preprocessor_config.json"
        settings: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
        self.mean = settings.get("image_mean", [0.485, 0.456, 0.406])
        self.std = settings.get("image_std", [0.229, 0.224, 0.225])
        size = settings.get("size", 518)
        self.side = int(min(size.values())) if isinstance(size, dict) else int(size)
        # Sides in whole patches; 32 serves networks that halve five times.
        backbone = getattr(self.model.config, "backbone_config", None)
        patch = getattr(backbone, "patch_size", None) or settings.get("ensure_multiple_of") or 32
        self.multiple = int(patch if isinstance(patch, int) else patch[0])

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

    Raises:
        PolyditError: an option is missing, or a map exists already.
    """
    from rich.console import Console
    from rich.progress import track

    from ...core.media import OutputWriter

    for option in ("input", "model", "output"):
        if getattr(options, option) is None:
            raise PolyditError(f"--{option}: is missing; give a folder")
    model = DepthModel(options.model, options.device if options.device != "auto" else _device())
    writer = OutputWriter(options.output, overwrite=options.overwrite)
    console = Console(stderr=True)
    paths = list_images(options.input)
    for path in track(paths, "pictures", console=console, disable=not console.is_terminal):
        depth = model(to_uint8(read_image(path)[0]))
        spread = max(float(np.ptp(depth)), 1e-12)
        writer.image(f"{path.stem}.png", np.rint((depth - depth.min()) / spread * 255).astype(np.uint8))
    return 0


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
