"""DiffDIS and DiffewS on a Stable Diffusion folder: checked, trained, saved, run; released weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent))
from few_shot_fixtures import UNET, marked, stable_diffusion_folder

from polydit.core.autoencoders import DiffusersAutoencoder
from polydit.core.backbones import load_official, read_official_file, save_official
from polydit.core.backbones.diffdis_unet import DiffdisUNet
from polydit.core.cli import main
from polydit.core.conditioning import FixedText
from polydit.core.diffusion import DiscretePath, Objective, Terminal, TimeConvention
from polydit.core.errors import PolyditError
from polydit.core.load import load
from polydit.core.task import find_task
from polydit.core.training.cli import TaskCLI
from polydit.tasks.segmentation.few_shot.formulation import Formulation as FewShotFormulation
from polydit.tasks.segmentation.few_shot.pipeline import FewShotPipeline
from polydit.tasks.segmentation.formulation import Formulation
from polydit.tasks.segmentation.pipeline import SegmentationPipeline
from polydit.tasks.segmentation.text import EmptyText

CONFIGS = Path(__file__).parents[3] / "configs" / "segmentation"
SOURCE = "--model.init_args.backbone.init_args.source"
CPU = ["--trainer.accelerator=cpu", "--trainer.precision=32-true", "--pictures=false"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return stable_diffusion_folder(tmp_path_factory.mktemp("models") / "sd")


def data_of_few_shot():
    return ["--data.init_args.layout=drawn", "--data.init_args.size=32", "--data.init_args.episodes_per_group=2",
            "--data.init_args.num_workers=0", "--data.init_args.val_episodes=2"]  # fmt: skip


def dis5k(root: Path) -> Path:
    for part in ("DIS-TR", "DIS-VD"):
        for kind in ("im", "gt"):
            (root / part / kind).mkdir(parents=True)
        for i in range(2):
            file, mask = marked(root, f"{part}{i}", size=(64, 64), spot=5 * i)
            file.rename(root / part / "im" / f"{i}.png")
            mask.rename(root / part / "gt" / f"{i}.png")
    return root


def test_the_published_configs_fill_in_published_sizes():
    task = find_task("segmentation")
    for name, count in (("diffdis_sd", 912_924_804), ("diffews", 865_934_084)):
        with torch.device("meta"):
            module = TaskCLI(task, "fit", ["--config", str(CONFIGS / f"{name}.yaml")]).model
        assert sum(p.numel() for p in module.backbone.parameters()) == count
        assert tuple(module.text.encoder_hidden_states.shape) == (1, 2, 1024)
        assert module.formulation.timestep == 1 if name == "diffews" else module.cut_mix == 0.5


def test_the_published_loss_of_diffdis_is_on_latents_at_the_last_index():
    settings = yaml.safe_load((CONFIGS / "diffdis_sd.yaml").read_text())["model"]["init_args"]["objective"][
        "init_args"
    ]
    objective = Objective(
        DiscretePath(**settings["path"]["init_args"]),
        settings["prediction"],
        weighting=settings["weighting"],
        timesteps=Terminal(**settings["timesteps"]["init_args"]),
        time=TimeConvention(**settings["time"]["init_args"]),
        time_range=tuple(settings["time_range"]),
    )
    t = objective.draw_times(3)
    assert objective.model_timestep(t).tolist() == [999] * 3
    assert float(objective.path.alpha(t[:1].double())) ** 2 == pytest.approx(0.00466010, abs=1e-7)
    assert float(objective.weight(t)[0]) == pytest.approx(14.614647**2, rel=1e-4)
    latents, noise = torch.randn(2, 3, 4, 4, 4)
    output = objective(lambda x_t, timestep: noise + 0.01, latents, noise=noise)
    torch.testing.assert_close(output.loss, (output.x0 - latents).square().mean(), rtol=1e-3, atol=0)


def test_check_runs_on_a_folder(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["segmentation", "check", "--config", str(CONFIGS / "diffews.yaml"), SOURCE, str(folder)]
    assert main([*words, *data_of_few_shot(), *CPU]) == 0
    capsys.readouterr()
    dis5k(tmp_path / "DIS5K")
    words = ["segmentation", "check", "--config", str(CONFIGS / "diffdis_sd.yaml"), SOURCE, str(folder)]
    data = {"path": "DIS5K", "size": 64, "batch_size": 2, "num_workers": 0}
    size = [f"--data.init_args.{name}={value}" for name, value in data.items()]
    assert main([*words, *size, *CPU]) == 0


def test_diffews_is_trained_from_a_folder_and_run(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["segmentation", "fit", "--config", str(CONFIGS / "diffews.yaml"), SOURCE, str(folder), "--name", "run",
             "--trainer.max_steps=1", "--trainer.accumulate_grad_batches=1",
             "--model.init_args.formulation.size=32"]  # fmt: skip
    assert main([*words, *data_of_few_shot(), *CPU]) == 0
    saved = Path("runs/segmentation/run/pipeline")
    index = json.loads((saved / "model_index.json").read_text())
    assert index["_class_name"] == "FewShotPipeline"
    assert index["transformer"][1] == "DiffewsUNet"
    assert index["vae"] == ["diffusers", "AutoencoderKL"]
    base = load_file(folder / "unet/diffusion_pytorch_model.safetensors")
    trained = load_file(saved / "transformer/diffusion_pytorch_model.safetensors")
    assert set(trained) - set(base) == {"conv_in_ref.weight", "conv_in_ref.bias"}
    assert not torch.equal(trained["conv_in_ref.weight"], base["conv_in.weight"].repeat(1, 2, 1, 1) / 2)
    file, mask = marked(tmp_path, "a")
    given = ["--input", str(file), "--output", "out", "--support", str(file), "--support-mask", str(mask)]
    assert main(["segmentation", "predict", "--weights", str(saved), *given]) == 0
    assert Image.open("out/a_alpha.png").size == (40, 30)


def test_diffdis_is_trained_from_a_folder_and_run(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dis5k(tmp_path / "DIS5K")
    words = ["segmentation", "fit", "--config", str(CONFIGS / "diffdis_sd.yaml"), SOURCE, str(folder), "--name", "run",
             "--trainer.max_steps=1", "--data.init_args.path=DIS5K", "--data.init_args.size=64",
             "--data.init_args.batch_size=2", "--data.init_args.num_workers=0",
             "--model.init_args.formulation.side=64"]  # fmt: skip
    assert main([*words, *CPU]) == 0
    saved = Path("runs/segmentation/run/pipeline")
    trained = load_file(saved / "transformer/diffusion_pytorch_model.safetensors")
    assert trained["rgb_proj.0.weight"].abs().max() > 0, "the injection has begun to learn"
    photo = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3)).astype(np.uint8)).save(photo)
    words = [
        "segmentation",
        "predict",
        "--weights",
        str(saved),
        "--input",
        str(photo),
        "--output",
        "out",
        "--edges",
    ]
    assert main(words) == 0
    assert Image.open("out/photo_mask.png").size == (70, 50)
    assert Path("out/photo_edges.png").is_file()


def test_released_weights_become_pipelines(folder, tmp_path):
    """As the README tells it: the folder of Stable Diffusion and the released file."""
    vae = DiffusersAutoencoder.from_pretrained(folder).component
    official = save_official("diffews", load_official("diffews", _random("diffews"), **UNET))
    save_file(official, tmp_path / "diffews.safetensors")
    unet = load_official("diffews", read_official_file(tmp_path / "diffews.safetensors"), **UNET)
    FewShotPipeline(
        unet,
        vae,
        FixedText.from_stable_diffusion(folder, {"empty": ""}),
        FewShotFormulation(size=32).config(),
    ).save_pretrained(tmp_path / "few_shot")
    pipe = load(tmp_path / "few_shot")
    file, mask = marked(tmp_path, "a")
    found = pipe(file, [file], [mask], output_type="np").alpha[0]
    assert found.shape == (30, 40)
    assert np.abs(found - pipe(file, output_type="np").alpha[0]).max() > 0, "the support is seen"

    unet = load_official("diffdis", _random("diffdis"), **UNET)
    text = EmptyText.from_stable_diffusion(folder, {"empty": ""})
    parameterization = {
        "path": {"name": "discrete", "schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
                 "steps": 1000},
        "prediction": "epsilon",
        "time": {"scale": 1000.0, "flip": False, "discrete": True},
    }  # fmt: skip
    SegmentationPipeline(
        unet, vae=vae, text=text, formulation=Formulation(side=64).config(), parameterization=parameterization
    ).save_pretrained(tmp_path / "diffdis")
    pipe = load(tmp_path / "diffdis")
    assert isinstance(pipe.transformer, DiffdisUNet)
    # 64 pixels are 16 latents; the smallest scale needs 2
    out = pipe(file, generator=torch.Generator().manual_seed(0), output_type="np")
    assert out.masks[0].shape == (30, 40)
    again = pipe(file, generator=torch.Generator().manual_seed(0), output_type="np")
    np.testing.assert_array_equal(out.masks[0], again.masks[0])


def _random(system: str) -> dict[str, torch.Tensor]:
    from polydit.core.backbones.diffews_unet import DiffewsUNet

    torch.manual_seed(3)
    model = (DiffdisUNet if system == "diffdis" else DiffewsUNet)(**UNET)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "rgb_proj" in name:
                parameter.normal_(std=0.1)
    return model.state_dict()


def test_the_empty_text_is_two_tokens_as_the_encoder_makes_them(folder):
    from transformers import AutoTokenizer, CLIPTextModel

    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder").eval()
    text = FixedText.from_stable_diffusion(folder, {"empty": ""})
    with torch.no_grad():
        expected = encoder(tokenizer("", return_tensors="pt")["input_ids"])[0]
    assert expected.shape == (1, 2, 8)
    torch.testing.assert_close(text(["empty"])["encoder_hidden_states"], expected)
    padded = FixedText.from_stable_diffusion(folder, {"empty": "", "word": "a"}, padded=True)
    assert padded.encoder_hidden_states.shape == (2, 77, 8)
    with pytest.raises(PolyditError, match="no text encoder of Stable Diffusion"):
        FixedText.from_stable_diffusion(folder / "unet", {"empty": ""})
