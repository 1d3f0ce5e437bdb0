import pytest
import torch

from common.errors import TrainingError
from common.evaluation.evaluator import evaluate, predict
from common.training.precision import Precision
from tests.common.training.toy import ToyModel, ToyTask, toy_batch, toy_config

CPU = torch.device("cpu")
# Outputs 0.25 and -0.5.
BATCHES = [toy_batch([[0.5, -0.5]], [[0.25]], index=[1]), toy_batch([[-1.0, -0.5]], [[0.5]], index=[0])]


class TaskWithLosses(ToyTask):
    validates_losses = True


class TaskWithoutItsLoss(TaskWithLosses):
    def losses(self, outputs, batch):
        return {"another_loss": outputs.new_ones(())}

    def label_counts(self, batch):
        return {"loss": 0}


@pytest.mark.parametrize(
    ("task_class", "expected"),
    [
        (ToyTask, {"Acc": 0.5}),
        (TaskWithLosses, {"Acc": 0.5, "ToyLoss": (0.0 + 1.0) / 2}),
        (TaskWithoutItsLoss, {"Acc": 0.5, "ToyLoss": 0}),
    ],
)
def test_evaluate_returns_metrics_and_validated_losses(task_class, expected):
    task = task_class(toy_config())
    model = task.build_model()
    values = evaluate(task, model, BATCHES, CPU)
    assert values == pytest.approx(expected)
    assert list(values) == list(expected)
    assert not model.training


def test_evaluate_computes_metrics_in_float32():
    class DtypeTask(ToyTask):
        def metrics(self, outputs, batch, split):
            dtypes.append(outputs.dtype)
            return super().metrics(outputs, batch, split)

    dtypes = []
    task = DtypeTask(toy_config())
    evaluate(task, task.build_model(), BATCHES, CPU, precision=Precision(CPU, "bf16"))
    assert dtypes == [torch.float32] * 2


def test_evaluate_names_the_batch_that_runs_out_of_memory():
    class Greedy(ToyModel):
        def forward(self, batch):
            raise torch.OutOfMemoryError("no memory")

    with pytest.raises(TrainingError, match=r"evaluation: out of memory with a batch of index \(1,\)"):
        evaluate(ToyTask(toy_config()), Greedy(), BATCHES, CPU)


def test_predict_returns_records_in_dataset_order():
    task = ToyTask(toy_config())
    assert predict(task, task.build_model(), BATCHES, CPU) == [
        {"id": "toy-0", "score": pytest.approx(-0.5)},
        {"id": "toy-1", "score": pytest.approx(0.25)},
    ]


def test_predict_rejects_a_repeated_sample():
    task = ToyTask(toy_config())
    with pytest.raises(AssertionError, match="every sample exactly once"):
        predict(task, task.build_model(), [*BATCHES, BATCHES[0]], CPU)
