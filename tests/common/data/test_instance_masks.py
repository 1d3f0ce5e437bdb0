import numpy as np
import pytest

from common.data.instance_masks import check_polygons, instance_mask
from common.errors import DataError

SQUARE = [[10, 10], [23, 10], [23, 23], [10, 23]]


def test_a_rectangle_fills_its_box_edges_included():
    assert instance_mask([SQUARE], (10, 10, 23, 23), (14, 14)).sum() == 196


def test_the_left_half_of_a_box():
    mask = instance_mask([[[10, 10], [16, 10], [16, 23], [10, 23]]], (10, 10, 23, 23), (14, 14))
    assert mask.any(axis=0).tolist() == [True] * 7 + [False] * 7
    assert mask[:, :7].all()


def test_rows_are_y_and_columns_x():
    mask = instance_mask([[[0, 0], [5, 0], [5, 1], [0, 1]]], (0, 0, 5, 3), (4, 6))
    assert mask.tolist() == [[True] * 6] * 2 + [[False] * 6] * 2


def test_polygons_are_united_and_clamped_to_the_box():
    left, right = [[-9, -9], [1, -9], [1, 99], [-9, 99]], [[4, 0], [9, 0], [9, 9], [4, 9]]
    mask = instance_mask([left, right], (0, 0, 5, 5), (6, 6))
    assert mask.tolist() == [[True, True, False, False, True, True]] * 6


def test_no_polygon_no_mask():
    assert not instance_mask([], (10, 10, 23, 23), (14, 14)).any()
    assert not instance_mask([[]], (10, 10, 23, 23), (14, 14)).any()


def test_boxes_without_area_are_harmless():
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
def test_wrong_polygons(polygons, message):
    with pytest.raises(DataError, match=message):
        check_polygons(polygons, 2)


def test_right_polygons():
    check_polygons([[[(1, 2), (3, 4), (5, 6)]], [[], np.ones((3, 2))]], 2)
