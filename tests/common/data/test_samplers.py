import itertools
import random

import numpy as np
import pytest

from common.data.samplers import (
    EpochBatches,
    ItemKey,
    JointBatches,
    aspect_groups,
    grouped_batches,
    item_rng,
    permutation_entries,
)


def batches(num_items, batch_size, *, epoch=0, start=0, shuffle=True, seed=1, **options):
    sampler = EpochBatches(num_items, batch_size, shuffle=shuffle, seed=seed, **options)
    sampler.set_epoch(epoch, start)
    keys = list(sampler)
    assert all(key.epoch == epoch for batch in keys for key in batch)
    assert len(keys) == len(sampler) - start
    return [[key.index for key in batch] for batch in keys]


def ranks(world_size, *args, **options):
    return [batches(*args, rank=rank, world_size=world_size, **options) for rank in range(world_size)]


def flat(nested):
    return [index for batch in nested for index in batch]


def test_item_rng_is_a_function_of_seed_epoch_index_and_source():
    keys = list(itertools.product((-1, 0, 12), (0, 1), (0, 1, 2), (0, 1)))
    draws = [item_rng(*key).random() for key in keys]
    assert len(set(draws)) == len(keys)
    assert draws == [item_rng(*key).random() for key in keys]
    assert item_rng(3, 1, 7, 0).random() == item_rng(3, 1, 7).random()


@pytest.mark.parametrize("num_items", [1, 2, 3, 4, 5, 16, 17, 50, 1000])
def test_permutation_entries_is_a_permutation(num_items):
    order = permutation_entries(np.arange(num_items), num_items, random.Random(1))
    assert (order.dtype, sorted(order.tolist())) == (np.int64, list(range(num_items)))
    positions = np.array([num_items - 1, 0])
    assert permutation_entries(positions, num_items, random.Random(1)).tolist() == order[positions].tolist()


def test_permutation_entries_is_random():
    orders = np.array([permutation_entries(np.arange(50), 50, random.Random(seed)) for seed in range(400)])
    assert len(np.unique(orders, axis=0)) == 400
    # Every item is at every position equally often (8 times, standard deviation 2.8), also after every other item.
    counts = np.array([[np.sum(orders[:, i] == item) for item in range(50)] for i in range(0, 50, 7)])
    assert counts.max() < 25
    assert 7 < counts.var() < 9
    assert abs(np.mean(orders[:, 1:] - orders[:, :-1] == 1) - 1 / 50) < 0.005


def test_epoch_batches_order_depends_on_seed_epoch_and_source():
    orders = [
        flat(batches(50, 7, seed=seed, epoch=epoch, source=source))
        for seed in (-1, 5)
        for epoch in (0, 1)
        for source in (0, 1)
    ]
    assert len(set(map(tuple, orders))) == 8
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert flat(batches(50, 7, seed=5, epoch=1, source=1)) == orders[7]


def test_epoch_batches_needs_no_memory_per_item():
    sampler = EpochBatches(10**9, 4, shuffle=True, seed=1)
    sampler.set_epoch(3, 10**8)
    assert len({key.index for key in next(iter(sampler))}) == 4


def test_epoch_batches_without_shuffling_is_in_dataset_order():
    assert batches(5, 2, shuffle=False) == [[0, 1], [2, 3], [4]]
    sampler = EpochBatches(2, 2, shuffle=False, seed=0)
    sampler.set_epoch(7)
    assert list(sampler) == [[ItemKey(7, 0), ItemKey(7, 1)]]


def test_epoch_batches_resumes_inside_an_epoch():
    sampler = EpochBatches(10, 3, shuffle=True, seed=2)
    sampler.set_epoch(4)
    whole = list(sampler)
    sampler.set_epoch(4, start_batch=2)
    assert list(sampler) == whole[2:]
    sampler.set_epoch(5)
    assert len(list(sampler)) == 4


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_epoch_batches_of_all_ranks_cover_the_order_of_one_rank(world_size):
    single = batches(100, 2 * world_size)
    several = ranks(world_size, 100, 2)
    for step, whole in enumerate(single[:-1]):
        assert flat(rank[step] for rank in several) == whole
    assert set(flat(map(flat, several))) == set(range(100))


