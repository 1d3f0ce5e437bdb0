import multiprocessing
import sys

import numpy as np
import pytest
import torch

from common.batch import Batch, Sample, TextSequence
from common.data.dataset import VisualLinguisticDataset
from common.data.loader import build_loader, worker_crash_context
from common.data.samplers import EpochBatches
from common.errors import DataError


class Squares(VisualLinguisticDataset[Sample]):
    batch_type = Batch

    def __init__(self, bad=()):
        super().__init__(seed=3)
        self.bad = bad

    def __len__(self):
        return 7

    def record_id(self, index):
        return f"square-{index}"

    def load(self, index, rng):
        if index in self.bad:
            raise DataError("s.jpg: gone")
        text = TextSequence(*(np.full(index + 1, value) for value in (index, 0, rng.randrange(1000))))
        return Sample(
            index=index,
            record_id=self.record_id(index),
            image=torch.zeros(3, 2, index + 1, dtype=torch.uint8),
            padded_size=(2, 2 + index),
            im_info=torch.ones(4),
            boxes=torch.ones(index, 4),
            texts=(text,),
        )


def loader(num_workers, bad=(), start=None):
    batches = EpochBatches(7, 2, shuffle=True, seed=3)
    built = build_loader([Squares(bad)], batches, batch_type=Batch, num_workers=num_workers, pin_memory=True)
    if start:
        built.multiprocessing_context = start
    return built, batches


def epochs(num_workers, **options):
    built, batches = loader(num_workers, **options)
    found = []
    for epoch in range(2):
        batches.set_epoch(epoch)
        found.append(
            [(batch.index.tolist(), batch.text.tags.tolist(), tuple(batch.images.shape)) for batch in built]
        )
    return found


@pytest.mark.parametrize(("num_workers", "start"), [(2, None), (1, "spawn")])
def test_workers_change_nothing(num_workers, start):
    alone = epochs(0)
    assert epochs(num_workers, start=start) == alone
    assert [len(epoch) for epoch in alone] == [4, 4]
    assert alone[0] != alone[1]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_worker_error_arrives_as_it_was_raised(num_workers):
    built, _ = loader(num_workers, bad=[5])
    with pytest.raises(DataError) as caught:
        list(built)
    assert str(caught.value) == "Squares item 5 (record square-5): s.jpg: gone"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a fork is not safe")
def test_workers_are_forked_whatever_python_would_do(monkeypatch):
    others = multiprocessing.get_context("forkserver")
    monkeypatch.setattr(multiprocessing.context._default_context, "_actual_context", others)
    built, _ = loader(1)
    iter(built).__next__()
    assert [worker._start_method for worker in built._iterator._workers] == ["fork"]


def test_workers_of_a_failed_loader_end_with_it():
    others = set(multiprocessing.active_children())
    built, _ = loader(2, bad=[5])
    with pytest.raises(DataError):
        list(built)
    workers = set(multiprocessing.active_children()) - others
    assert len(workers) == 2
    del built
    assert not any(worker.is_alive() for worker in workers)


def read_while_killing(built):
    others = set(multiprocessing.active_children())
    with worker_crash_context(train=loader(1)[0], val=built):
        for _ in built:
            for worker in set(multiprocessing.active_children()) - others:
                worker.kill()
                worker.join()


def fail():
    with worker_crash_context(train=loader(0)[0], other=[]):
        raise OSError("disk")


def test_a_killed_worker_is_named():
    with pytest.raises(DataError, match=r"reads the val data \(pid \d+\) ended with SIGKILL; if nobody"):
        read_while_killing(loader(1)[0])
    with pytest.raises(OSError, match=r"^disk$"):
        fail()


def test_the_global_generator_is_not_touched():
    before = torch.get_rng_state()
    built, _ = loader(0)
    assert len(list(built)) == len(built) == 4
    assert torch.equal(torch.get_rng_state(), before)
