"""A task small enough to compute by hand: one linear layer, squared error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from common.batch import Batch, Lengths, Sample, Text, TextSequence, stacked
from common.config.schema import ExperimentConfig, parse_config
from common.data.dataset import VisualLinguisticDataset
from common.models.pretrained import LoadReport
from common.training.metrics import Ratio
from common.training.optim import build_optimizer, build_schedule
from common.training.task import PredictingTask
from common.training.trainer import Trainer, steps_per_epoch


@dataclass(frozen=True, kw_only=True)
class ToySample(Sample):
    x: torch.Tensor
    y: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class ToyBatch(Batch):
    x: torch.Tensor = stacked()
    y: torch.Tensor = stacked()


class ToyDataset(VisualLinguisticDataset[ToySample]):
    batch_type = ToyBatch

    def __init__(self, num_items):
        super().__init__(seed=0)
        self.num_items = num_items

    def __len__(self):
        return self.num_items

    def record_id(self, index):
        return f"toy-{index}"

    def load(self, index, rng):
        x = torch.tensor([index % 3 - 1.0, index % 5 / 4])
        words = np.zeros(1, dtype=np.int64)
        return ToySample(
            index=index,
            record_id=self.record_id(index),
            image=None,
            padded_size=(1, 1),
            im_info=torch.ones(4),
            boxes=torch.zeros(1, 4),
            texts=(TextSequence(words, words, words),),
            x=x,
            y=2 * x[:1] - x[1:] + 0.5,
        )


class ToyTask(PredictingTask):
    name = "toy"
    config_class = ExperimentConfig
    best_metric = "Acc"
    num_items = 12

    def build_dataset(self, split):
        return ToyDataset(self.num_items)

    def build_model(self):
        return ToyModel()

    def load_pretrained(self, model):
        with torch.no_grad():
            model.linear.weight.fill_(0.25)
        return [LoadReport("weights", "nowhere", ("linear.weight",), (), ())]

    def result_file(self, folder, name):
        return folder / f"{name}_toy.txt"

    def write_predictions(self, records, path):
        path.write_text("".join(f"{record}\n" for record in records))

    def label_counts(self, batch):
        return {"loss": batch.num_samples}

    def losses(self, outputs, batch):
        return {"loss": (outputs - batch.y).square().mean()}

    def metrics(self, outputs, batch, split):
        close = (outputs - batch.y).abs() < 0.5
        return {"Acc": Ratio(close.sum(), torch.tensor(close.numel()))}

    def predictions(self, outputs, batch):
        return [
            {"id": name, "score": score}
            for name, score in zip(batch.record_ids, outputs[:, 0].tolist(), strict=True)
        ]


class ToyModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 1)
        with torch.no_grad():
            self.linear.weight.fill_(0.5)
            self.linear.bias.fill_(0.25)

    def forward(self, batch):
        return self.linear(batch.x)


def toy_config(**train):
    values = {
        "END_EPOCH": 2,
        "LR": 0.02,
        "BATCH_IMAGES": 1,
        "LOSS_LOGGERS": [["loss", "ToyLoss"]],
        "WD": 0.0,
        **train,
    }
    return parse_config(ExperimentConfig, {"TRAIN": values, "LOG_FREQUENT": 1}, "toy")


def toy_batch(x, y, index=None):
    rows = len(x)
    ones = Lengths.of([1] * rows)
    zeros = torch.zeros(rows, dtype=torch.int64)
    return ToyBatch(
        record_ids=tuple(f"toy-{i}" for i in index or range(rows)),
        index=torch.tensor(index or range(rows)),
        images=None,
        num_boxes=ones,
        text=Text(ones, ones, zeros, zeros, zeros),
        im_info=torch.ones(rows, 4),
        boxes=torch.zeros(rows, 4),
        x=torch.tensor(x, dtype=torch.float32),
        y=torch.tensor(y, dtype=torch.float32),
    )


def toy_batches(count):
    """`count` different batches of two samples."""
    return [toy_batch([[i + 1.0, -1.0], [0.5, i - 2.0]], [[1.0], [0.5 * i]]) for i in range(count)]


def toy_trainer(
    config, batches_per_epoch, callbacks=(), task_class=ToyTask, model=None, processes=1, precision=None
):
    task = task_class(config)
    model = model or task.build_model()
    names = task.state_dict_names
    parameters = {names.official(name): value for name, value in model.named_parameters()}
    optimizer = build_optimizer(config.TRAIN, parameters, processes)
    steps = steps_per_epoch(batches_per_epoch, config.TRAIN.GRAD_ACCUMULATE_STEPS)
    schedule = build_schedule(config.TRAIN, optimizer, steps)
    return Trainer(task, model, optimizer, schedule, callbacks=callbacks, precision=precision)
