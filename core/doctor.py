"""``polydit doctor``: what this machine has, for a bug report."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from .commands.parser import Parser
from .task import find_tasks

__all__ = ["advise", "examine", "mask", "run"]

PACKAGES = (
    "torch", "diffusers", "peft", "transformers", "accelerate", "huggingface-hub", "lightning", "jsonargparse",
    "safetensors", "numpy", "pillow", "scikit-image", "kornia", "imageio", "tensorboard", "rich",
    "av", "decord", "imageio-ffmpeg", "gradio", "torchao", "bitsandbytes", "onnx", "onnxscript", "onnxruntime",
    "litdata", "wandb", "mlflow-skinny",
)  # fmt: skip
"""The base dependencies, then what the extras bring."""
VARIABLES = (
    "CUDA_VISIBLE_DEVICES", "HF_HOME", "HF_HUB_OFFLINE", "OMP_NUM_THREADS", "OMP_WAIT_POLICY",
    "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ENABLE_MPS_FALLBACK",
)  # fmt: skip


def run(words: Sequence[str]) -> int:
    """Print the findings as a table, or as JSON with ``--json``."""
    parser = Parser(
        "polydit doctor", "Environment, versions, devices and codecs. Names of your folders are masked."
    )
    parser.add_argument("--json", action="store_true", help="for a bug report or a script")
    options = parser.parse_args(words)
    found = mask(examine())
    if options.json:
        print(json.dumps(found, indent=2))
        return 0
    for title, rows in found.items():
        if not rows:
            continue
        print(f"{title}:")
        for name, value in rows.items():
            print(f"  {name:<28}{_text(value)}")
    return 0


def examine() -> dict[str, dict[str, Any]]:
    """All findings by section. Imports torch and Pillow, and survives their absence."""
    found: dict[str, dict[str, Any]] = {
        "polydit": {"version": __version__, "folder": str(Path(__file__).resolve().parent.parent)},
        "system": {
            "python": platform.python_version(),
            "executable": sys.executable,
            "platform": platform.platform(),
            "machine": platform.machine(),
            "cores": _cores(),
            "memory_gb": _memory("SC_PHYS_PAGES"),
            "free_memory_gb": _memory("SC_AVPHYS_PAGES"),
            "free_disk_gb": round(shutil.disk_usage(Path.cwd()).free / 1e9, 1),
        },
        "packages": {name: _version(name) for name in PACKAGES},
        "extras": _extras(),
        "devices": _devices(),
        "pictures": _picture_codecs(),
        "video": _video_codecs(),
        "tasks": _tasks(),
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }
    return {**found, "advice": advise(found)}


def mask(value: Any) -> Any:
    """`value` with the user's home folder and name replaced in every text."""
    if isinstance(value, dict):
        return {name: mask(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [mask(item) for item in value]
    if not isinstance(value, str):
        return value
    home = str(Path.home())
    if len(home) > 1:
        value = value.replace(home, "~")
    # /Users/name, /home/name and C:\Users\name of other accounts too.
    for root in ("/home/", "/Users/", "\\Users\\"):
        head, found, tail = value.partition(root)
        if found:
            rest = tail.replace("\\", "/").partition("/")[2]
            value = f"{head}{root}***" + (f"{root[-1]}{rest}" if rest else "")
    return value


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory(pages: str) -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf(pages) / 1e9, 1)
    except (AttributeError, OSError, ValueError):
        return None


def _devices() -> dict[str, Any]:
    try:
        import torch
    except Exception as error:
        return {"torch": f"cannot be imported: {type(error).__name__}: {error}"}
    found: dict[str, Any] = {
        "cpu_threads": torch.get_num_threads(),
        "cpu_instructions": torch.backends.cpu.get_cpu_capability(),
        "cuda_build": torch.version.cuda,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        free, total = torch.cuda.mem_get_info(number)
        found[f"cuda:{number}"] = (
            f"{properties.name}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free, capability "
            f"{properties.major}.{properties.minor}"
        )
    if torch.cuda.is_available():
        found["bfloat16"] = torch.cuda.is_bf16_supported(including_emulation=False)
    found["nvidia_driver"] = _driver()
    return found


def _driver(file: Path = Path("/proc/driver/nvidia/version")) -> str | None:
    """Version of the NVIDIA driver, which may be there although torch does not use it."""
    try:
        match = re.search(r"(\d+\.\d+(?:\.\d+)?)\s", file.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None
    return match[1] if match else None


def advise(found: dict[str, dict[str, Any]]) -> dict[str, str]:
    """What on this machine is likely to fail or to be slow, and what to do about it."""
    devices, video, advice = found["devices"], found["video"], {}
    if devices.get("nvidia_driver") and devices.get("cuda") is False:
        why = "is built without CUDA" if devices.get("cuda_build") is None else "cannot use the driver"
        advice["cuda"] = (
            f"an NVIDIA driver is there, but torch {why}: install torch for your CUDA from pytorch.org"
        )
    if not any(video.get(reader) is True for reader in ("av", "decord")):
        advice["video"] = "no reader for video: pip install 'polydit[video]'"
    if found["system"]["free_disk_gb"] < 5:
        advice["disk"] = "less than 5 GB are free here: checkpoints and outputs need room"
    for name, value in found["tasks"].items():
        if isinstance(value, str):
            advice[name] = "this task cannot be loaded, see above: reinstall the package that brings it"
    return advice


def _extras() -> dict[str, Any]:
    """What each extra of the installed distribution still lacks here."""
    try:
        required = importlib.metadata.requires("polydit") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    extras: dict[str, list[str]] = {}
    for item in required:
        match = re.fullmatch(r"([A-Za-z0-9_.-]+)[^;\[]*;\s*extra == ['\"]([a-z0-9-]+)['\"]", item.strip())
        if match and match[2] not in ("dev", "test"):
            missing = extras.setdefault(match[2], [])
            if _version(match[1]) is None:
                missing.append(match[1])
    return {
        name: f"lacks {', '.join(missing)}" if missing else "installed" for name, missing in extras.items()
    }


def _picture_codecs() -> dict[str, Any]:
    try:
        from PIL import features
    except Exception as error:
        return {"pillow": f"cannot be imported: {type(error).__name__}: {error}"}
    return {
        name: bool(features.check(name)) for name in ("jpg", "zlib", "libtiff", "webp", "avif", "littlecms2")
    }


def _video_codecs() -> dict[str, Any]:
    found: dict[str, Any] = {
        name: importlib.util.find_spec(name) is not None for name in ("av", "decord", "imageio_ffmpeg")
    }
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None and found["imageio_ffmpeg"]:
        try:
            import imageio_ffmpeg

            ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
        except Exception:
            ffmpeg = None
    found["ffmpeg"] = ffmpeg
    if found["av"]:
        try:
            from av.codec import codecs_available
        except Exception as error:
            found["av"] = f"cannot be imported: {type(error).__name__}: {error}"
        else:
            found |= {name: name in codecs_available for name in ("libx264", "ffv1")}
    return found


def _tasks() -> dict[str, Any]:
    tasks, broken = find_tasks()
    return {
        **{task.name: [str(folder) for folder in task.weights_at_hand()] for task in tasks.values()},
        **{task.name: f"cannot be loaded: {task.reason}" for task in broken},
    }
