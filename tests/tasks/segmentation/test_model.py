"""Training: every mechanism carries information that nothing else could, and a run ends in a pipeline that works."""

from __future__ import annotations

import pytest
import torch
import yaml
from diffusers import AutoencoderKL, SD3Transformer2DModel
from discs import FORM, disc, one_step, small_dit
from PIL import Image
from torch import nn

import polydit
from polydit.core.autoencoders import DiffusersAutoencoder
from polydit.core.backbones import DiT
from polydit.core.cli import main
from polydit.core.diffusion import Objective, Terminal
from polydit.core.errors import PolyditError
from polydit.tasks.segmentation import TASK
from polydit.tasks.segmentation.backbone import DichotomousDiT
from polydit.tasks.segmentation.dichotomy import halves
from polydit.tasks.segmentation.formulation import Formulation
from polydit.tasks.segmentation.model import Segmentation


def learned(data, steps: int = 60, **parts) -> float:
    """Loss of the mask half that a tiny network reaches when ``data(generator)`` gives (input, scales, target)."""
    torch.manual_seed(0)
    model = DichotomousDiT(
        input_size=8, patch_size=2, in_channels=2, out_channels=1, latent_channels=1, hidden_size=24, depth=4,
        num_heads=2, position="sincos", gate_init=0.5, interact_gate=0.3, **parts,
    )  # fmt: skip
    nn.init.normal_(model.final_layer.linear.weight, std=0.1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    generator, recent = torch.Generator().manual_seed(1), []
    labels = halves(16) if parts.get("embed", True) else None
    for step in range(steps):
        x, scales, target = data(generator)
        answer = model(x, torch.ones(32), scales=scales, halves=labels).sample
        loss = (answer - target)[:16].square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step >= steps - 10:
            recent.append(loss.item())
    return sum(recent) / len(recent)


def blobs(generator):
    """(16, 1, 8, 8) of -1 and 1: one quarter of the picture is set."""
    picture = -torch.ones(16, 1, 8, 8)
    corner = torch.randint(4, (16,), generator=generator).tolist()
    for row, which in enumerate(corner):
        picture[row, :, 4 * (which // 2) : 4 * (which // 2) + 4, 4 * (which % 2) : 4 * (which % 2) + 4] = 1
    return picture


def test_what_only_the_edge_half_sees_reaches_the_mask_by_interaction():
    def data(generator):
        sign = torch.randint(2, (16, 1, 1, 1), generator=generator) * 2.0 - 1
        picture = sign.expand(-1, 1, 8, 8)
        x = torch.cat([torch.zeros_like(picture), picture])
        return torch.cat([x, 0 * x], dim=1), None, torch.cat([picture] * 2)

    assert learned(data, interact=True, scales=0) < 0.2
    assert learned(data, interact=False, scales=0) > 0.8


def test_what_only_the_smaller_pictures_show_reaches_the_mask_by_injection():
    def data(generator):
        picture = torch.cat([blobs(generator)] * 2)
        small = [nn.functional.avg_pool2d(picture, 2**k) for k in (1, 2, 3)]
        return torch.zeros(32, 2, 8, 8), small, picture

    assert learned(data, interact=False, scales=3) < 0.2
    blind = learned(lambda g: (data(g)[0], None, data(g)[2]), interact=False, scales=3)
    assert blind > 0.6


def test_only_the_labels_tell_mask_from_edges():
    def fits(embed):
        torch.manual_seed(0)
        model = DichotomousDiT(
            input_size=8, patch_size=2, in_channels=2, out_channels=1, latent_channels=1, hidden_size=24, depth=4,
            num_heads=2, gate_init=0.5, embed=embed, scales=0,
        )  # fmt: skip
        nn.init.normal_(model.final_layer.linear.weight, std=0.1)
        optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
        generator = torch.Generator().manual_seed(1)
        for _ in range(80):
            picture = blobs(generator)
            x = torch.cat([torch.cat([picture] * 2)] * 2, dim=1)
            answer = model(x, torch.ones(32), halves=halves(16) if embed else None).sample
            loss = (answer - torch.cat([picture, -picture])).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss.item()

    assert fits(True) < 0.3
    assert fits(False) > 0.9  # the mean of two opposite answers is all it can say


# -- the module --------------------------------------------------------------------------------------------


def batch(size: int = 32, count: int = 2):
    pairs = [disc(size, size, seed) for seed in range(count)]
    mask = torch.stack([torch.from_numpy(m)[None].float() / 255 for _, m in pairs])
    picture = torch.stack([torch.from_numpy(p).permute(2, 0, 1).float() / 127.5 - 1 for p, _ in pairs])
    return {"picture": picture, "mask": mask, "edges": 0 * mask}


def test_losses_of_the_small_model_and_where_they_are_not_for():
    module = Segmentation(
        small_dit(), one_step(), formulation=FORM, cross_entropy_weight=1.0, overlap_weight=0.5, cut_mix=0.5
    )
    terms, output = module.losses(batch())
    assert set(terms) == {"objective", "cross_entropy", "overlap"}
    assert output.x0.shape == (2, 2, 32, 32)
    assert output.x0.abs().max() <= 1
    sum(terms.values()).backward()
    assert all(p.grad is not None for p in module.backbone.conv_head.parameters())
    with pytest.raises(PolyditError, match="masks as channels"):
        Segmentation(small_dit(), one_step(), overlap_weight=1.0)
    with pytest.raises(PolyditError, match="DiT has no parts of DiffDIS"):
        Segmentation(DiT(input_size=8, hidden_size=24, depth=1, num_heads=2), one_step())
    with pytest.raises(PolyditError, match="halves 'rows' is not known"):
        Formulation("rows")


def tiny_sd3():
    torch.manual_seed(0)
    return SD3Transformer2DModel(
        sample_size=8, in_channels=4, out_channels=4, num_layers=4, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=8, caption_projection_dim=16, pooled_projection_dim=8, pos_embed_max_size=16,
    )  # fmt: skip


def tiny_vae():
    return AutoencoderKL(
        block_out_channels=(4, 4), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=4,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=1, sample_size=32,
    )  # fmt: skip


def test_diffdis_trains_on_a_pretrained_transformer_and_is_saved(tmp_path):
    objective = Objective(timesteps=Terminal(probability=1.0))
    space = DiffusersAutoencoder(tiny_vae())
    module = Segmentation(
        tiny_sd3(), objective, space, Formulation(scales=3, side=32, tile=32), pyramid=True, cut_mix=0.5
    )
    module.prepare()
    terms, output = module.losses(batch())
    assert output.x0.shape == (4, 4, 16, 16), "mask half, then edge half"
    terms["objective"].backward()
    for part in (module.backbone, module.parts):
        assert sum(p.grad.abs().sum() for p in part.parameters() if p.grad is not None) > 0
    with torch.no_grad():
        for p in module.parts.parameters():
            p.add_(0.1 * torch.randn_like(p))
    pipe = module.build_pipeline()
    pipe.save_pretrained(tmp_path / "saved")
    loaded = polydit.load(tmp_path / "saved")
    picture, _ = disc(40, 56)
    masks = [
        p(picture, generator=torch.Generator().manual_seed(0), output_type="pt").masks[0]
        for p in (pipe, loaded)
    ]
    assert masks[0].shape == (1, 40, 56)
    assert torch.allclose(*masks, atol=1e-4)
    again = Segmentation(
        tiny_sd3(), objective, DiffusersAutoencoder(tiny_vae()), Formulation(scales=3),
        init_weights=str(tmp_path / "saved"),
    )  # fmt: skip
    for one, two in ((again.backbone, module.backbone), (again.parts, module.parts)):
        assert all(
            torch.equal(a, b)
            for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True)
        )


def test_noise_of_both_halves_is_the_same_only_if_asked_for():
    outputs = []
    for same in (True, False):
        form = Formulation(scales=0, same_noise=same, side=8)
        model = DichotomousDiT(
            input_size=8, patch_size=2, in_channels=6, out_channels=3, latent_channels=3, hidden_size=24, depth=2,
            num_heads=2, scales=0, interact=False, embed=True,
        )  # fmt: skip
        torch.manual_seed(0)
        for p in model.parameters():
            nn.init.normal_(p, std=0.05)
        for p in model.parts.embedding.parameters():
            nn.init.zeros_(p)  # the halves then differ by their noise only
        from polydit.tasks.segmentation.pipeline import SegmentationPipeline

        pipe = SegmentationPipeline(model.eval(), formulation=form.config())
        mask, edges = pipe.look(torch.zeros(1, 3, 8, 8), torch.Generator().manual_seed(0))
        outputs.append(torch.allclose(mask, edges, atol=1e-6))
    assert outputs == [True, False]


@pytest.mark.parametrize("name", ["small.yaml", "diffdis_small.yaml"])
def test_a_run_of_the_shipped_config_ends_in_a_pipeline(name, folders, tmp_path, capsys):
    config = yaml.safe_load((TASK.config_folder() / name).read_text())
    config["data"]["init_args"] |= {
        "path": str(folders[0].parent),
        "size": 32,
        "batch_size": 2,
        "num_workers": 0,
    }
    config["data"]["init_args"].pop("composites", None)
    config["model"]["init_args"]["backbone"]["init_args"] |= {"hidden_size": 32, "num_heads": 2, "depth": 4}
    config["model"]["init_args"]["formulation"] |= {"side": 32, "tile": 32}
    config["trainer"] = {"max_steps": 2, "precision": "32-true", "accelerator": "cpu"}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    words = ["segmentation", "fit", "--config", tmp_path / "c.yaml", "--output", tmp_path, "--name", "run"]
    assert main(list(map(str, words))) == 0, capsys.readouterr()
    (weights,) = tmp_path.rglob("model_index.json")
    picture = tmp_path / "p.png"
    Image.fromarray(disc(40, 40)[0]).save(picture)
    words = [
        "segmentation",
        "predict",
        "--input",
        picture,
        "--output",
        tmp_path / "out",
        "--weights",
        weights.parent,
    ]
    assert main(list(map(str, words))) == 0
    assert (tmp_path / "out" / "p_alpha.png").is_file()
