"""Weights for coding: read without the libraries of training, and named by what they hold."""

from __future__ import annotations

import hashlib
import inspect
import json
from pathlib import Path
from typing import Any, TypeVar

import torch

from ...core.errors import PolyditError
from .codec import LatentCodec
from .entropy import RangeModels

__all__ = ["CodecWeights", "identity_of", "open_weights", "read_codec"]

Codec = TypeVar("Codec", bound=torch.nn.Module)


class CodecWeights:
    """A frozen codec that is ready for coding.

    Args:
        codec: frozen, in eval mode.
        source: where it came from, for complaints.

    Attributes:
        models: its tables.
        identity: SHA-256 of all its values; the first four bytes stand in every file.
    """

    def __init__(self, codec: LatentCodec, source: str) -> None:
        self.codec, self.source = codec, source
        self.models = RangeModels(codec.tables)
        self.identity = identity_of(codec)

    def check(self, wanted: bytes, name: str | Path) -> None:
        """Refuse a file that was coded with other weights.

        Raises:
            PolyditError: with both identities.
        """
        if self.identity[:4] != wanted:
            raise PolyditError(
                f"{name}: was coded with the weights {wanted.hex()}, and {self.source} holds "
                f"{self.identity[:4].hex()}; give the folder of the right ones with --weights"
            )


def identity_of(codec: torch.nn.Module) -> bytes:
    """SHA-256 of a frozen codec's values, with their names and shapes."""
    digest = hashlib.sha256()
    for name, value in sorted(codec.state_dict().items()):
        array = value.detach().cpu().numpy()
        digest.update(f"{name} {array.dtype.newbyteorder('<').str} {array.shape}\n".encode())
        digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return digest.digest()


def open_weights(folder: str | Path, device: torch.device | str = "cpu") -> CodecWeights:
    """Read the codec of a saved pipeline for pictures.

    Args:
        folder: of the pipeline, with ``codec/config.json`` and its safetensors.
        device: where it computes.

    Raises:
        PolyditError: it is no such folder, or is damaged.
    """
    return CodecWeights(read_codec(folder, LatentCodec).to(device), str(folder))


def read_codec(folder: str | Path, kind: type[Codec]) -> Codec:
    """The codec of a saved pipeline, in eval mode.

    Args:
        folder: of the pipeline.
        kind: class of the codec, which its config fits.

    Raises:
        PolyditError: it is no such folder, or is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    place = Path(folder).expanduser() / "codec"
    config, file = place / "config.json", place / "diffusion_pytorch_model.safetensors"
    for needed in (config, file):
        if not needed.is_file():
            raise PolyditError(
                f"{folder}: holds no {needed.relative_to(folder)}, so it is no codec; give a folder that "
                "`polydit compression fit` or `export` wrote"
            )
    try:
        settings: dict[str, Any] = json.loads(config.read_text(encoding="utf-8"))
        given = {name: value for name, value in settings.items() if not name.startswith("_")}
        if strange := sorted(set(given) - set(inspect.signature(kind).parameters)):
            raise PolyditError(
                f"{folder}: holds a {settings.get('_class_name', 'codec')} ({strange[0]}), which codes something "
                "else; give weights for what you have, or leave --weights out"
            )
        codec = kind(**given)
        codec.load_state_dict(load_file(file))
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        line = " ".join(str(error).split())[:200]
        raise PolyditError(f"{place}: cannot be read ({line}); get the folder again") from error
    for name, value in codec.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise PolyditError(f"{file}: weight {name} holds NaN or infinity; use other weights")
    return codec.eval().requires_grad_(False)
