import numpy as np
import pytest

from common.data.instance_masks import check_polygons, instance_mask
from common.errors import DataError

SQUARE = [[10, 10], [23, 10], [23, 23], [10, 23]]


def test_instance_mask_includes_edges_and_has_rows_y_and_columns_x():
    assert instance_mask([SQUARE], (10, 10, 23, 23), (14, 14)).sum() == 196
    left = instance_mask([[[10, 10], [16, 10], [16, 23], [10, 23]]], (10, 10, 23, 23), (14, 14))
    assert left.tolist() == [[True] * 7 + [False] * 7] * 14
    mask = instance_mask([[[0, 0], [5, 0], [5, 1], [0, 1]]], (0, 0, 5, 3), (4, 6))
    assert mask.tolist() == [[True] * 6] * 2 + [[False] * 6] * 2


def test_instance_mask_is_the_union_clamped_to_the_box():
    left, right = [[-9, -9], [1, -9], [1, 99], [-9, 99]], [[4, 0], [9, 0], [9, 9], [4, 9]]
    mask = instance_mask([left, right], (0, 0, 5, 5), (6, 6))
    assert mask.tolist() == [[True, True, False, False, True, True]] * 6


def test_instance_mask_accepts_no_polygon_and_boxes_without_area():
    assert not instance_mask([], (10, 10, 23, 23), (14, 14)).any()
    assert not instance_mask([[]], (10, 10, 23, 23), (14, 14)).any()
    for box in ((10, 10, 9, 9), (10, 10, 10, 10), (20, 20, 5, 5)):
        mask = instance_mask([SQUARE], box, (7, 7))
        assert mask.shape == (7, 7)
        assert mask.dtype == np.bool_


@pytest.mark.parametrize(
    ("polygons", "message"),
    [
        ([[]], "polygons: of 1 objects; expected a list with the polygons of each of the 2 objects"),
        (None, "polygons: NoneType; expected a list"),
        ([[], [[(1, 2), (3, float("nan"))]]], "polygons: object 1: expected lists of points"),
        ([[[(1, 2, 3)]], []], "polygons: object 0: "),
        ([[[1, 2]], []], "polygons: object 0: "),
        ([["ab"], []], "polygons: object 0: "),
        ([3, []], "polygons: object 0: "),
        ([[[(1, 2), (3,)]], []], "polygons: object 0: "),
    ],
)
def test_check_polygons_rejects_bad_input(polygons, message):
    with pytest.raises(DataError, match=message):
        check_polygons(polygons, 2)
    check_polygons([[[(1, 2), (3, 4), (5, 6)]], [[], np.ones((3, 2))]], 2)
