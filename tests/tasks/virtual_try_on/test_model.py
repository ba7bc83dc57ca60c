"""MC-VTON on the native transformer and on FLUX: counts, exactness of groups and caches, a run from end to end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file

import polydit
from polydit.core.adapters import LoraOptions, inject_group
from polydit.core.backbones.pretrained import adapt_transformer
from polydit.core.cli import main
from polydit.core.conditioning import KeyValueCache, TokenGroupDiT, forward_groups
from polydit.core.diffusion import Objective, Shifted, Terminal
from polydit.core.errors import PolyditError
from polydit.core.training.checkpoints import read_checkpoint
from polydit.tasks.virtual_try_on.formulation import TokenGroupFormulation
from polydit.tasks.virtual_try_on.model import TokenGroupTryOn, shift_of

CONFIGS = Path(polydit.__file__).parent / "configs/virtual_try_on"
LAYERS = ["attn.qkv", "mlp.fc1"]
SMALL = {
    "conditions": {"person": "shared", "garment": "beside"}, "input_size": [16, 12], "patch_size": 4, "in_channels": 3,
    "hidden_size": 16, "depth": 2, "num_heads": 2, "num_classes": None, "position": "rope", "qk_norm": "rms",
    "gate_init": 0.5,
}  # fmt: skip


def awake(model):
    """Random weights where the initialisation has zeros, so that every path is open."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


@pytest.fixture
def dit():
    torch.manual_seed(0)
    return awake(TokenGroupDiT(**SMALL))


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    person, garment = (torch.rand(2, 3, 16, 12, generator=generator) * 2 - 1 for _ in range(2))
    mask = torch.zeros(2, 1, 16, 12)
    mask[..., 4:12, 3:9] = 1
    return {"person": person, "garment": garment, "mask": mask}


def module_of(dit, **options):
    settings = {"height": 16, "width": 12, "keep_known": True, "init_weights": None, **options}
    return TokenGroupTryOn(dit, Objective(prediction="x0", loss="l1"), **settings)


def predict(module, batch, conditions=None, adapters=None, cache=None):
    seen = module.condition(batch)["conditions"] if conditions is None else conditions
    torch.manual_seed(3)
    x_t = torch.randn(seen["person"].shape)
    timestep = torch.full((len(x_t),), 700.0)
    return module.formulation.predict(
        module._network[0], x_t, timestep, seen, module.objective, None, adapters, cache
    )


# -- published counts ----------------------------------------------------------------------------------------


OMINICONTROL = [
    "x_embedder",
    r"transformer_blocks\.\d+\.(norm1\.linear|attn\.to_[qkv]|attn\.to_out\.0|ff\.net\.2)",
    r"single_transformer_blocks\.\d+\.(norm\.linear|proj_mlp|proj_out|attn\.to_[qkv])",
]


def test_published_counts():
    settings = yaml.safe_load((CONFIGS / "mc_vton_flux.yaml").read_text())["model"]["init_args"]["adapters"]
    four, eight = LoraOptions(4, targets=OMINICONTROL), LoraOptions(8, targets=OMINICONTROL)
    with torch.device("meta"):
        flux = FluxTransformer2DModel(guidance_embeds=True)
        assert sum(p.numel() for p in flux.parameters()) == 11_901_408_320
        wanted = {
            "a": four,
            "b": eight,
            **{group: LoraOptions(**options) for group, options in settings.items()},
        }
        for group, options in wanted.items():
            inject_group(flux, options, group)
    count = {
        group: sum(v.numel() for name, v in flux.named_parameters() if name.endswith(f".{group}.weight"))
        for group in wanted
    }
    assert count["a"] == 14_487_808
    assert count["a"] + count["b"] == 43_463_424
    assert count["person"] + count["garment"] == 39_690_240


# -- what the sheet asks to check ----------------------------------------------------------------------------


def test_a_fresh_lora_equals_the_plain_model_with_the_same_streams(dit, batch):
    plain = predict(module_of(dit), batch)
    adapters = {"person": LoraOptions(2, targets=LAYERS), "garment": LoraOptions(4, targets=LAYERS)}
    module = module_of(dit, adapters=adapters)
    module.prepare()
    assert torch.equal(predict(module, batch), plain)
    assert {n.split(".")[-2] for n, p in dit.named_parameters() if p.requires_grad} == {"person", "garment"}


def test_without_conditions_it_is_the_plain_model(dit, batch):
    module = module_of(dit, keep_known=False)
    bare = predict(module, batch, {"person": module.condition(batch)["conditions"]["person"]})
    torch.manual_seed(3)
    x_t = torch.randn(batch["person"].shape)
    groups, looks = module.formulation.groups(dit, x_t, torch.full((2,), 700.0), {}, {})
    alone = forward_groups(dit, groups, looks)["target"]
    assert torch.equal(alone, dit(x_t, torch.full((2,), 700.0)).sample)
    assert not torch.equal(alone, bare)


