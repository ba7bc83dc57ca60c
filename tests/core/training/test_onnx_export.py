"""The transformer as an ONNX file: the same answer in onnxruntime, at sizes that it was not traced with."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from polydit.core.backbones import DiT
from polydit.core.cli import main
from polydit.core.conditioning import StreamDiT
from polydit.core.errors import PolyditError
from polydit.core.training.onnx_export import example_inputs, export_onnx, side_multiple

needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="needs polydit[onnx]",
)


def awake(model: torch.nn.Module) -> torch.nn.Module:
    """With weights of which none is zero."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def plain() -> torch.nn.Module:
    return awake(
        DiT(
            input_size=8, patch_size=2, in_channels=3, hidden_size=16, depth=1, num_heads=2, num_classes=3,
            context_dim=6, pooled_projection_dim=5, position="sincos+rope", qk_norm="rms", mlp="swiglu",
        )
    )  # fmt: skip


def windowed() -> torch.nn.Module:
    """As the shipped model of super-resolution is made."""
    return awake(
        StreamDiT(
            input_size=32, patch_size=4, in_channels=3, condition_channels=6, hidden_size=16, depth=1, num_heads=1,
            mlp_ratio=2.0, num_classes=3, class_dropout_prob=0.0, norm="none", position="rope", qk_norm="rms",
            modulation="adaln_single", conv_kernel=3, window_size=4, gate_init=0.5, stream_init="identity",
        )
    )  # fmt: skip


@needs_onnx
@pytest.mark.parametrize(("build", "multiple"), [(plain, [2, 2]), (windowed, [16, 16])])
def test_onnxruntime_answers_as_the_model_does(build, multiple, tmp_path: Path):
    import onnxruntime

    model = build()
    assert side_multiple(model) == multiple
    path = export_onnx(model, tmp_path / "model.onnx", metadata={"license": "mit"})
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    assert about["polydit.side_multiple"] == ",".join(map(str, multiple))
    assert about["license"] == "mit"
    for batch, windows in ((1, (1, 1)), (3, (2, 5)), (2, (3, 1))):
        inputs = example_inputs(model, batch, windows, seed=7)
        (answer,) = session.run(["sample"], {name: value.numpy() for name, value in inputs.items()})
        with torch.no_grad():
            expected = model(**inputs).sample.numpy()
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(answer, expected, atol=1e-4)


@needs_onnx
def test_a_file_that_answers_otherwise_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = plain()
    (tmp_path / "there.onnx").write_bytes(b"")
    with pytest.raises(PolyditError, match=r"there\.onnx: exists already"):
        export_onnx(model, tmp_path / "there.onnx")
    monkeypatch.setattr("polydit.core.training.onnx_export.TOLERANCE", -1.0)
    with pytest.raises(PolyditError, match=r"new\.onnx: not written, onnxruntime's answer at 2x2 differs by"):
        export_onnx(model, tmp_path / "new.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["there.onnx"]


def test_a_missing_library_and_an_unknown_model_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(PolyditError, match="--format onnx: Linear has no ONNX form; DiT and StreamDiT have"):
        example_inputs(torch.nn.Linear(2, 2), 1, (1, 1))

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(
        PolyditError, match=r"--format onnx: onnx is not installed; pip install 'polydit\[onnx\]'"
    ):
        export_onnx(plain(), tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--ckpt_path: required (or --pipeline DIR, one of the two)"),
        (
            ["--ckpt_path", "a", "--pipeline", "b"],
            "--ckpt_path: required (or --pipeline DIR, one of the two)",
        ),
        (["--pipeline", "b", "--layout", "kohya"], "--layout: a pipeline folder has no LoRA to choose"),
        (["--pipeline", "b"], "b: "),
    ],
)
def test_mistakes_in_the_source_are_one_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["super-resolution", "export", "--output", "new", *words]) == 2
    assert capsys.readouterr().err.startswith(f"polydit: error: {message}")
