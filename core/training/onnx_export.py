"""A pipeline's transformer as an ONNX file, for programs without PyTorch; compared with the model before it is kept."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones import DiT
from ..conditioning import StreamDiT
from ..errors import PolyditError
from .extras import require

__all__ = ["example_inputs", "export_onnx", "side_multiple"]

TOLERANCE = 1e-4
"""Largest difference between the file's answer and the model's, for answers of order 1."""


class _Call(nn.Module):
    """The transformer with tensors in and one tensor out."""

    def __init__(self, transformer: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.transformer, self.names = transformer, names

    def forward(self, *values: Tensor) -> Tensor:
        sample: Tensor = self.transformer(**dict(zip(self.names, values, strict=True)), return_dict=False)[0]
        return sample


def side_multiple(transformer: Any) -> list[int]:
    """What each side of an input must be a multiple of: a patch, or a window of patches."""
    config = transformer.config
    axes = len(config.input_size) if isinstance(config.input_size, (list, tuple)) else 2
    patch, window = (
        [size] * axes if isinstance(size, int) else list(size or [1] * axes)
        for size in (config.patch_size, config.window_size)
    )
    return [p * w for p, w in zip(patch, window, strict=True)]


def example_inputs(
    transformer: Any, batch: int, windows: tuple[int, int], seed: int = 0
) -> dict[str, Tensor]:
    """Random inputs by their names in ``forward``.

    Args:
        transformer: A :class:`DiT` or :class:`StreamDiT`.
        batch: Samples.
        windows: Height and width in multiples of :func:`side_multiple`; further axes have one.
        seed: Of the values.

    Raises:
        PolyditError: another kind of model.
    """
    if type(transformer) not in (DiT, StreamDiT):
        raise PolyditError(
            f"--format onnx: {type(transformer).__name__} has no ONNX form; DiT and StreamDiT have"
        )
    config, multiple = transformer.config, side_multiple(transformer)
    size = [m * w for m, w in zip(multiple, (1, *windows)[-len(multiple) :], strict=True)]
    draw = torch.Generator().manual_seed(seed)
    inputs = {
        "hidden_states": torch.randn(batch, config.in_channels, *size, generator=draw),
        "timestep": torch.rand(batch, generator=draw) * 1000,
    }
    if config.num_classes:
        inputs["class_labels"] = torch.randint(0, config.num_classes, (batch,), generator=draw)
    if isinstance(transformer, StreamDiT):
        channels = config.condition_channels or config.in_channels
        inputs["condition"] = torch.randn(batch, channels, *size, generator=draw)
    if config.context_dim:
        inputs["encoder_hidden_states"] = torch.randn(batch, 8, config.context_dim, generator=draw)
    if config.pooled_projection_dim:
        inputs["pooled_projections"] = torch.randn(batch, config.pooled_projection_dim, generator=draw)
    return inputs


def export_onnx(
    transformer: nn.Module,
    path: str | Path,
    *,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a transformer as an ONNX file whose batch and sides are free.

    Sides are multiples of :func:`side_multiple`, which the file says under ``polydit.side_multiple``. The answer of
    onnxruntime is compared with the model's at two sizes.

    Args:
        transformer: A :class:`DiT` or :class:`StreamDiT`.
        path: The file.
        metadata: Kept in the file.
        overwrite: Replace what is there.

    Returns:
        The file.

    Raises:
        PolyditError: a library is missing, the file exists, the model has no ONNX form, or the file answers otherwise.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        require(package, "--format onnx", "onnx")
    path = Path(path)
    if path.exists() and not overwrite:
        raise PolyditError(f"{path}: exists already; choose another name or pass --overwrite")
    transformer = transformer.eval().float().cpu()
    inputs = example_inputs(transformer, 2, (3, 2))
    free = torch.export.Dim.DYNAMIC  # type: ignore[attr-defined]
    sides = range(2, inputs["hidden_states"].ndim)
    shapes = tuple(
        {0: free, **(dict.fromkeys(sides, free) if value.ndim == inputs["hidden_states"].ndim else {})}
        | ({1: free} if name == "encoder_hidden_states" else {})
        for name, value in inputs.items()
    )
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            _Call(transformer, list(inputs)).eval(),
            tuple(inputs.values()),
            dynamo=True,
            dynamic_shapes=(shapes,),
            input_names=list(inputs),
            output_names=["sample"],
            optimize=False,  # fails on windows of free size; onnxruntime optimises by itself
            verbose=False,
        )
    assert program is not None
    multiple = ",".join(map(str, side_multiple(transformer)))
    program.model.metadata_props.update({"polydit.side_multiple": multiple, **(metadata or {})})
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        program.save(temporary)
        _compare(transformer, temporary, path)
        os.replace(temporary, path)
    except OSError as error:
        raise PolyditError(
            f"{path}: cannot be written ({error.strerror or error}); make room and export again"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _compare(transformer: nn.Module, file: Path, name: Path) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    for batch, windows in ((1, (1, 1)), (2, (2, 3))):
        inputs = example_inputs(transformer, batch, windows, seed=1)
        wanted = {entry.name for entry in session.get_inputs()}
        (answer,) = session.run(None, {key: v.numpy() for key, v in inputs.items() if key in wanted})
        with torch.no_grad():
            expected: Any = transformer(**inputs).sample
        error = (torch.from_numpy(answer) - expected).abs().max().item()
        if not error <= TOLERANCE * max(1.0, expected.abs().max().item()):
            size = "x".join(map(str, inputs["hidden_states"].shape[2:]))
            raise PolyditError(
                f"{name}: not written, onnxruntime's answer at {size} differs by {error:.2g}; please report it"
            )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says about itself."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
