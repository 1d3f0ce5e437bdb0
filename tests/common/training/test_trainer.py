import copy
import logging
from types import SimpleNamespace

import pytest
import torch

from common.errors import CheckpointError, TrainingError
from common.training.callbacks import Callback
from common.training.precision import Precision
from tests.common.training.toy import ToyModel, ToyTask, toy_batch, toy_batches, toy_config, toy_trainer


class Recorder(Callback):
    def __init__(self):
        self.events = []
        self.rates = []
        self.losses = []
        self.norms = []

    def on_train_start(self, trainer):
        self.events.append("start")

    def on_epoch_start(self, trainer):
        self.events.append(f"epoch {trainer.state.epoch}")

    def on_batch_end(self, trainer):
        self.rates.append(trainer.optimizer.param_groups[0]["lr"])
        self.losses.append(trainer.loss.item())
        if trainer.grad_norm is not None:
            self.norms.append((trainer.state.global_batch, trainer.grad_norm.item()))

    def on_log(self, trainer, values):
        self.events.append(f"log {trainer.state.batch} {','.join(values)}")

    def on_epoch_end(self, trainer):
        self.events.append("end of epoch")

    def on_train_end(self, trainer):
        self.events.append("end")


def fit(config, batches, **options):
    recorder = Recorder()
    trainer = toy_trainer(config, len(batches), [recorder], **options)
    trainer.fit(batches)
    return trainer, recorder


def test_fit_calls_hooks_in_order():
    _, recorder = fit(toy_config(END_EPOCH=1), toy_batches(2))
    assert recorder.events == [
        "start",
        "epoch 0",
        "log 1 Acc,ToyLoss",
        "log 2 Acc,ToyLoss",
        "end of epoch",
        "end",
    ]


def test_fit_takes_a_step_computed_by_hand():
    # outputs: 0.25, -0.5; errors -0.75, -0.5; d/dbias = mean(2 * error) = -1.25; lr 0.02
    trainer, recorder = fit(toy_config(END_EPOCH=1, MOMENTUM=0.0), toy_batches(1))
    assert recorder.losses == [pytest.approx((0.75**2 + 0.5**2) / 2)]
    assert trainer.model.linear.bias.item() == pytest.approx(0.25 + 0.02 * 1.25)
    weights = trainer.model.linear.weight[0].tolist()
    assert weights == pytest.approx([0.5 + 0.02 * (0.75 + 0.25), 0.5 + 0.02 * (-0.75 - 1.0)])


def test_accumulation_equals_larger_batch():
    batches = toy_batches(4)
    small, _ = fit(toy_config(GRAD_ACCUMULATE_STEPS=2, LR=0.01), batches)
    joined = [
        type(a)(**{**vars(a), "x": torch.cat([a.x, b.x]), "y": torch.cat([a.y, b.y])})
        for a, b in zip(batches[::2], batches[1::2], strict=True)
    ]
    large, _ = fit(toy_config(LR=0.02), joined)
    torch.testing.assert_close(small.model.state_dict(), large.model.state_dict(), rtol=1e-6, atol=1e-7)


def test_accumulation_divides_last_group_by_its_size():
    config = toy_config(GRAD_ACCUMULATE_STEPS=2, CLIP_GRAD_NORM=100.0, END_EPOCH=2, MOMENTUM=0.0)
    _, recorder = fit(config, toy_batches(3))
    assert [step for step, _ in recorder.norms] == [1, 2, 4, 5]
    # The third batch is a group of its own: its loss is not divided.
    alone = toy_trainer(toy_config(CLIP_GRAD_NORM=100.0, END_EPOCH=1), 3)
    first = toy_trainer(
        config.model_copy(update={"TRAIN": config.TRAIN.model_copy(update={"END_EPOCH": 1})}), 2
    )
    first.fit(toy_batches(2))
    alone.model.load_state_dict(first.model.state_dict())
    alone.fit(toy_batches(3)[2:])
    assert recorder.norms[1][1] == pytest.approx(alone.grad_norm.item(), rel=1e-6)


def test_fit_sets_triangle_learning_rates():
    config = toy_config(
        END_EPOCH=2, LR=0.05, GRAD_ACCUMULATE_STEPS=2, LR_SCHEDULE="triangle", WARMUP=True, WARMUP_STEPS=2
    )
    _, recorder = fit(config, toy_batches(4))
    # 4 steps: the first batch of a run shows f(0), step k uses f(k).
    assert recorder.rates == pytest.approx([0, 0.05, 0.05, 0.1, 0.1, 0.05, 0.05, 0])


def test_fit_weights_losses():
    class Weighted(ToyTask):
        @property
        def loss_weights(self):
            return {"loss": 0.5}

    _, recorder = fit(toy_config(END_EPOCH=1), toy_batches(1), task_class=Weighted)
    assert recorder.losses == [pytest.approx((0.75**2 + 0.5**2) / 4)]


