import dataclasses
import math

import pytest
import torch

from common.distributed import process_group as distributed
from common.errors import TrainingError
from common.training import nonfinite
from common.training.callbacks import Callback
from common.training.nonfinite import MAX_CONSECUTIVE_SKIPS, NonFiniteGuard, check_finite
from common.training.step_monitor import LossRecord, describe_shapes, oom_context
from common.training.task import build_dataloader
from tests.common.distributed.processes import run_distributed
from tests.common.training.toy import ToyModel, ToyTask, toy_batch, toy_batches, toy_config, toy_trainer

NAN = math.nan


def nan_batches(*indices, count=4):
    """Batches, of which those at `indices` have a NaN label."""
    batches = toy_batches(count)
    for index in indices:
        batches[index] = toy_batch([[1.0, -1.0], [0.5, 1.0]], [[NAN], [0.0]], index=[7, 8])
    return batches


class Rates(Callback):
    def __init__(self):
        self.rates = []
        self.weights = []

    def on_step_end(self, trainer):
        self.rates.append(trainer.optimizer.param_groups[0]["lr"])
        self.weights.append(trainer.model.linear.weight.clone())


def test_fit_raises_before_stepping_on_nonfinite_loss():
    recorder = Rates()
    trainer = toy_trainer(toy_config(END_EPOCH=1), 4, [recorder])
    with pytest.raises(TrainingError) as error:
        trainer.fit(nan_batches(2))
    assert str(error.value).startswith(
        "the loss is not finite in\n  epoch 0, batch 2, step 3: loss nan; records toy-7, toy-8\n"
    )
    assert torch.equal(trainer.model.linear.weight, recorder.weights[-1])


def test_fit_names_only_the_nonfinite_batch_of_a_group():
    config = toy_config(END_EPOCH=1, GRAD_ACCUMULATE_STEPS=4)
    with pytest.raises(TrainingError, match="batch 1, step 1") as error:
        toy_trainer(config, 4).fit(nan_batches(1))
    assert "batch 0" not in str(error.value)


def test_fit_raises_on_infinite_gradient_of_finite_loss():
    class Root(ToyTask):
        def losses(self, outputs, batch):
            return {"loss": (outputs * 0).abs().sqrt().sum()}

    with pytest.raises(
        TrainingError, match=r"(?s)the gradient is not finite in.*loss 0; records toy-0, toy-1"
    ):
        toy_trainer(toy_config(), 1, task_class=Root).fit(toy_batches(1))


def test_skip_keeps_weights_and_schedule(caplog):
    config = toy_config(END_EPOCH=1, LR_SCHEDULE="triangle", WARMUP=True, WARMUP_STEPS=4, ON_NONFINITE="skip")
    skipping, straight = Rates(), Rates()
    trainer = toy_trainer(config, 4, [skipping])
    trainer.fit(nan_batches(1))
    assert "(1 so far; TRAIN.ON_NONFINITE: skip)" in caplog.text
    batches = toy_batches(4)
    toy_trainer(config, 4, [straight]).fit([batches[0], batches[2], batches[3], batches[1]])
    assert [skipping.rates[i] for i in (0, 2, 3)] == straight.rates[:3]
    assert torch.equal(skipping.weights[3], straight.weights[2])
    assert trainer.state_dict()["skipped"] == 1


def test_skip_restores_batch_norm_statistics():
    class Normed(ToyTask):
        def build_model(self):
            model = super().build_model()
            model.norm = torch.nn.BatchNorm1d(1)
            forward = model.forward
            model.forward = lambda batch: model.norm(forward(batch))
            return model

    config = toy_config(END_EPOCH=1, GRAD_ACCUMULATE_STEPS=2, ON_NONFINITE="skip")
    batches = toy_batches(6)
    batches[3] = dataclasses.replace(batches[3], x=torch.full_like(batches[3].x, NAN))
    counted = []
    for epoch in (batches, batches[:2] + batches[4:]):
        trainer = toy_trainer(config, len(epoch), task_class=Normed)
        trainer.fit(epoch)
        counted.append(trainer.state_dict()["state_dict"])
    assert counted[0]["norm.num_batches_tracked"] == 4
    assert all(torch.equal(value, counted[1][name]) for name, value in counted[0].items())


def test_skip_raises_after_too_many_in_a_row(monkeypatch):
    monkeypatch.setattr(nonfinite, "MAX_CONSECUTIVE_SKIPS", 3)
    config = toy_config(END_EPOCH=1, ON_NONFINITE="skip")
    toy_trainer(config, 4).fit(nan_batches(0, 1, 3))
    with pytest.raises(TrainingError, match="4 steps in a row were not finite"):
        toy_trainer(config, 4).fit(nan_batches(0, 1, 2, 3))


