"""LoRA files as they lie on the disk: whose keys, which factors, and where the scale is written down.

Three layouts are in use. ``diffusers``: ``transformer.<module>.lora_A.weight``. ``kohya``:
``lora_unet_<published_name>.lora_down.weight`` with an ``.alpha`` tensor. ``comfyui``:
``diffusion_model.<published.name>.lora_A.weight``. Here a file is parsed without regard to the model; names are
translated in ``formats``.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import PolyditError
from ..tensor_files import save_tensors

__all__ = ["FLAT", "LoraFile", "LoraModule", "open_lora", "write_lora"]

HEADER = "polydit"
DIFFUSERS_HEADER = "lora_adapter_metadata"
STRENGTH_HEADER = re.compile(
    rf"{HEADER}$|{DIFFUSERS_HEADER}$|format$|ss_network_(module|dim|alpha|args)$|sshs_"
)
"""Header entries about scale, names and checksums, which another layout has differently."""
PICKLES = (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""First bytes of what torch.save and pickle write."""
FLAT = re.compile(r"lora_unet_|lora_transformer_|lycoris_")
"""Beginnings of names that have underscores where their dots were."""
PREFIXES = ("base_model.model.", "model.diffusion_model.", "transformer.", "diffusion_model.")
TEXT_ENCODER = re.compile(r"(base_model\.model\.)?(text_encoder|lora_te)")
OTHER_KINDS = re.compile(r"\.(lokr|hada|oft|boft|ia3|lora_mid)[_.]")
SUFFIX = re.compile(
    r"\.(?:(?P<a>lora_A|lora_down)|(?P<b>lora_B|lora_up)|(?P<m>lora_magnitude_vector|dora_scale)|(?P<alpha>alpha))"
    r"(?:\.default)?(?:\.weight)?$"
)


@dataclass
class LoraModule:
    """One module's part of a file: A (r, in, ...), B (out, r, ...), DoRA's magnitude, and the scale yet to apply."""

    a: Tensor
    b: Tensor
    magnitude: Tensor | None
    scale: float
    keys: list[str]


@dataclass
class LoraFile:
    """A parsed file.

    Attributes:
        path: Where it lies.
        layout: ``diffusers``, ``kohya`` or ``comfyui``.
        modules: By name without prefix; names that begin as :data:`FLAT` says keep their beginning.
        unexpected: Keys that are no part of a LoRA of the transformer.
        missing: Modules of which the file has only one factor.
        alpha: Where the scale stands: ``none`` (it is 1), ``.alpha tensors``, ``header``, ``adapter_config.json``, or
            ``baked`` (it is 1, says our header).
        entry: Our header entry.
        header: Header entries of others that stay true when the file is rewritten (trigger words, tags, licence).
        factors: What the factors are called.
        base_model: Its keys begin with ``base_model.model.``, as peft's own wrapper writes them.
    """

    path: Path
    layout: str
    modules: dict[str, LoraModule]
    unexpected: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    alpha: str = "none"
    entry: dict[str, Any] = field(default_factory=dict)
    header: dict[str, str] = field(default_factory=dict)
    factors: frozenset[str] = frozenset()
    base_model: bool = False