def test_a_lora_acts_on_its_own_group_only(dit, batch):
    plain_module = module_of(dit)
    seen = plain_module.condition(batch)["conditions"]
    full = predict(plain_module, batch, seen)
    without = predict(plain_module, batch, {k: v for k, v in seen.items() if k != "garment"})
    dit.requires_grad_(False)
    inject_group(dit, LoraOptions(4, targets=LAYERS), "garment")
    awake_only = [p for n, p in dit.named_parameters() if "lora_B" in n]
    for parameter in awake_only:
        torch.nn.init.normal_(parameter)
    # its group is not there, or nobody names it
    assert torch.equal(
        predict(plain_module, batch, {k: v for k, v in seen.items() if k != "garment"}), without
    )
    assert torch.equal(predict(plain_module, batch, seen, {}), full)
    # the target looks at it
    assert not torch.allclose(predict(plain_module, batch, seen), full)
    # a garment that the target may not look at changes nothing, whatever its LoRA
    x_t, timestep = torch.randn(2, 3, 16, 12), torch.full((2,), 700.0)
    groups, looks = plain_module.formulation.groups(dit, x_t, timestep, seen, {"garment": "garment"})
    cut = {**looks, "target": ("target", "person")}
    with_garment = forward_groups(dit, groups, cut)["target"]
    left_out = forward_groups(dit, groups[:2], {"person": ("person",)})["target"]
    torch.testing.assert_close(with_garment, left_out, atol=2e-6, rtol=0)


@pytest.mark.parametrize("family", ["native", "flux"])
def test_a_cached_run_equals_an_uncached_one(dit, batch, family):
    from polydit.core.diffusion.samplers import sample

    text = None
    if family == "native":
        network, formulation = dit, TokenGroupFormulation(16, 12)
        size = (2, 3, 16, 12)
    else:
        torch.manual_seed(0)
        network = adapt_transformer(
            awake(FluxTransformer2DModel(in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8,
                num_attention_heads=2, joint_attention_dim=12, pooled_projection_dim=8, guidance_embeds=True,
                axes_dims_rope=(2, 2, 4)))
        )  # fmt: skip
        formulation, size = TokenGroupFormulation(64, 48), (2, 4, 8, 6)
        text = {"encoder_hidden_states": torch.randn(2, 3, 12), "pooled_projections": torch.randn(2, 8)}
    model = getattr(network, "transformer", network)
    for group, rank in (("person", 2), ("garment", 4)):
        inject_group(model, LoraOptions(rank, targets="attention"), group)
    awake(model)
    conditions = {"person": torch.randn(size), "garment": torch.randn(size)}
    parameterization = Objective()
    cache = KeyValueCache()
    assert formulation.can_cache(network)

    def run(cache):
        def denoise(x_t, timestep):
            return formulation.predict(
                network, x_t, timestep, conditions, parameterization, text, None, cache
            )

        with torch.no_grad():
            return sample(denoise, torch.ones(size), parameterization, 4)

    plain, cached = run(None), run(cache)
    assert cache.runs == 2
    assert (plain - cached).abs().max() < 1e-5 * max(1.0, float(plain.abs().max()))


def test_where_the_groups_stand(dit, batch):
    formulation = TokenGroupFormulation(16, 12)
    groups, looks = formulation.groups(dit, batch["person"], torch.zeros(2), batch, {})
    ids = {group.name: group.position.ids((4, 3))[:, 1:] for group in groups}
    assert torch.equal(ids["person"], ids["target"])
    assert torch.equal(ids["garment"] - ids["target"], torch.tensor([0.0, 3.0]).expand(12, 2))
    assert [float(torch.as_tensor(group.timestep).max()) for group in groups[1:]] == [0, 0]
    assert looks == {"person": ("person",), "garment": ("garment",)}


# -- conditions ----------------------------------------------------------------------------------------------


def test_what_is_known_comes_back_exactly_and_nothing_else_does(dit, batch):
    answer = predict(module_of(dit), batch)
    outside = batch["mask"].expand_as(answer) == 0
    assert torch.equal(answer[outside], batch["person"][outside])
    assert not torch.allclose(answer[~outside], batch["person"][~outside])


def test_the_network_does_not_see_what_is_under_the_mask(dit, batch):
    module = module_of(dit)
    other = {**batch, "person": torch.where(batch["mask"] > 0, torch.zeros(()), batch["person"])}
    assert torch.equal(predict(module, batch), predict(module, other))


def test_training_leaves_the_garment_out_at_times(dit, batch):
    module = module_of(dit, drop_garment=0.5).train()
    torch.manual_seed(0)
    gone = torch.stack(
        [module.condition(batch)["conditions"]["garment"].flatten(1).abs().sum(1) == 0 for _ in range(40)]
    )
    assert 20 < int(gone.sum()) < 60
    module.eval()
    assert torch.equal(module.condition(batch)["conditions"]["garment"], batch["garment"])


def test_the_time_shift_of_training_is_that_of_the_pipeline(dit):
    assert shift_of(Terminal(Shifted(shift=4.0), 0.5)) == 4
    module = module_of(dit)
    module.objective.timesteps = Terminal(Shifted(shift=4.0), 0.5)
    assert module.build_pipeline().scheduler.config.shift == 4


