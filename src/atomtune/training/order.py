"""Which images go together in a batch: a function of the seed and the batch's number alone, so that a run that was
stopped goes on with the same images.

Every image is seen once in an epoch, in another order in each epoch, which is a function of (seed, epoch). A batch
holds images of one bucket, that is, of one size: images wait in their bucket until it holds `batch_size` of them, which
may be in the next epoch. With a single bucket, batches are the images one after the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence

Order = Callable[[int], Sequence[int]]
"""The order of all images in an epoch."""


def batch(number: int, buckets: Sequence[Hashable], batch_size: int, order: Order) -> list[int]:
    """The images of the batch of this number, counted from 0. `buckets` has the bucket of each image."""
    sizes = Counter(buckets)

    def full(epochs: int) -> int:
        """Batches that are full after so many epochs."""
        return sum(epochs * size // batch_size for size in sizes.values())

    epoch = number * batch_size // len(buckets)  # buckets that are not full can only make it later
    while full(epoch + 1) <= number:
        epoch += 1
    waited, done = {bucket: epoch * size for bucket, size in sizes.items()}, full(epoch)
    for image in order(epoch):
        bucket = buckets[image]
        waited[bucket] += 1
        if waited[bucket] % batch_size == 0:
            if done == number:
                return _stream(
                    bucket, range(waited[bucket] - batch_size, waited[bucket]), buckets, sizes[bucket], order
                )
            done += 1
    raise AssertionError("an epoch fills as many batches as were counted")


def _stream(bucket: Hashable, places: range, buckets: Sequence[Hashable], size: int, order: Order) -> list[int]:
    """The images at these places of a bucket, whose epochs follow one another."""
    epochs = {place // size for place in places}
    own = {epoch: [image for image in order(epoch) if buckets[image] == bucket] for epoch in epochs}
    return [own[place // size][place % size] for place in places]
