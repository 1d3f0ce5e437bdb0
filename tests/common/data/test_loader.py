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


def read_epochs(num_workers, **options):
    built, batches = loader(num_workers, **options)
    epochs = []
    for epoch in range(2):
        batches.set_epoch(epoch)
        epochs.append(
            [(batch.index.tolist(), batch.text.tags.tolist(), tuple(batch.images.shape)) for batch in built]
        )
    return epochs


@pytest.mark.parametrize(
    ("num_workers", "start"), [(2, None), pytest.param(1, "spawn", marks=pytest.mark.integration)]
)
def test_loader_yields_the_same_batches_with_workers(num_workers, start):
    alone = read_epochs(0)
    assert read_epochs(num_workers, start=start) == alone
    assert [len(epoch) for epoch in alone] == [4, 4]
    assert alone[0] != alone[1]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loader_raises_worker_errors_with_their_type_and_ends_the_workers(num_workers):
    others = set(multiprocessing.active_children())
    built, _ = loader(num_workers, bad=[5])
    with pytest.raises(DataError, match=r"^Squares item 5 \(record square-5\): s.jpg: gone$"):
        list(built)
    workers = set(multiprocessing.active_children()) - others
    assert len(workers) == num_workers
    del built
    assert not any(worker.is_alive() for worker in workers)


@pytest.mark.skipif(sys.platform != "linux", reason="forking is not safe on other systems")
def test_loader_forks_workers_on_linux():
    assert loader(1)[0].multiprocessing_context.get_start_method() == "fork"
    assert loader(0)[0].multiprocessing_context is None


def read_and_kill_workers(built):
    others = set(multiprocessing.active_children())
    for _ in built:
        for worker in set(multiprocessing.active_children()) - others:
            worker.kill()
            worker.join()


def test_worker_crash_context_names_a_killed_worker():
    built, _ = loader(1)
    message = r"reads the val data \(pid \d+\) ended with SIGKILL; if nobody"
    with pytest.raises(DataError, match=message), worker_crash_context(train=loader(1)[0], val=built):
        read_and_kill_workers(built)
    with pytest.raises(OSError, match=r"^disk$"), worker_crash_context(train=loader(0)[0], other=[]):
        raise OSError("disk")


def test_loader_does_not_use_the_global_generator():
    before = torch.get_rng_state()
    built, _ = loader(0)
    assert len(list(built)) == len(built) == 4
    assert torch.equal(torch.get_rng_state(), before)
