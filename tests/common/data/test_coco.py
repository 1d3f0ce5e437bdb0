import json
import pickle

import pytest

from common.data.coco import BoxTable, CocoIndex, first_captions
from common.errors import DataError

IMAGES = [{"id": 9, "width": 640, "height": 480, "file_name": "x"}, {"id": 3, "width": 10, "height": 20}]
ANNOTATIONS = [
    {"id": 7, "image_id": 9, "category_id": 4, "bbox": [1, 2, 3, 4.5], "iscrowd": 1},
    {"id": 1, "image_id": 3, "category_id": 5, "bbox": [0, 0, 1, 1]},
    {"id": 5, "image_id": 9, "category_id": 6, "bbox": [9, 9, 9, 9], "segmentation": [[1, 2]]},
]


@pytest.fixture
def write(tmp_path):
    def write_json(content):
        path = tmp_path / "instances.json"
        path.write_text(json.dumps(content))
        return str(path)

    return write_json


@pytest.fixture
def index_of(write):
    return lambda **content: CocoIndex(write({"images": IMAGES, "annotations": ANNOTATIONS, **content}))


def test_coco_index_returns_sizes_and_boxes(index_of):
    index = pickle.loads(pickle.dumps(index_of(info={}, categories=[])))
    assert (index.size(9), index.size(3)) == ((640, 480), (10, 20))
    assert index.boxes(9).tolist() == [[1, 2, 3, 4.5], [9, 9, 9, 9]]
    assert index.boxes(3).tolist() == [[0, 0, 1, 1]]
    assert index.annotation_ids(9).tolist() == [7, 5]
    assert index.categories(9).tolist() == [4, 6]
    assert index.annotated_images().tolist() == [3, 9]
    assert (index.file_name(9), index.file_name(3)) == ("x", "")
    assert [index.box(number).tolist() for number in (7, 1, 5)] == [one["bbox"] for one in ANNOTATIONS]


def test_coco_index_classes_are_positions_of_categories(index_of):
    index = index_of(categories=[{"id": number} for number in (6, 5, 4)])
    assert [index.classes(image_id).tolist() for image_id in (9, 3, 4)] == [[3, 1], [2], []]
    with pytest.raises(DataError, match=r"instances\.json: has no category 6"):
        index_of(categories=[{"id": 4}]).classes(9)
    # 81 categories: the last one has no class.
    annotations = [{**ANNOTATIONS[0], "category_id": 81}, {**ANNOTATIONS[1], "category_id": 80}]
    index = index_of(annotations=annotations, categories=[{"id": number} for number in range(1, 82)])
    assert index.classes(3).tolist() == [80]
    with pytest.raises(DataError, match="image 9 is number 81 of its list; expected the 80 of COCO"):
        index.classes(9)


def test_coco_index_reads_files_without_annotations(write):
    index = CocoIndex(write({"images": IMAGES}))
    assert index.size(3) == (10, 20)
    assert index.boxes(3).shape == (0, 4)
    assert index.annotation_ids(9).tolist() == index.categories(9).tolist() == []


@pytest.mark.parametrize("number", [0, 4, 10])
def test_coco_index_rejects_unknown_ids(index_of, number):
    index = index_of()
    assert index.boxes(number).shape == (0, 4)
    with pytest.raises(DataError, match=rf"instances\.json: has no image {number}"):
        index.size(number)
    with pytest.raises(DataError, match=rf"instances\.json: has no annotation {number}"):
        index.box(number)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"annotations": []}, "images: Field required"),
        ({"images": []}, "images: List should have at least 1 item"),
        ({"images": [{**IMAGES[0], "height": 0}]}, r"images\.0\.height"),
        ({"images": [{"id": 1}]}, r"images\.0\.width: Field required"),
        ({"images": [*IMAGES, IMAGES[0]]}, "duplicate image 9"),
        ({"images": IMAGES, "annotations": [{**ANNOTATIONS[0], "bbox": [1, 2, 3]}]}, r"annotations\.0\.bbox"),
        ({"images": IMAGES, "annotations": [{**ANNOTATIONS[0], "id": "7"}]}, r"annotations\.0\.id"),
        ({"images": IMAGES, "annotations": ANNOTATIONS[:1] * 2}, "duplicate annotation 7"),
        ({"images": IMAGES, "categories": [{"id": 5}, {"id": 5}]}, "duplicate category 5"),
        ({"images": IMAGES, "categories": [{"id": 10**30}]}, r"categories\.0\.id: Input should be less than"),
        ([], "should be an object"),
    ],
)
def test_coco_index_rejects_bad_input(write, content, message):
    with pytest.raises(DataError, match=rf"instances\.json: .*{message}"):
        CocoIndex(write(content))


def test_first_captions(write):
    records = [{"id": n, "image_id": image, "caption": f"{n}"} for n, image in enumerate((9, 3, 9))]
    assert first_captions(write({"images": IMAGES, "annotations": records})) == {9: "0", 3: "1"}
    for content in ({}, {"annotations": []}, {"annotations": [{"image_id": 9}]}):
        with pytest.raises(DataError, match=r"instances\.json: annotations"):
            first_captions(write(content))


def test_box_table_reads_detections(write):
    boxes = [(9, [1, 2, 3, 4]), (3, [5, 5, 5, 5]), (9, [0, 0, 0.5, 0])]
    table = BoxTable.of_detections(write([{"image_id": i, "box": box, "score": 0.5} for i, box in boxes]))
    assert table.boxes(9).tolist() == [[1, 2, 3, 4], [0, 0, 0.5, 0]]
    assert table.boxes(4).shape == BoxTable.of_detections(write([])).boxes(9).shape == (0, 4)
    with pytest.raises(DataError, match=r"instances\.json: 0\.box"):
        BoxTable.of_detections(write([{"image_id": 9}]))
