"""`polydit super-resolution fit` on a tiny configuration: from pictures to files that other commands read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import polydit
from polydit.core.adapters import apply_lora
from polydit.core.cli import main
from polydit.core.training.checkpoints import read_checkpoint

TINY = [
    "--trainer.accelerator=cpu",
    "--trainer.devices=1",
    "--trainer.precision=32-true",
    "--trainer.max_time=null",
    "--model.backbone.depth=1",
    "--model.backbone.hidden_size=16",
    "--model.backbone.num_heads=1",
    "--data.path=pictures",
    "--data.crop=48",
    "--data.batch_size=2",
    "--data.num_workers=0",
    "--data.samples_per_epoch=100",
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder with three pictures."""
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for number in range(3):
        noise = rng.integers(0, 255, (50, 52, 3), dtype=np.uint8)
        picture = Image.fromarray(noise).resize((208, 200), Image.Resampling.BICUBIC)
        picture.save(tmp_path / "pictures" / f"picture_{number}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fit(name: str, *words: str) -> Path:
    code = main(["super-resolution", "fit", "--config", "small.yaml", *TINY, "--name", name, *words])
    assert code in (0, None)
    return Path("runs/super_resolution") / name


def test_fit_predict_lora_and_resume(folder, capsys):
    base = fit("base", "--trainer.max_steps=3")
    said = capsys.readouterr().err
    assert "step 3: held-out loss" in said
    assert f"--weights {base / 'pipeline'}" in said
    assert list((base / "pictures").glob("*.png"))

    # the folder is what `predict` reads
    before = (base / "pipeline/transformer/diffusion_pytorch_model.safetensors").read_bytes()
    words = ["--input", "pictures/picture_0.png", "--steps", "1", "--device", "cpu"]
    command = ["super-resolution", "predict", *words, "--weights", str(base / "pipeline")]
    assert main([*command, "--output", "plain"]) == 0
    plain = np.asarray(Image.open(next(Path("plain").glob("picture_0*.png"))))
    assert plain.shape == (800, 832, 3)

    # a LoRA on it leaves it untouched, and its file changes the result
    adapted = fit(
        "lora", "--trainer.max_steps=3", "--model.init_weights", str(base / "pipeline"),
        "--model.adapter.rank=2", "--model.adapter.targets=linear", "--model.optimizer.lr=0.1",
        "--model.optimizer.warmup_steps=0",
    )  # fmt: skip
    assert (base / "pipeline/transformer/diffusion_pytorch_model.safetensors").read_bytes() == before
    lora = adapted / "lora.safetensors"
    capsys.readouterr()
    assert main([*command, "--lora", str(lora), "--output", "adapted"]) == 0
    captured = capsys.readouterr()
    assert "keys matched, scale 1" in captured.err + captured.out
    result = np.asarray(Image.open(next(Path("adapted").glob("picture_0*.png"))))
    assert not np.array_equal(result, plain)
    assert json.loads(Path("adapted/results.json").read_text())

    # the trained module and the file on the base are the same model
    merged = folder / "merged"
    arguments = [
        "--ckpt_path",
        str(adapted / "checkpoints/last.ckpt"),
        "--what",
        "pipeline",
        "--output",
        str(merged),
        *("--license", "mit", "--data-source", "noise"),
    ]
    assert main(["super-resolution", "export", *arguments]) == 0
    expected = polydit.load(merged).transformer.state_dict()
    for layout in ("diffusers", "kohya", "comfyui"):
        file = folder / f"{layout}.safetensors"
        words = [*arguments[:2], "--output", str(file), "--layout", layout]
        assert main(["super-resolution", "export", *words]) == 0
        model = polydit.load(base / "pipeline").transformer
        assert str(apply_lora(model, file)).endswith(
            "scale 1" if layout == "diffusers" else f"{layout} layout"
        )
        for name, value in model.state_dict().items():
            torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-4)
    assert main(["super-resolution", "export", *arguments, "--layout", "kohya", "--overwrite"]) == 2
    assert "--layout: a pipeline has none" in capsys.readouterr().err

    # and the run goes on where it stopped
    fit("base", "--trainer.max_steps=5", "--ckpt_path=last")
    assert read_checkpoint(base / "checkpoints/last.ckpt")["global_step"] == 5


def test_the_shipped_lora_config_finds_the_shipped_weights_from_any_folder(folder, root, capsys):
    if not (root / "demos/weights/super_resolution/model_index.json").is_file():
        pytest.skip("no weights in this checkout")
    words = ["--trainer.max_steps=1", "--data.path=pictures", "--data.batch_size=1", "--data.num_workers=0"]
    words += ["--trainer.accelerator=cpu", "--trainer.precision=32-true", "--name", "mine"]
    assert main(["super-resolution", "fit", "--config", "small.yaml", "--config", "lora.yaml", *words]) in (
        0,
        None,
    )
    lora = "runs/super_resolution/mine/lora.safetensors"
    assert (
        f"use it: polydit super-resolution predict --input PATH --output DIR --lora {lora}\n"
        in capsys.readouterr().err
    )
    words = ["--input", "pictures/picture_0.png", "--output", "out", "--scale", "2", "--device", "cpu"]
    assert main(["super-resolution", "predict", *words, "--lora", lora]) == 0
    assert "keys matched" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--model.optimzer.lr", "1"],
            "--model.optimzer.lr: no such option; did you mean --model.optimizer.lr?",
        ),
        (["--data.path", "nowhere"], "nowhere"),
        (["--ckpt_path", "last"], "no run in"),
        (["--trainer.devices", "0"], "config section trainer"),
    ],
)
def test_mistakes_end_in_one_line_and_exit_code_2(folder, words, message, capsys):
    code = main(["super-resolution", "fit", "--config", "small.yaml", *TINY, "--trainer.max_steps=1", *words])
    assert code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in last
    assert "Traceback" not in last


def test_a_shipped_config_is_found_by_its_name_and_written_down_by_it(monkeypatch: pytest.MonkeyPatch):
    seen = []
    monkeypatch.setattr("polydit.core.training.cli.run", lambda *given: seen.append(given))
    assert main(["super-resolution", "fit", "--config", "small.yaml", "--config=lora", "--debug"]) == 0
    ((_, subcommand, words, typed),) = seen
    assert subcommand == "fit"
    assert [Path(word.removeprefix("--config=")).is_file() for word in words] == [False, True, True]
    assert typed == ["--config", "small.yaml", "--config=lora"]
