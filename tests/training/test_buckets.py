"""Sizes of one area for images of different shapes."""

import pytest

from atomtune.sizes import Size
from atomtune.training.buckets import crop_corner, nearest, sizes


@pytest.mark.parametrize(("resolution", "multiple", "step"), [(Size(1024, 1024), 16, 64), (Size(64, 64), 16, 16)])
def test_buckets_have_about_one_area_and_sides_that_the_base_can_draw(resolution, multiple, step):
    found = sizes(resolution, multiple)
    assert found[0] == resolution and len(set(found)) == len(found)
    side = resolution.width
    for size in found:
        assert size.width % step == size.height % step == 0
        assert abs(size.width * size.height / side**2 - 1) <= 2 * step / side
        assert side / 2 <= min(size.shape) and max(size.shape) <= 2 * side
    assert {Size(size.height, size.width) for size in found} & set(found)


@pytest.mark.parametrize(
    ("image", "expected"),
    [((500, 500), Size(1024, 1024)), ((3000, 2000), Size(1280, 832)), ((10, 4000), Size(512, 2048))],
)
def test_an_image_goes_to_the_bucket_of_its_shape(image, expected):
    width, height = image
    assert nearest(width, height, sizes(Size(1024, 1024), 16)) == expected


def test_the_corner_of_the_crop_is_counted_after_scaling():
    assert crop_corner(2000, 1000, Size(64, 64)) == (0, 32)
    assert crop_corner(64, 128, Size(64, 64)) == (32, 0)
    assert crop_corner(640, 640, Size(64, 64)) == (0, 0)
