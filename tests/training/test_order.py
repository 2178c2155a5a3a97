"""Batches of one bucket each, as a function of the seed and the number of the batch."""

import functools
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from atomtune.training.order import batch


@functools.cache
def shuffled(count: int, epoch: int) -> list[int]:
    return torch.randperm(count, generator=torch.Generator().manual_seed(epoch)).tolist()


@given(st.integers(1, 12), st.integers(1, 5))
def test_one_bucket_is_one_image_after_the_other(count, batch_size):
    order = functools.partial(shuffled, count)
    stream = [image for epoch in range(12 * batch_size) for image in order(epoch)]
    for number in range(12):
        expected = stream[number * batch_size : (number + 1) * batch_size]
        assert batch(number, [0] * count, batch_size, order) == expected


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=12), st.integers(1, 5))
def test_a_batch_is_full_and_of_one_bucket_and_every_image_comes_once_in_an_epoch(buckets, batch_size):
    order = functools.partial(shuffled, len(buckets))
    epochs = batch_size  # after these no image waits
    batches = [batch(number, buckets, batch_size, order) for number in range(epochs * len(buckets) // batch_size)]
    assert all(len(images) == batch_size for images in batches)
    assert all(len({buckets[image] for image in images}) == 1 for images in batches)
    seen = Counter(image for images in batches for image in images)
    assert seen == dict.fromkeys(range(len(buckets)), epochs)


@pytest.mark.parametrize("batch_size", [2, 3])
def test_other_epochs_have_other_batches(batch_size):
    order, buckets = functools.partial(shuffled, 6), list("aabbbb")
    first = [batch(number, buckets, batch_size, order) for number in range(6)]
    second = [batch(number + 6, buckets, batch_size, order) for number in range(6)]
    assert first != second
