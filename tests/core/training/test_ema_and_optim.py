"""The formulas of the average, the schedule and the parameter groups."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from toy import Toy

from polydit.core.backbones import DiT
from polydit.core.training import EmaOptions, OptimizerOptions
from polydit.core.training.ema import EMA, power_exponent
from polydit.core.training.optim import build_optimizer, learning_rate_factor, parameter_groups


@pytest.mark.parametrize(("width", "exponent"), [(0.05, 16.97), (0.10, 6.94), (0.15, 3.56)])
def test_power_exponent_of_published_widths(width, exponent):
    assert power_exponent(width) == pytest.approx(exponent, abs=6e-3)


@pytest.mark.parametrize("width", [0.0, 0.3, -1.0])
def test_impossible_widths_are_refused(width):
    with pytest.raises(ValueError, match="sigma_rel"):
        power_exponent(width)


class StandIn:
    """What the callback asks of a trainer."""

    def __init__(self) -> None:
        self.global_step = 0


def average(options: EmaOptions, values: list[float]) -> float:
    """The average after the weight took these values, one optimiser step each."""
    module = nn.Linear(1, 1, bias=False)
    module.weight.data.fill_(100.0)  # the start; a power average must forget it entirely
    callback, trainer = EMA(options), StandIn()
    callback.on_fit_start(trainer, module)
    for value in values:
        module.weight.data.fill_(value)
        trainer.global_step += 1
        callback.on_train_batch_end(trainer, module, None, None, 0)
    return callback.average["weight"].item()


def test_power_average_is_the_power_function_average():
    """a(N) = sum of t^gamma x(t) over the sum of t^gamma, up to the discrete step."""
    values = [math.sin(0.003 * i) + 2 for i in range(1, 2001)]
    gamma = power_exponent(0.1)
    # the weight of x(n) is beta's telescoping product: (n/N)^(g+1) - ((n-1)/N)^(g+1)
    weights = [(n / 2000) ** (gamma + 1) - ((n - 1) / 2000) ** (gamma + 1) for n in range(1, 2001)]
    expected = sum(w * v for w, v in zip(weights, values, strict=True))
    assert average(EmaOptions(sigma_rel=0.1), values) == pytest.approx(expected, rel=1e-4)


def test_exponential_average_without_warmup():
    values = [3.0, -1.0, 5.0]
    expected = 100.0
    for value in values:
        expected = 0.9 * expected + 0.1 * value
    assert average(EmaOptions(decay=0.9, warmup=False), values) == pytest.approx(expected, rel=1e-6)


def test_warmup_forgets_the_start_and_ends_at_the_decay():
    options = EmaOptions(decay=0.99)
    assert options.decay_at(1) == pytest.approx(2 / 11)
    assert options.decay_at(10_000) == 0.99
    assert average(options, [1.0] * 60) == pytest.approx(1.0, abs=1e-3)
    assert average(EmaOptions(decay=0.99, warmup=False), [1.0] * 60) > 50


@pytest.mark.parametrize("options", [{"sigma_rel": 0.1}, {"decay": 0.98, "warmup": False}])
def test_rarer_updates_forget_as_fast(options):
    values = [1.0] * 200 + [2.0] * 200
    often, rarely = (average(EmaOptions(**options, every=every), values) for every in (1, 4))
    assert rarely == pytest.approx(often, abs=0.02)


def test_average_of_a_bfloat16_model_is_kept_in_float32():
    module = nn.Linear(2, 2).bfloat16()
    callback, trainer = EMA(EmaOptions(decay=0.999, warmup=False)), StandIn()
    callback.on_fit_start(trainer, module)
    before = module.weight.detach().float().clone()
    module.weight.data += 1.0
    trainer.global_step = 1
    callback.on_train_batch_end(trainer, module, None, None, 0)
    moved = callback.average["weight"] - before
    torch.testing.assert_close(moved, torch.full((2, 2), 1e-3), atol=1e-5, rtol=0.01)
    raw = module.weight.detach().clone()
    callback.put_average(module)
    assert not torch.equal(module.weight, raw)
    callback.put_raw(module)
    assert torch.equal(module.weight, raw)
    torch.testing.assert_close(callback.average["weight"] - before, moved)


def test_frozen_weights_are_not_averaged():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[0].requires_grad_(False)
    callback = EMA()
    callback.on_fit_start(StandIn(), module)
    assert set(callback.average) == {"1.weight", "1.bias"}


# -- schedule ------------------------------------------------------------------------------------------------


def test_warmup_is_linear_and_starts_above_zero():
    options = OptimizerOptions(warmup_steps=4, schedule="constant")
    assert [learning_rate_factor(options, step, 0.5) for step in range(6)] == pytest.approx(
        [0.2, 0.4, 0.6, 0.8, 1, 1]
    )


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1, 1, 1, 1, 1]),
        ("cosine", [1, 0.8535534, 0.5, 0.1464466, 0]),
        ("wsd", [1, 1, 1, 0.625, 0]),
    ],
)
def test_schedules(schedule, expected):
    options = OptimizerOptions(warmup_steps=0, schedule=schedule, decay_fraction=0.4)
    assert [learning_rate_factor(options, 100, p) for p in (0, 0.25, 0.5, 0.75, 1)] == pytest.approx(expected)


def test_schedule_ends_where_it_is_told_and_stays_there():
    options = OptimizerOptions(warmup_steps=0, min_lr_ratio=0.1)
    assert learning_rate_factor(options, 100, 1.0) == pytest.approx(0.1)
    assert learning_rate_factor(options, 100, 1.7) == pytest.approx(0.1)


# -- groups --------------------------------------------------------------------------------------------------


def test_groups_by_kind_and_tag():
    model = DiT(
        input_size=4, patch_size=2, in_channels=1, hidden_size=16, depth=1, num_heads=2, num_classes=3
    )
    model.blocks[0].mlp.fc1.weight.lr_scale = 0.5
    model.final_layer.linear.weight.no_weight_decay = True
    groups = {g["name"]: g for g in parameter_groups(model, OptimizerOptions(lr=1e-3, weight_decay=0.1))}
    assert {name: (g["lr"], g["weight_decay"]) for name, g in groups.items()} == {
        "no_decay": (1e-3, 0.0),
        "decay_x0.5": (5e-4, 0.1),
        "decay": (1e-3, 0.1),
    }

    def where(parameter: nn.Parameter) -> str:
        return next(n for n, g in groups.items() if any(p is parameter for p in g["params"]))

    assert where(model.label_embed.table.weight) == "no_decay"
    assert where(model.blocks[0].attn.qkv.bias) == "no_decay"
    assert where(model.final_layer.linear.weight) == "no_decay"
    assert where(model.blocks[0].attn.qkv.weight) == "decay"
    assert where(model.blocks[0].mlp.fc1.weight) == "decay_x0.5"
    count = sum(p.numel() for g in groups.values() for p in g["params"])
    assert count == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_optimizer_takes_the_options():
    model = Toy(nn.Linear(2, 2), optimizer=OptimizerOptions(lr=3e-4, betas=(0.8, 0.9), eps=1e-6))
    optimizer = build_optimizer(model, model.optimizer_options)
    assert optimizer.defaults["betas"] == (0.8, 0.9)
    assert optimizer.defaults["eps"] == 1e-6
    assert {g["lr"] for g in optimizer.param_groups} == {3e-4}
