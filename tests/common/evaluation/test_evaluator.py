import pytest
import torch

from common.errors import TrainingError
from common.evaluation.evaluator import evaluate, predict
from common.training.precision import Precision
from tests.common.training.toy import ToyModel, ToyTask, toy_batch, toy_config

CPU = torch.device("cpu")
# Outputs 0.25 and -0.5.
BATCHES = [toy_batch([[0.5, -0.5]], [[0.25]], index=[1]), toy_batch([[-1.0, -0.5]], [[0.5]], index=[0])]


def test_metrics_of_a_split():
    task = ToyTask(toy_config())
    model = task.build_model()
    assert evaluate(task, model, BATCHES, CPU) == {"Acc": 0.5}
    assert not model.training


def test_losses_where_the_task_validates_them():
    class WithLosses(ToyTask):
        validates_losses = True

    task = WithLosses(toy_config())
    values = evaluate(task, task.build_model(), BATCHES, CPU)
    assert list(values) == ["Acc", "ToyLoss"]
    assert values["ToyLoss"] == pytest.approx((0.0 + 1.0) / 2)


def test_a_loss_that_the_model_lacks_is_0():
    class Lacking(ToyTask):
        validates_losses = True

        def losses(self, outputs, batch):
            return {"another_loss": outputs.new_ones(())}

        def label_counts(self, batch):
            return {"loss": 0}

    task = Lacking(toy_config())
    assert evaluate(task, task.build_model(), BATCHES, CPU)["ToyLoss"] == 0


def test_predictions_come_in_dataset_order():
    task = ToyTask(toy_config())
    assert predict(task, task.build_model(), BATCHES, CPU) == [
        {"id": "toy-0", "score": pytest.approx(-0.5)},
        {"id": "toy-1", "score": pytest.approx(0.25)},
    ]


def test_a_sample_too_many_is_our_mistake():
    task = ToyTask(toy_config())
    with pytest.raises(AssertionError, match="every sample exactly once"):
        predict(task, task.build_model(), [*BATCHES, BATCHES[0]], CPU)


def test_metrics_of_half_precision_are_computed_in_single_precision():
    class Formats(ToyTask):
        def metrics(self, outputs, batch, split):
            formats.append(outputs.dtype)
            return super().metrics(outputs, batch, split)

    formats = []
    task = Formats(toy_config())
    evaluate(task, task.build_model(), BATCHES, CPU, precision=Precision(CPU, "bf16"))
    assert formats == [torch.float32] * 2


def test_out_of_memory_names_the_batch():
    class Greedy(ToyModel):
        def forward(self, batch):
            raise torch.OutOfMemoryError("no memory")

    with pytest.raises(TrainingError, match=r"evaluation: out of memory with a batch of index \(1,\)"):
        evaluate(ToyTask(toy_config()), Greedy(), BATCHES, CPU)
