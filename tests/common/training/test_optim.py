import copy

import pytest
import torch
from torch import nn

from common.config.sections import TrainConfig
from common.errors import ConfigError
from common.training.optim import (
    AdamW,
    PlateauSchedule,
    Schedule,
    build_optimizer,
    build_schedule,
    effective_batch_size,
    parameter_groups,
    step_factor,
    triangle_factor,
)


def test_adamw_matches_reference_values():
    parameter = nn.Parameter(torch.tensor([1.0, -0.5], dtype=torch.float64))
    optimizer = AdamW([parameter], lr=0.01, weight_decay=0.1)
    expected = [
        [0.989013158117, -0.489510157953],
        [0.978856428397, -0.482326871727],
        [0.975301330774, -0.476670556004],
    ]
    for gradient, values in zip([[0.1, -2.0], [0.3, 0.0], [-0.2, 1e-4]], expected, strict=True):
        parameter.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
        assert parameter.tolist() == pytest.approx(values, abs=1e-11)


def test_adamw_groups_tensors_by_step():
    def run(late_only):
        early, late = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
        optimizer = AdamW([late] if late_only else [early, late], lr=0.1, weight_decay=0.01)
        for step in range(4):
            early.grad = torch.full((2,), 0.3)
            late.grad = torch.full((3,), 0.5) if step >= 2 else None
            optimizer.step()
        return late

    assert torch.equal(run(late_only=True), run(late_only=False))


def test_adamw_state_dict_round_trip():
    def step(parameter, optimizer):
        parameter.grad = parameter.detach() * 0.5
        optimizer.step()

    straight = nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = AdamW([straight], lr=0.1)
    step(straight, optimizer)
    resumed = nn.Parameter(straight.detach().clone())
    other = AdamW([resumed], lr=0.1)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(straight, optimizer)
    step(resumed, other)
    assert torch.equal(straight, resumed)


@pytest.fixture
def parameters():
    return {name: nn.Parameter(torch.zeros(1)) for name in ("vlbert.a", "vlbert.b", "cnn.a", "fc")}


def test_parameter_groups_follow_lr_mult(parameters):
    parameters["cnn.a"].requires_grad = False
    groups = parameter_groups(parameters, (("vlbert", 0.5), ("cnn", 2.0)), 0.1)
    assert [len(group["params"]) for group in groups] == [2, 1, 1]
    assert [group["lr"] for group in groups] == [0.05, 0.2, 0.1]
    assert [group["initial_lr"] for group in groups] == [0.05, 0.2, 0.1]


def test_parameter_groups_reject_overlapping_lr_mult(parameters):
    with pytest.raises(ConfigError, match=r"LR_MULT.*vlbert\.a.*'vlbert' and '\.a'"):
        parameter_groups(parameters, (("vlbert", 1.0), (".a", 1.0)), 0.1)


def test_parameter_groups_warn_about_unmatched_lr_mult(parameters, caplog):
    groups = parameter_groups(parameters, (("visual", 2.0),), 0.1)
    assert [len(group["params"]) for group in groups] == [0, len(parameters)]
    assert groups[0]["lr"] == 0.2
    assert "LR_MULT: no parameter name contains 'visual'" in caplog.text


def test_build_optimizer_scales_lr_by_batch_size(parameters):
    train = TrainConfig(LR=7e-5, BATCH_IMAGES=4, GRAD_ACCUMULATE_STEPS=4, MOMENTUM=0.5, WD=0.25)
    assert effective_batch_size(train, 4) == 64
    optimizer = build_optimizer(train, parameters, 4)
    assert isinstance(optimizer, torch.optim.SGD)
    group = optimizer.param_groups[0]
    assert group["lr"] == pytest.approx(4.48e-3)
    assert (group["momentum"], group["weight_decay"]) == (0.5, 0.25)


@pytest.mark.parametrize(("name", "kind"), [("Adam", torch.optim.Adam), ("AdamW", AdamW)])
def test_build_optimizer_by_name(parameters, name, kind):
    optimizer = build_optimizer(TrainConfig(OPTIMIZER=name, WD=0.5), parameters, 1)
    assert type(optimizer) is kind
    assert optimizer.param_groups[0]["weight_decay"] == 0.5


def test_triangle_factor():
    factors = [triangle_factor(k, 4, 10) for k in range(12)]
    assert factors == pytest.approx([0, 0.25, 0.5, 0.75, 1, 5 / 6, 4 / 6, 0.5, 2 / 6, 1 / 6, 0, 0])
    assert triangle_factor(0, 0, 10) == 1


@pytest.mark.parametrize(
    ("start", "method", "ramp"),
    [
        (0.0, "linear", [0.25, 0.5, 0.75]),
        (1 / 3, "linear", [0.5, 2 / 3, 5 / 6]),
        (1 / 3, "constant", [1 / 3] * 3),
    ],
)
def test_step_factor(start, method, ramp):
    factors = [step_factor(k, [6, 9], 0.1, 4, start, method) for k in range(1, 11)]
    assert factors == pytest.approx([*ramp, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01])


def optimizer_with(lr):
    return torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": lr, "initial_lr": lr}])


def test_schedule_sets_the_rate_of_a_step():
    optimizer = optimizer_with(2.0)
    schedule = Schedule(optimizer, lambda update: 1 / (1 + update))
    assert optimizer.param_groups[0]["lr"] == 2.0
    schedule.apply(3)
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_build_schedule_converts_epochs_to_steps():
    optimizer = optimizer_with(1.0)
    train = TrainConfig(LR_SCHEDULE="step", LR_STEP=(1.5,), LR_FACTOR=0.1)
    schedule = build_schedule(train, optimizer, 3)
    rates = []
    for update in range(1, 6):
        schedule.apply(update)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1, 1, 1, 0.1, 0.1])
    triangle = build_schedule(
        TrainConfig(LR_SCHEDULE="triangle", END_EPOCH=2, WARMUP=True, WARMUP_STEPS=2), optimizer, 3
    )
    triangle.apply(5)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.25)


def test_plateau_schedule_decays_and_resumes():
    optimizer = optimizer_with(1.0)
    schedule = PlateauSchedule(optimizer, 0.1)
    rates = []
    for result in [float("nan"), 0.5, 0.5, 0.4]:
        schedule.after_validation(result)
        schedule.apply(7)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1, 1, 1, 0.1])
    resumed = optimizer_with(1.0)
    PlateauSchedule(resumed, 0.1).load_state_dict(schedule.state_dict())
    assert resumed.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
    # The configuration may ask for another rate and decay than the run that wrote the state.
    changed = optimizer_with(4.0)
    schedule_on = PlateauSchedule(changed, 0.5)
    schedule_on.load_state_dict(schedule.state_dict())
    assert changed.param_groups[0]["lr"] == pytest.approx(0.4)
    for _ in range(4):  # two of them to cool down
        schedule_on.after_validation(0.4)
    assert changed.param_groups[0]["lr"] == pytest.approx(0.2)