def one_rank_is_wrong():
    """What each rank says when a label of rank 1 is not a number, and the weights it then has."""
    said = []
    for policy in ("raise", "skip"):
        task = ToyTask(toy_config(END_EPOCH=1, ON_NONFINITE=policy))
        trainer = toy_trainer(task.config, 4, model=distributed.wrap_ddp(task.build_model()), processes=2)
        try:
            trainer.fit(nan_batches(2) if distributed.rank() else toy_batches(4))
        except TrainingError as error:
            said.append(str(error))
        said += [trainer.guard.num_skipped, trainer.model.module.linear.weight.tolist()]
    return said


@pytest.mark.dist
def test_all_ranks_report_the_nonfinite_rank(tmp_path):
    first, second = run_distributed(one_rank_is_wrong, tmp_path)
    assert first == second
    assert first[0].startswith("the loss is not finite in\n  rank 1, epoch 0, batch 2, step 3: loss nan;")
    assert "rank 0" not in first[0]
    assert first[1] == first[3] == 1
    assert all(map(math.isfinite, first[2][0] + first[4][0]))


CUDA = torch.device("cuda")
FINITE, INFINITE = (LossRecord("step 3", ("toy-0",), {"loss": torch.tensor(loss)}) for loss in (1.0, NAN))


def gpu_guard(**options):
    return NonFiniteGuard("raise", ToyModel(), CUDA, **options)


def test_guard_lets_the_loss_scale_handle_overflows():
    guard = gpu_guard(scaled=True)
    for _ in range(MAX_CONSECUTIVE_SKIPS):
        assert not guard.should_step(torch.tensor(math.inf), [FINITE])
    assert guard.num_skipped == MAX_CONSECUTIVE_SKIPS
    with pytest.raises(TrainingError, match="21 steps in a row were not finite"):
        guard.should_step(torch.tensor(math.inf), [FINITE])
    with pytest.raises(TrainingError, match="the loss is not finite"):
        gpu_guard(scaled=True).should_step(torch.tensor(NAN), [INFINITE])


class Event:
    def record(self):
        pass

    def synchronize(self):
        pass


def test_guard_on_gpu_reads_one_step_late(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", Event)
    guard = gpu_guard()
    assert guard.should_step(torch.tensor(NAN), [INFINITE])
    with pytest.raises(TrainingError, match="step 3: loss nan"):
        guard.should_step(torch.tensor(1.0), [FINITE])
    assert guard.should_step(torch.tensor(NAN), [INFINITE])
    with pytest.raises(TrainingError, match="step 3: loss nan"):
        guard.flush()
    guard.flush()


def test_state_dict_flushes_the_guard_first(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", Event)
    trainer = toy_trainer(toy_config(), 1)
    trainer.guard = gpu_guard()
    trainer.guard.should_step(torch.tensor(NAN), [INFINITE])
    with pytest.raises(TrainingError, match="the loss is not finite"):
        trainer.state_dict()


def test_state_dict_rejects_nonfinite_weights():
    trainer = toy_trainer(toy_config(), 1)
    trainer.model.linear.bias.data.fill_(math.inf)
    with pytest.raises(TrainingError, match=r"1 of 2 weights are not finite, for example linear\.bias"):
        trainer.state_dict()
    check_finite({"count": torch.ones(1, dtype=torch.int64)})


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("[...] can't allocate memory: 8 bytes")],
)
def test_fit_describes_the_batch_when_out_of_memory(error):
    class Greedy(ToyTask):
        def losses(self, outputs, batch):
            raise error

    with pytest.raises(TrainingError) as caught:
        toy_trainer(toy_config(), 1, task_class=Greedy).fit(toy_batches(1))
    text = str(caught.value)
    assert text.startswith("epoch 0, batch 0, step 1: out of memory with a batch of index (2,), ")
    for part in ("boxes (2, 4)", "num_boxes 2 up to 1", "text.lengths 2 up to 1", "x (2, 2)", str(error)):
        assert part in text


def test_oom_context_passes_other_errors():
    with pytest.raises(RuntimeError, match=r"^shapes$"), oom_context("here", toy_batches(1)[0]):
        raise RuntimeError("shapes")


def test_describe_shapes_of_loaded_batch():
    config = toy_config(BATCH_IMAGES=3).model_copy(update={"RNG_SEED": 0, "NUM_WORKERS_PER_GPU": 0})
    (batch, *_) = build_dataloader(ToyTask(config), "train")
    assert "im_info (3, 4)" in describe_shapes(batch)
