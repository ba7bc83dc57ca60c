"""Equality with the published code of SiT, DiT and LightningDiT on recorded inputs and outputs.

tests/data/golden/<system>/meta.json says which commit produced them and how.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from polydit.core.backbones import load_official
from polydit.core.diffusion import (
    Guidance,
    GVPPath,
    LinearPath,
    Objective,
    Parameterization,
    guide,
    preset,
    sample,
    samplers,
)

GOLDEN = Path(__file__).parents[2] / "data" / "golden"
PATHS = {"linear": LinearPath(), "gvp": GVPPath()}
SIT_TIME = preset("sit").time


def read(system, name):
    meta = json.loads((GOLDEN / system / "meta.json").read_text())
    entry = next(entry for entry in meta["entries"] if entry["name"] == name)
    files = {kind: load_file(GOLDEN / system / file) for kind, file in entry["files"].items()}
    weights = entry.get("weights_of", name)
    config = next(entry for entry in meta["entries"] if entry["name"] == weights)["config"]
    state = load_file(GOLDEN / system / f"{weights}.weights.safetensors")
    model = load_official(system, {key: value.float() for key, value in state.items()}, **config)
    return SimpleNamespace(
        model=lambda x, t, y: model(x, t, y).sample,
        inputs=files["inputs"],
        outputs=files["outputs"],
        arguments=entry.get("arguments", {}),
        tolerance={"atol": entry["tolerance"]["atol"], "rtol": entry["tolerance"]["rtol"]},
    )


@pytest.fixture(scope="module", params=["linear", "gvp"])
def transport(request):
    golden = read("sit", f"transport_{request.param}")
    golden.path = PATHS[request.param]
    golden.t = SIT_TIME.project_time(golden.inputs["t"])
    golden.denoise = lambda x, t: golden.model(x, t, golden.inputs["y"])
    return golden


@pytest.mark.parametrize("quantity", ["alpha", "sigma"])
def test_sit_path(transport, quantity):
    close = {"atol": 1e-6, "rtol": 1e-6}
    ours, slope = (getattr(transport.path, name)(transport.t) for name in (quantity, f"d_{quantity}"))
    torch.testing.assert_close(ours, transport.outputs[f"{quantity}_t"].flatten(), **close)
    torch.testing.assert_close(-slope, transport.outputs[f"d_{quantity}_t"].flatten(), **close)


def test_sit_state_and_velocity(transport):
    data, noise = transport.inputs["x1_data"], transport.inputs["x0_noise"]
    x_t = transport.path.add_noise(data, noise, transport.t)
    torch.testing.assert_close(x_t, transport.outputs["x_t"], atol=1e-6, rtol=1e-6)
    target = Parameterization(transport.path, "velocity", SIT_TIME).target(data, noise, transport.t)
    torch.testing.assert_close(target, transport.outputs["velocity_target"], atol=1e-6, rtol=1e-6)


def test_sit_conversions(transport):
    parameterization = Parameterization(transport.path, "velocity", SIT_TIME)
    x_t, raw = transport.outputs["x_t"], transport.outputs["prediction"]
    for kind, name in (("score", "score_from_velocity"), ("epsilon", "noise_from_velocity")):
        ours = parameterization.read(raw, x_t, transport.t, kind)
        torch.testing.assert_close(ours, transport.outputs[name], **transport.tolerance)


@pytest.mark.parametrize(
    ("name", "prediction", "weighting"),
    [
        ("loss.velocity", "velocity", "none"),
        ("loss.noise", "epsilon", "none"),
        ("loss.noise.velocity_weighted", "epsilon", "velocity"),
        ("loss.noise.likelihood_weighted", "epsilon", "likelihood"),
        ("loss.score", "score", "none"),
        ("loss.score.velocity_weighted", "score", "velocity"),
        ("loss.score.likelihood_weighted", "score", "likelihood"),
    ],
)
def test_sit_losses(transport, name, prediction, weighting):
    objective = Objective(transport.path, prediction, weighting=weighting, time=SIT_TIME)
    out = objective(transport.denoise, transport.inputs["x1_data"], transport.inputs["x0_noise"], transport.t)
    torch.testing.assert_close(out.prediction, transport.outputs["prediction"], **transport.tolerance)
    torch.testing.assert_close(out.loss_per_sample, transport.outputs[name], **transport.tolerance)


@pytest.mark.parametrize("name", ["linear", "gvp"])
def test_sit_samplers(name, monkeypatch):
    golden = read("sit", f"samplers_{name}")
    parameterization = Parameterization(PATHS[name], "velocity", SIT_TIME)

    def denoise(x, t):
        return golden.model(x, t, golden.inputs["y"])

    def run(method, **options):
        with torch.no_grad():
            return sample(denoise, golden.inputs["init"], parameterization, method=method, **options)

    # Both samplers count points in time: one step less, and one more for SDE's last.
    ode = run("euler", steps=golden.arguments["ode"]["num_steps"] - 1)
    torch.testing.assert_close(ode, golden.outputs["ode_euler"], **golden.tolerance)

    draws = iter(golden.inputs["sde_noise"])
    monkeypatch.setattr(samplers, "draw_noise", lambda like, generator: next(draws))
    states = []
    options = golden.arguments["sde"]
    sde = run(
        "sde",
        steps=options["num_steps"],
        last_step=options["last_step_size"],
        noise_scale=options["diffusion_norm"],
        callback=lambda step: states.append(step.x_t),
    )
    torch.testing.assert_close(sde, golden.outputs["sde_euler"], **golden.tolerance)
    torch.testing.assert_close(states[0], golden.outputs["intermediate.sde_first_step"], **golden.tolerance)
    assert next(draws, None) is None  # every recorded draw was used


CASES = [
    ("dit", "main", None),
    ("sit", "model", None),
    *(
        ("lightningdit", name, interval)
        for name in ("published", "qknorm_rms", "layernorm_qknorm_wo_shift")
        for interval in (None, "on", "off")
    ),
]


@pytest.mark.parametrize(("system", "name", "interval"), CASES)
@pytest.mark.parametrize("doubled", [True, False], ids=["doubled", "separate"])
def test_official_guidance(system, name, interval, doubled):
    """forward_with_cfg: its first half is the guided branch, the second the same on three channels."""
    golden = read(system, name)
    time = preset(system).time
    half = golden.inputs["x"].shape[0] // 2
    x, timestep = golden.inputs["x"][:half], golden.inputs["cfg_t"][:half]
    labels, null = golden.inputs["cfg_y"][:half], golden.inputs["cfg_y"][half:]
    end = 1.0 if interval is None else 1 - golden.arguments[f"interval_start_{interval}"]
    guidance = Guidance(golden.arguments["cfg_scale"], channels=3, interval=(0.0, end))
    with torch.no_grad():
        if doubled:
            denoise = guidance.doubled(golden.model, {"y": labels}, {"y": null}, time)
        else:
            denoise = guidance.separate(
                lambda x, t: golden.model(x, t, labels), lambda x, t: golden.model(x, t, null), time
            )
        ours = denoise(x, timestep)
        unconditional = golden.model(x, timestep, null)
    expected = golden.outputs["forward_with_cfg" + ("" if interval is None else f"_interval_{interval}")]
    torch.testing.assert_close(ours, expected[:half], **golden.tolerance)
    second = torch.cat([ours[:, :3], unconditional[:, 3:]], dim=1)
    torch.testing.assert_close(second, expected[half:], **golden.tolerance)
    if interval is None:
        conditional = golden.model(x, timestep, labels)
        assert (guide(conditional, unconditional, 4.0) - ours)[:, 3:].abs().max() > 0.01