# -- a run ---------------------------------------------------------------------------------------------------


def write_config(path, adapters=None, **changes):
    settings = yaml.safe_load((CONFIGS / "small.yaml").read_text())
    made = settings["model"]["init_args"]
    made["backbone"]["init_args"] = {**SMALL, "attention": "independent"}
    made |= {
        "height": 16,
        "width": 12,
        "steps": 2,
        "init_weights": None,
        "adapters": adapters or {},
        "ema": None,
        **changes,
    }
    data = {
        "height": 16,
        "width": 16,
        "corpus": None,
        "distinct": 4,
        "held_out": 2,
        "batch_size": 2,
        "num_workers": 0,
    }
    made["width"] = 16
    made["backbone"]["init_args"]["input_size"] = [16, 16]
    settings["data"]["init_args"] = data
    settings["trainer"] = {"max_steps": 2, "accelerator": "cpu", "devices": 1, "logger": False}
    path.write_text(yaml.safe_dump(settings))
    return str(path)


def test_base_loras_resume_and_export(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quietly = ["--pictures", "false", "--trainer.limit_val_batches", "0"]

    def fit(name, config, *more):
        assert main(["virtual-try-on", "fit", "--config", config, "--name", name, *quietly, *more]) == 0

    fit("base", write_config(tmp_path / "base.yaml"))
    home = tmp_path / "runs/virtual_try_on"
    before = load_file(home / "base/pipeline/transformer/diffusion_pytorch_model.safetensors")

    adapters = {
        "person": {"rank": 2, "targets": LAYERS}, "garment": {"rank": 4, "targets": [r"blocks\.\d+\.attn\..*"]}
    }  # fmt: skip
    config = write_config(tmp_path / "loras.yaml", adapters, init_weights=str(home / "base/pipeline"))
    fit("loras", config)
    pipe = polydit.load(home / "loras/pipeline")
    after = load_file(home / "loras/pipeline/transformer/diffusion_pytorch_model.safetensors")
    assert before.keys() == after.keys()  # the plain transformer, as it was
    assert all(torch.equal(before[name], value) for name, value in after.items())
    files = {f.stem: load_file(f) for f in (home / "loras/pipeline/adapters").iterdir()}
    assert files.keys() == {"person", "garment"}
    assert all(any(v.abs().sum() > 0 for n, v in file.items() if "lora_B" in n) for file in files.values())
    assert {v.shape[0] for n, v in files["garment"].items() if "lora_A" in n} == {4}

    last = home / "loras/checkpoints/last.ckpt"
    fit("more", config, "--ckpt_path", str(last), "--trainer.max_steps", "3", "--export", "false")
    assert read_checkpoint(home / "more/checkpoints/last.ckpt")["global_step"] == 3
    words = ["--license", "apache-2.0", "--data-source", "drawn"]
    assert main(["virtual-try-on", "export", "--ckpt_path", str(last), "--output", "again", *words]) == 0
    again = polydit.load("again")
    generator = torch.Generator().manual_seed(0)
    picture, mask = torch.rand(1, 3, 16, 16, generator=generator) * 2 - 1, torch.ones(1, 1, 16, 16)
    one, two = (
        p.generate(picture, picture.flip(-1), mask, generator=torch.Generator().manual_seed(5))
        for p in (pipe, again)
    )
    assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"adapters": {"shoe": LoraOptions()}},
            "'shoe' is no group of tokens; there are target, person, garment",
        ),
        ({"garment_place": "above"}, "garment_place: 'above' is unknown"),
        ({"attention": "none"}, "attention: 'none' is unknown"),
        ({"drop_garment": 1.0}, "drop_garment 1.0"),
        ({"adapter": LoraOptions()}, "use --model.adapters"),
    ],
)
def test_settings_that_do_not_fit(dit, options, message):
    with pytest.raises(PolyditError, match=message):
        module_of(dit, **options)


def test_known_pixels_need_clean_predictions(dit):
    with pytest.raises(PolyditError, match="keep_known: the network answers velocity"):
        TokenGroupTryOn(dit, Objective(), keep_known=True)


def test_loras_need_weights_under_them(dit):
    module = module_of(dit, adapters={"garment": LoraOptions(2, targets=LAYERS)})
    with pytest.raises(PolyditError, match="LoRAs need trained weights under them"):
        module.setup("fit")


def test_adapters_can_be_switched_for_a_table_of_memory(dit):
    ranks = {"garment": LoraOptions(2, targets=LAYERS), "person": LoraOptions(4, targets=LAYERS)}
    module = module_of(dit, adapters=ranks)
    assert module.switch_adapters(True) == "--model.adapters.garment.rank 2 --model.adapters.person.rank 4"
    assert module.switch_adapters(False) == ""
    module.prepare()
    assert all(parameter.requires_grad for parameter in module.backbone.parameters())
    assert module_of(dit).switch_adapters(True) is None  # the config has no LoRA
