import pytest
import torch

from common.batch import Sample
from common.data.dataset import VisualLinguisticDataset
from common.data.samplers import ItemKey
from common.errors import DataError


class Numbers(VisualLinguisticDataset[Sample]):
    def __init__(self, length=10, bad=(), error=None, on_bad_data="raise"):
        super().__init__(seed=3, on_bad_data=on_bad_data)
        self.length, self.bad, self.error = length, bad, error or DataError("x.jpg: gone")

    def __len__(self):
        return self.length

    def record_id(self, index):
        return f"number-{index}"

    def load(self, index, rng):
        if index in self.bad:
            raise self.error
        return Sample(
            index=index,
            record_id=self.record_id(index),
            image=None,
            padded_size=(1, 1),
            im_info=torch.ones(4),
            boxes=torch.full((1, 4), rng.random()),
            texts=(),
        )


def test_dataset_randomness_depends_on_epoch_and_index_only():
    first, second = Numbers(), Numbers()
    draws = [first[ItemKey(epoch, index)].boxes[0, 0].item() for epoch in range(2) for index in range(10)]
    again = [
        second[ItemKey(epoch, index)].boxes[0, 0].item() for epoch in (1, 0) for index in reversed(range(10))
    ]
    assert draws == again[::-1]
    assert len(set(draws)) == 20


def test_dataset_errors_name_dataset_index_and_record():
    with pytest.raises(DataError, match=r"^Numbers item 4 \(record number-4\): x.jpg: gone$"):
        Numbers(bad=[4])[ItemKey(0, 4)]
    with pytest.raises(RuntimeError, match=r"Numbers item 4 \(record number-4\): KeyError: 'oops'"):
        Numbers(bad=[4], error=KeyError("oops"), on_bad_data="skip")[ItemKey(0, 4)]


def test_dataset_replaces_bad_records_and_reports_each_once(caplog):
    data = Numbers(length=300, bad=[298, 299], on_bad_data="skip")
    replacement = data[ItemKey(2, 298)]
    assert replacement.index == 0
    assert torch.equal(replacement.boxes, Numbers()[ItemKey(2, 0)].boxes)
    caplog.clear()
    data = Numbers(length=300, bad=[7, 9], on_bad_data="skip")
    for index in (7, 9, 7):
        data[ItemKey(0, index)]
    rule = "x.jpg: gone; using the next valid record instead (DATASET.ON_BAD_DATA: skip)"
    assert [line.message for line in caplog.records] == [
        f"Numbers item 7 (record number-7): {rule}",
        f"Numbers item 9 (record number-9): {rule}",
    ]


def test_dataset_stops_above_one_percent_of_bad_records():
    with pytest.raises(
        DataError, match=r"number-4\): x.jpg: gone; 1 of 1 records were bad, more than the 1% that"
    ):
        Numbers(length=99, bad=[4], on_bad_data="skip")[ItemKey(0, 4)]
    data = Numbers(length=2000, bad=range(0, 2000, 150), on_bad_data="skip")
    for epoch in range(2):
        for index in range(2000):
            data[ItemKey(epoch, index)]
    data = Numbers(length=2000, bad=range(0, 2000, 50), on_bad_data="skip")
    with pytest.raises(DataError, match=r"11 of \d+ records were bad"):
        [data[ItemKey(0, index)] for index in range(2000)]
    with pytest.raises(DataError, match="records were bad"):
        Numbers(length=300, bad=range(300), on_bad_data="skip")[ItemKey(0, 0)]