def open_lora(path: str | Path) -> LoraFile:
    """Parse a LoRA file of any of the layouts.

    A scale is taken from ``.alpha`` tensors, else from diffusers' header, else from peft's ``adapter_config.json``
    beside an ``adapter_model.safetensors``; without any it is 1, as every loader takes it.

    Raises:
        PolyditError: the file is missing, unreadable, of another kind of adapter, not finite, or holds no LoRA.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise PolyditError(f"{path}: there is no such LoRA file")
    try:
        with safe_open(path, "pt") as file:
            header = dict(file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        with open(path, "rb") as file:
            pickled = file.read(2) in PICKLES
        if pickled:
            raise PolyditError(
                f"{path}: is pickled, which could run code; refused, give a .safetensors LoRA"
            ) from error
        raise PolyditError(
            f"{path}: cannot be read as safetensors ({error}); give a .safetensors LoRA"
        ) from error
    entry = _json(path, header, HEADER)
    parts: dict[str, dict[str, tuple[str, Tensor]]] = {}
    unexpected = []
    for key, value in sorted(tensors.items()):
        if kind := OTHER_KINDS.search(key):
            raise PolyditError(
                f"{path}: is a {kind[1]} adapter ({key}); only plain LoRA and DoRA are read, train one of them"
            )
        if not torch.isfinite(value.float()).all():
            raise PolyditError(
                f"{path}: {key} holds NaN or infinity; export it again from an earlier checkpoint"
            )
        match = SUFFIX.search(key)
        if match is None or TEXT_ENCODER.match(key):
            unexpected.append(key)
        else:
            parts.setdefault(strip_prefix(key[: match.start()]), {})[str(match.lastgroup)] = (key, value)
    scales, alpha = _scales(path, header, entry)
    if any("alpha" in part for part in parts.values()):
        alpha = ".alpha tensors"
    modules: dict[str, LoraModule] = {}
    missing = []
    for name, part in parts.items():
        if "a" not in part or "b" not in part:
            missing.append(name)
            unexpected += [key for key, _ in part.values()]
            continue
        a, b = part["a"][1], part["b"][1]
        modules[name] = LoraModule(
            a=a,
            b=b,
            magnitude=_magnitude(path, *part["m"], b.shape[0]) if "m" in part else None,
            scale=part["alpha"][1].item() / a.shape[0] if "alpha" in part else scales(name, a.shape[0]),
            keys=[key for key, _ in part.values()],
        )
    if not modules:
        raise PolyditError(
            f"{path}: holds no LoRA of a transformer (lora_A and lora_B, or lora_down and lora_up); its keys are like "
            f"{', '.join(list(tensors)[:3]) or 'none'}"
        )
    keys = [key for module in modules.values() for key in module.keys]
    factors = frozenset(name for name in ("lora_A", "lora_down") if any(f".{name}" in key for key in keys))
    kept = {key: text for key, text in header.items() if not STRENGTH_HEADER.match(key)}
    wrapped = any(key.startswith("base_model.model.") for key in keys)
    return LoraFile(path, _layout(keys), modules, unexpected, missing, alpha, entry, kept, factors, wrapped)


def write_lora(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> Path:
    """Write a file through a temporary name.

    Args:
        path: The file; what is there is replaced.
        tensors: Its tensors; they must be finite.
        header: Strings, and under our name anything JSON.

    Raises:
        PolyditError: a tensor holds NaN or infinity, or the file cannot be written.
    """
    bad = [key for key, value in tensors.items() if not torch.isfinite(value).all()]
    if bad:
        raise PolyditError(
            f"{path}: not written, {bad[0]} holds NaN or infinity; export an earlier checkpoint"
        )
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in header.items()}
    temporary = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(tensors, temporary, {"format": "pt", **texts})
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:  # the second is all that safetensors says of a full disk
        reason = getattr(error, "strerror", None) or str(error)
        raise PolyditError(
            f"{path}: cannot be written ({reason}); make room or choose another --output"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return path


def strip_prefix(name: str) -> str:
    """Module name without what pipelines and wrappers put before it."""
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _layout(keys: list[str]) -> str:
    if any(FLAT.match(key) for key in keys):
        return "kohya"
    return "comfyui" if any("diffusion_model." in key for key in keys) else "diffusers"


def _json(path: Path, header: Mapping[str, str], name: str) -> dict[str, Any]:
    try:
        value = json.loads(header.get(name, "{}"))
    except json.JSONDecodeError as error:
        raise PolyditError(
            f"{path}: its header entry {name} is damaged ({error}); export it again"
        ) from error
    return value if isinstance(value, dict) else {}


def _magnitude(path: Path, key: str, value: Tensor, rows: int) -> Tensor:
    """One length per output. LyCORIS can also keep one per input, which is another method."""
    if value.shape[0] != rows:
        raise PolyditError(
            f"{path}: {key} has a magnitude per input, {list(value.shape)}; only DoRA with one per output is read"
        )
    return value.flatten()


def _scales(
    path: Path, header: Mapping[str, str], entry: Mapping[str, Any]
) -> tuple[Callable[[str, int], float], str]:
    """``scale(name, rank)`` of modules without an ``.alpha`` tensor, and where it is from."""
    config, source = _json(path, header, DIFFUSERS_HEADER), "header"
    if entry.get("scale") == "baked":
        config, source = {}, "baked"
    elif not config:
        beside = path.with_name("adapter_config.json")
        if path.name == "adapter_model.safetensors" and beside.is_file():
            config, source = _json(beside, {HEADER: beside.read_text(encoding="utf-8")}, HEADER), beside.name
    config = {strip_prefix(key): value for key, value in config.items()}
    default, alphas = config.get("lora_alpha"), config.get("alpha_pattern") or {}

    def scale(name: str, rank: int) -> float:
        alpha = next((v for k, v in alphas.items() if re.match(rf"(.*\.)?({k})$", name)), default)
        if alpha is None:
            return 1.0
        return alpha / rank**0.5 if config.get("use_rslora") else alpha / rank

    return scale, source if source == "baked" or default is not None or alphas else "none"