@pytest.mark.parametrize(("num_items", "world_size"), [(10, 3), (10, 4), (97, 8), (5, 5), (1, 4), (3, 7)])
def test_epoch_batches_gives_all_ranks_equally_many_batches(num_items, world_size):
    several = ranks(world_size, num_items, 4)
    assert len({len(rank) for rank in several}) == 1
    assert all(batch for rank in several for batch in rank)
    indices = flat(map(flat, several))
    assert set(indices) == set(range(num_items))
    # Items are repeated only if the last batch has fewer items than ranks.
    rest = num_items % (4 * world_size)
    assert len(indices) == num_items + (world_size - rest if 0 < rest < world_size else 0)


@pytest.mark.parametrize(("num_items", "world_size"), [(10, 3), (97, 8), (5, 5), (1, 4), (8, 2)])
def test_epoch_batches_without_padding_has_every_item_once(num_items, world_size):
    several = ranks(world_size, num_items, 4, shuffle=False, pad=False)
    assert sorted(flat(map(flat, several))) == list(range(num_items))
    assert all(batch for rank in several for batch in rank)


def test_grouped_batches_are_sorted_by_their_first_item():
    order, groups = np.array([6, 2, 0, 1, 5, 3, 4]), [0, 1, 0, 0, 1, 0, 1]
    assert [batch.tolist() for batch in grouped_batches(order, groups, 2)] == [[6, 1], [2, 0], [5, 3], [4]]
    assert [batch.tolist() for batch in grouped_batches(np.array([2, 1]), [0, 1, 1], 1)] == [[2], [1]]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_epoch_batches_does_not_mix_groups(world_size):
    groups = [int(index % 7 > 4) for index in range(60)]
    for epoch in range(3):
        several = ranks(world_size, 60, 4, groups=groups, epoch=epoch)
        assert len({len(rank) for rank in several}) == 1
        assert all(len({groups[index] for index in batch}) == 1 for rank in several for batch in rank)
        assert set(flat(map(flat, several))) == set(range(60))


def test_epoch_batches_with_groups_without_padding_has_every_item_once():
    groups = [0, 0, 1, 0, 0, 1, 1, 0, 0]
    several = ranks(3, 9, 2, groups=groups, pad=False)
    assert sorted(flat(map(flat, several))) == list(range(9))
    assert ranks(4, 2, 2, groups=[0, 0], shuffle=False, pad=False) == [[[0, 1]], [], [], []]


def test_aspect_groups():
    assert aspect_groups([54, 125, 80], [79, 100, 80]) == [1, 0, 0]


def joint(sizes, batch_sizes, *, epoch=0, start=0, **options):
    samplers = [
        EpochBatches(size, batch, shuffle=False, seed=1, source=source, **options)
        for source, (size, batch) in enumerate(zip(sizes, batch_sizes, strict=True))
    ]
    sampler = JointBatches(samplers)
    sampler.set_epoch(epoch, start)
    keys = list(sampler)
    assert len(keys) == len(sampler) - start
    return [[key.source * 100 + key.index for key in batch] for batch in keys], keys


def test_joint_batches_repeats_smaller_datasets():
    first, keys = joint([7, 5], [2, 2])
    assert first == [[0, 1, 100, 101], [2, 3, 102, 103], [4, 5, 104], [6, 100, 101]]
    assert [key.epoch for key in keys[3]] == [0, 1, 1]  # second epoch of the second dataset
    second, keys = joint([7, 5], [2, 2], epoch=1)
    assert second == [[0, 1, 102, 103], [2, 3, 104], [4, 5, 100, 101], [6, 102, 103]]
    epochs = [[key.epoch for key in batch] for batch in keys]
    assert epochs == [[1, 1, 1, 1], [1, 1, 1], [1, 1, 2, 2], [1, 2, 2]]


def test_joint_batches_continues_larger_datasets_in_the_next_epoch():
    assert joint([3, 9, 2], [2, 2, 1])[0] == [[0, 1, 100, 101, 200], [2, 102, 103, 201]]
    assert joint([3, 9, 2], [2, 2, 1], epoch=1)[0] == [[0, 1, 104, 105, 200], [2, 106, 107, 201]]


@pytest.mark.parametrize("start", [1, 2, 3])
def test_joint_batches_resumes_all_datasets(start):
    assert joint([7, 5], [2, 2], epoch=2, start=start)[1] == joint([7, 5], [2, 2], epoch=2)[1][start:]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_joint_batches_without_padding_has_every_item_once(world_size):
    options = {"pad": False, "world_size": world_size}
    several = [joint([9, 12], [4, 4], rank=rank, **options)[0] for rank in range(world_size)]
    assert sorted(flat(map(flat, several))) == [*range(9), *range(100, 112)]
