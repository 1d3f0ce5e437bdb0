import math

import pytest
import torch

from common.batch import Lengths
from common.training import metrics
from common.training.metrics import Metrics, Ratio


def value(ratio):
    return ratio.total.item() / ratio.count.item()


def test_accuracy_ignores_unlabeled_rows():
    logits = torch.tensor([[1.0, 2, 3, 0], [4, 3, 2, 1], [0, 0, 0, 0]])
    ratio = metrics.accuracy(logits, torch.tensor([2, 1, -1]))
    assert (ratio.total.item(), ratio.count.item()) == (1, 2)


def test_accuracy_takes_the_first_of_equal_logits():
    assert value(metrics.accuracy(torch.zeros(1, 3), torch.tensor([0]))) == 1


def test_soft_accuracy():
    logits = torch.tensor([[0.0, 3, 1], [5, 0, 0]])
    ratio = metrics.soft_accuracy(logits, torch.tensor([[0.3, 0.9, 0], [0, 1, 0]]))
    assert value(ratio) == pytest.approx(0.45)


def test_refcoco_metrics():
    logits = torch.tensor([[2, -1, 0.5, -10000], [-3, -0.2, -1, -2]])
    labels = torch.tensor([[1.0, 0, 1, -1], [0, 0, 1, 0]])
    real = labels >= 0
    assert value(metrics.region_accuracy(logits[real], labels[real], Lengths.of([3, 4]))) == 0.5
    assert value(metrics.cls_accuracy(logits, labels)) == pytest.approx(6 / 7)
    assert value(metrics.cls_pos_accuracy(logits, labels)) == pytest.approx(2 / 3)
    assert value(metrics.cls_pos_fraction(labels)) == pytest.approx(3 / 7)


def test_region_accuracy_uses_boxes_of_the_image():
    logits, labels = torch.tensor([-5.0, -4, 9, 8]), torch.tensor([0.0, 1, 1, 0])
    assert metrics.region_accuracy(logits, labels, Lengths.of([2, 1, 1])).total.item() == 2


def test_mvrc_accuracy_counts_only_distributions():
    logits = torch.tensor([[[1.0, 2], [3, 0], [0, 1]]])
    ratio = metrics.mvrc_accuracy(logits, torch.tensor([[[0.4, 0.6], [0, 0], [0.95, 0]]]))
    assert (ratio.total.item(), ratio.count.item()) == (1, 2)


def test_loss_meter_counts_batches_without_the_loss():
    accumulated = Metrics()
    like = torch.zeros(())
    accumulated.update({"L": metrics.loss_meter({"a": torch.tensor(3.0)}, "a", like)})
    accumulated.update({"L": metrics.loss_meter({}, "a", like)})
    assert accumulated.compute() == {"L": 1.5}


def test_metrics_update_and_reset():
    accumulated = Metrics()
    assert accumulated.compute() == {}
    accumulated.update(
        {"B": Ratio(torch.tensor(1), torch.tensor(2)), "A": Ratio(torch.tensor(0.0), torch.tensor(0))}
    )
    accumulated.update({"B": Ratio(torch.tensor(2), torch.tensor(2))})
    values = accumulated.compute()
    assert list(values) == ["B", "A"]
    assert values["B"] == 0.75
    assert math.isnan(values["A"])
    accumulated.reset()
    assert accumulated.compute() == {}


def test_metrics_count_beyond_float32():
    accumulated = Metrics()
    accumulated.update({"A": Ratio(torch.tensor(2.0**24), torch.tensor(2**24))})
    accumulated.update({"A": Ratio(torch.tensor(1.0), torch.tensor(1))})
    assert accumulated.state_dict() == {"A": (2.0**24 + 1, 2.0**24 + 1)}


def test_metrics_state_dict_round_trip():
    first, second = Metrics(), Metrics()
    first.update({"A": Ratio(torch.tensor(1.0), torch.tensor(4))})
    second.load_state_dict(first.state_dict())
    second.update({"A": Ratio(torch.tensor(1.0), torch.tensor(0))})
    assert second.compute() == {"A": 0.5}
