import random

import numpy as np
import pytest

from common.data.sampling import EpochBatches, ItemKey, aspect_groups, epoch_order, grouped_batches, item_rng


def batches(num_items, batch_size, *, epoch=0, start=0, shuffle=True, seed=1, **options):
    sampler = EpochBatches(num_items, batch_size, shuffle=shuffle, seed=seed, **options)
    sampler.set_epoch(epoch, start)
    found = list(sampler)
    assert all(key.epoch == epoch for batch in found for key in batch)
    assert len(found) == len(sampler) - start
    return [[key.index for key in batch] for batch in found]


def ranks(world_size, *args, **options):
    return [batches(*args, rank=rank, world_size=world_size, **options) for rank in range(world_size)]


def flat(nested):
    return [index for batch in nested for index in batch]


def test_an_item_has_the_same_generator_everywhere():
    assert item_rng(3, 1, 7).random() == item_rng(3, 1, 7).random()
    assert isinstance(item_rng(0, 0, 0), random.Random)
    keys = [(seed, epoch, index) for seed in (-1, 0, 12) for epoch in (0, 1) for index in (0, 1, 2)]
    assert len({item_rng(*key).random() for key in keys}) == len(keys)


def test_order_is_a_permutation_of_seed_and_epoch():
    orders = [
        epoch_order(50, shuffle=True, seed=seed, epoch=epoch).tolist() for seed in (-1, 5) for epoch in (0, 1)
    ]
    assert len(set(map(tuple, orders))) == 4
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert epoch_order(50, shuffle=True, seed=5, epoch=1).tolist() == orders[3]
    assert epoch_order(4, shuffle=False, seed=5, epoch=1).tolist() == [0, 1, 2, 3]


def test_dataset_order():
    assert batches(5, 2, shuffle=False) == [[0, 1], [2, 3], [4]]


def test_keys_carry_the_epoch():
    sampler = EpochBatches(2, 2, shuffle=False, seed=0)
    sampler.set_epoch(7)
    assert list(sampler) == [[ItemKey(7, 0), ItemKey(7, 1)]]


def test_resuming_inside_an_epoch_and_the_epoch_after_it():
    sampler = EpochBatches(10, 3, shuffle=True, seed=2)
    sampler.set_epoch(4)
    whole = list(sampler)
    sampler.set_epoch(4, start_batch=2)
    assert list(sampler) == whole[2:]
    sampler.set_epoch(5)
    assert len(list(sampler)) == 4


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_processes_together_walk_the_order_of_one(world_size):
    single = batches(100, 2 * world_size)
    several = ranks(world_size, 100, 2)
    for step, whole in enumerate(single[:-1]):
        assert flat(rank[step] for rank in several) == whole
    assert set(flat(map(flat, several))) == set(range(100))


@pytest.mark.parametrize(("num_items", "world_size"), [(10, 3), (10, 4), (97, 8), (5, 5), (1, 4), (3, 7)])
def test_padding_makes_all_processes_equal(num_items, world_size):
    several = ranks(world_size, num_items, 4)
    share = -(-num_items // world_size)
    assert [[len(batch) for batch in rank] for rank in several] == [
        [len(batch) for batch in several[0]]
    ] * world_size
    assert len(flat(several[0])) == share
    assert set(flat(map(flat, several))) == set(range(num_items))


@pytest.mark.parametrize(("num_items", "world_size"), [(10, 3), (97, 8), (5, 5), (1, 4), (8, 2)])
def test_evaluation_takes_every_item_once(num_items, world_size):
    several = ranks(world_size, num_items, 4, shuffle=False, pad=False)
    assert sorted(flat(map(flat, several))) == list(range(num_items))
    assert all(batch for rank in several for batch in rank)


def test_groups_of_the_golden_case():
    order, groups = np.array([6, 2, 0, 1, 5, 3, 4]), [0, 1, 0, 0, 1, 0, 1]
    assert [batch.tolist() for batch in grouped_batches(order, groups, 2)] == [[6, 1], [2, 0], [5, 3], [4]]


def test_groups_without_an_item():
    assert [batch.tolist() for batch in grouped_batches(np.array([2, 1]), [0, 1, 1], 1)] == [[2], [1]]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_grouped_batches_are_pure_and_equally_many(world_size):
    groups = [int(index % 7 > 4) for index in range(60)]
    for epoch in range(3):
        several = ranks(world_size, 60, 4, groups=groups, epoch=epoch)
        assert len({len(rank) for rank in several}) == 1
        assert all(len({groups[index] for index in batch}) == 1 for rank in several for batch in rank)
        assert set(flat(map(flat, several))) == set(range(60))


def test_grouped_evaluation_takes_every_item_once():
    groups = [0, 0, 1, 0, 0, 1, 1, 0, 0]
    several = ranks(3, 9, 2, groups=groups, pad=False)
    assert sorted(flat(map(flat, several))) == list(range(9))
    assert ranks(4, 2, 2, groups=[0, 0], shuffle=False, pad=False) == [[[0, 1]], [], [], []]


def test_aspect_groups():
    assert aspect_groups([54, 125, 80], [79, 100, 80]) == [1, 0, 0]