def test_fit_resets_metrics_each_epoch():
    trainer, _ = fit(toy_config(END_EPOCH=2), toy_batches(3))
    assert trainer.metrics.state_dict()["ToyLoss"][1] == 3


def test_fit_ends_callbacks_after_an_error():
    class Broken(ToyTask):
        def losses(self, outputs, batch):
            raise KeyboardInterrupt

    recorder = Recorder()
    with pytest.raises(KeyboardInterrupt):
        toy_trainer(toy_config(), 1, [recorder], task_class=Broken).fit(toy_batches(1))
    assert recorder.events[-1] == "end"


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW"])
@pytest.mark.parametrize("stop_after", [2, 4, 6])
def test_resume_is_bit_exact(optimizer, stop_after):
    config = toy_config(
        END_EPOCH=2,
        OPTIMIZER=optimizer,
        LR_SCHEDULE="triangle",
        WARMUP=True,
        GRAD_ACCUMULATE_STEPS=2,
        WD=0.01,
    )
    saved = {}

    class Saver(Callback):
        def on_batch_end(self, trainer):
            if trainer.state.global_batch + 1 == stop_after:
                saved.update(copy.deepcopy(trainer.state_dict()))

    straight = toy_trainer(config, 4, [Saver()])
    straight.fit(toy_batches(4))
    resumed = toy_trainer(config, 4)
    resumed.load_state_dict(saved, "file", 0)
    # After the last batch of an epoch, its validation is still to come.
    assert (resumed.state.epoch, resumed.state.batch) == ((stop_after - 1) // 4, (stop_after - 1) % 4 + 1)
    resumed.fit(toy_batches(4))
    for name, tensor in straight.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name
    assert resumed.metrics.state_dict() == straight.metrics.state_dict()


class ScaledPrecision(Precision):
    """Scales the loss on a CPU, with an initial scale that overflows."""

    def __init__(self):
        super().__init__(torch.device("cpu"))
        self.scaled = True
        self._scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)


def scaled_trainer(config, callbacks=()):
    return toy_trainer(config, 4, callbacks, precision=ScaledPrecision())


def test_overflow_lowers_scale_and_keeps_schedule(caplog):
    config = toy_config(END_EPOCH=2, LR_SCHEDULE="triangle", WARMUP=True, WARMUP_STEPS=2)
    saved, recorder = [], Recorder()

    class Saver(Callback):
        def on_step_end(self, trainer):
            saved.append(copy.deepcopy(trainer.state_dict()))

    trainer = scaled_trainer(config, [Saver(), recorder])
    with caplog.at_level(logging.INFO):
        trainer.fit(toy_batches(4))
    # The gradients of the fourth batch are the largest.
    assert "step 4: the gradient overflowed, step skipped (1 so far)" in caplog.text
    assert (trainer.guard.num_skipped, trainer.precision.state_dict()["scale"]) == (2, 2.0**125)
    _, straight = fit(config, toy_batches(4))
    assert recorder.rates == straight.rates[:4] + straight.rates[3:7]
    resumed = scaled_trainer(config)
    resumed.load_state_dict(saved[3], "file", 0)
    resumed.fit(toy_batches(4))
    assert resumed.guard.num_skipped == 2
    assert resumed.precision.state_dict() == trainer.precision.state_dict()
    assert torch.equal(resumed.model.linear.weight, trainer.model.linear.weight)


@pytest.mark.parametrize(
    ("finished", "batches", "expected"), [(4, 8, 4), (4, 4, 2), (6, 16, 12), (6, 7, 4), (8, 3, 3), (0, 3, 0)]
)
def test_align_to_loader_with_other_number_of_batches(finished, batches, expected, caplog):
    trainer = toy_trainer(toy_config(GRAD_ACCUMULATE_STEPS=2), 8)
    trainer.state.batch, trainer.state.batches_per_epoch = finished, 8
    trainer.state.align_to_loader(batches)
    assert (trainer.state.batch, trainer.state.batches_per_epoch) == (expected, batches)
    assert ("an epoch had 8 batches" in caplog.text) == (finished > 0 and batches != 8)


def test_align_to_loader_with_other_accumulation(caplog):
    trainer = toy_trainer(toy_config(GRAD_ACCUMULATE_STEPS=2, END_EPOCH=1), 12)
    trainer.state.batch, trainer.state.batches_per_epoch = 6, 12
    resumed = toy_trainer(toy_config(GRAD_ACCUMULATE_STEPS=4, END_EPOCH=1), 12)
    resumed.load_state_dict(trainer.state_dict(), "file", 0)
    resumed.state.align_to_loader(12)
    assert (resumed.state.batch, resumed.state.accumulation_group()) == (4, (4, False))
    assert "12 batches, 2 per step; now 12, 4 per step: resuming at batch 4" in caplog.text


def test_load_state_dict_of_reference_checkpoint():
    trainer = toy_trainer(toy_config(), 2)
    old = {key: trainer.state_dict()[key] for key in ("state_dict", "optimizer")}
    old["state_dict"] = {f"module.{name}": tensor for name, tensor in old["state_dict"].items()}
    resumed = toy_trainer(toy_config(), 2)
    resumed.load_state_dict(old, "old.model", 1)
    assert (resumed.state.epoch, resumed.state.batch) == (1, 0)


def test_load_state_dict_rejects_foreign_file():
    with pytest.raises(CheckpointError, match=r"x\.bin: not a training checkpoint: it has no optimizer"):
        toy_trainer(toy_config(), 1).load_state_dict({"state_dict": {}}, "x.bin", 0)


def test_fit_passes_epoch_and_position_to_the_sampler():
    calls = []

    class Loader(list):
        batch_sampler = SimpleNamespace(set_epoch=lambda epoch, start: calls.append((epoch, start)))

        def __iter__(self):
            return iter(toy_batches(2)[calls[-1][1] :])

    trainer = toy_trainer(toy_config(END_EPOCH=2), 2)
    trainer.state.batch, trainer.state.batches_per_epoch = 1, 2
    trainer.fit(Loader(toy_batches(2)))
    assert calls == [(0, 1), (1, 0)]


def test_fit_logs_progress(caplog):
    with caplog.at_level(logging.INFO):
        fit(toy_config(END_EPOCH=4), toy_batches(1), model=ToyModel())
    assert [record.message for record in caplog.records if "PROGRESS" in record.message] == [
        "PROGRESS: 0.00%",
        "PROGRESS: 25.00%",
        "PROGRESS: 50.00%",
        "PROGRESS: 75.00%",
    ]


class Sums(ToyTask):
    """Two losses. Only samples with a positive label count for the second, whose mean adds 0.5 to their number."""

    @property
    def label_count_eps(self):
        return {"part": 0.5}

    def losses(self, outputs, batch):
        counted = batch.y > 0.5
        squares = (outputs - batch.y).square()
        return {"loss": squares.mean(), "part": (squares * counted).sum() / (counted.sum() + 0.5)}

    def label_counts(self, batch):
        return {"loss": batch.num_samples, "part": (batch.y > 0.5).sum()}


SPLIT_CONFIG = toy_config(
    END_EPOCH=2,
    GRAD_ACCUMULATE_STEPS=2,
    CLIP_GRAD_NORM=0.5,
    LOSS_LOGGERS=[["loss", "ToyLoss"], ["part", "PartLoss"]],
)


def in_microbatches(batch):
    """Its rows 2 and 3, 1, and 0."""
    rows = zip(batch.x.tolist(), batch.y.tolist(), strict=True)
    singles = list(rows)
    groups = [singles[2:], singles[1:2], singles[:1]]
    return tuple(toy_batch(*map(list, zip(*group, strict=True))) for group in groups)


def rows_of_four(count):
    return [
        toy_batch([[i + 1.0, -1.0], [0.5, i - 2.0], [0.3, 0.1 * i], [-1.0, 1.0]], [[1.0], [0.0], [0.7], [i]])
        for i in range(count)
    ]


def test_microbatches_equal_whole_batch():
    batches = rows_of_four(3)
    whole, recorded = fit(SPLIT_CONFIG, batches, task_class=Sums)
    parts, recorded_parts = fit(SPLIT_CONFIG, [in_microbatches(batch) for batch in batches], task_class=Sums)
    assert recorded_parts.losses == pytest.approx(recorded.losses, rel=1e-6)
    assert [step for step, _ in recorded_parts.norms] == [1, 2, 4, 5]
    assert recorded_parts.events == recorded.events
    for (_, norm), (_, expected) in zip(recorded_parts.norms, recorded.norms, strict=True):
        assert norm == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(parts.model.state_dict(), whole.model.state_dict(), rtol=1e-6, atol=1e-7)
    for name, values in whole.metrics.state_dict().items():
        assert parts.metrics.state_dict()[name] == pytest.approx(values, rel=1e-6), name


def test_errors_name_the_microbatch():
    batch = in_microbatches(rows_of_four(1)[0])
    spoilt = (batch[0], toy_batch([[1.0, 1.0]], [[float("nan")]], index=[5]), batch[2])
    with pytest.raises(TrainingError, match=r"step 1, microbatch 2 of 3: loss nan; records toy-5\n") as error:
        fit(toy_config(), [spoilt])
    assert "microbatch 1" not in str(error.value)

    class Greedy(ToyTask):
        def losses(self, outputs, batch):
            if batch.num_samples == 2:
                raise torch.OutOfMemoryError("full")
            return super().losses(outputs, batch)

    with pytest.raises(TrainingError, match=r"microbatch 1 of 3: out of memory with a batch of index \(2,\)"):
        fit(toy_config(), [batch], task_class=Greedy)
