import json
import zipfile

import numpy as np
import pytest
import torch

from common.data.coco import CLASS_NAMES, CLASS_OF_CATEGORY
from common.data.regions.json_format import encode_regions
from common.data.regions.packed_format import PackedHeader, packed_file
from common.data.regions.sources import RegionSource, clip_to_image, parse_boxes
from common.data.regions.types import Regions
from common.errors import DataError

CAR, BALL = CLASS_NAMES.index("car"), CLASS_NAMES.index("sportsball")
SIZE = (100, 50)


@pytest.fixture
def write(tmp_path):
    def write(content, name="b.json"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return write


def instances(**changes):
    content = {
        "images": [{"id": 9, "file_name": "train/x.jpg"}, {"id": 4, "file_name": "y.jpg"}],
        "annotations": [
            {"image_id": 9, "bbox": [10, 20, 30, 5], "category_id": 3, "id": 1, "segmentation": [[1, 2]]},
            {"image_id": 4, "bbox": [0, 0, 0.5, 1], "category_id": 7},
            {"image_id": 9, "bbox": [1, 2, 3, 4], "category_id": 7},
        ],
        "categories": [{"id": 3, "name": "sports ball"}, {"id": 7, "name": "helmet"}],
    }
    return content | changes


def detections():
    """Of picture 9, the best one last; of picture 4 in RefCOCO+'s spelling."""
    return [
        {"image_id": 9, "category_id": 3, "bbox": [0, 0, 2, 2], "score": 0.25},
        {"image_id": 4, "category_id": 1, "box": [1, 1, 2, 2], "score": 1.0},
        {"image_id": 9, "category_id": 37, "bbox": [1, 2, 3, 4], "score": 0.75},
    ]


def found(path, name="x.jpg", size=SIZE):
    regions = clip_to_image(RegionSource(path).read(name), size)
    columns = (regions.boxes, regions.class_ids, regions.scores)
    assert [column.dtype for column in columns] == [torch.float32, torch.int64, torch.float32]
    return tuple(column.tolist() for column in columns)


def test_lists(write):
    assert found(write([[1, 2, 3, 4.5], [0, 0, 99, 49]])) == (
        [[1, 2, 3, 4.5], [0, 0, 99, 49]],
        [0, 0],
        [1, 1],
    )
    named = {"boxes": [[1, 2, 3, 4]] * 4, "classes": ["Sports ball", "car", BALL, 0]}
    assert found(write(named))[1] == [BALL, CAR, BALL, 0]
    assert found(write([])) == ([], [], [])
    assert found(write({"boxes": []}))[0] == []


def test_arrays_and_tensors():
    row = np.array([1, 2, 3, 4])
    for value in (row[None], torch.tensor([[1.0, 2, 3, 4]]), ((1, 2, 3, 4),), [row], [tuple(row)]):
        assert clip_to_image(parse_boxes(value, "mine"), SIZE).boxes.tolist() == [[1, 2, 3, 4]]


def region_file(columns=81, score=0.75, others=0):
    classes = torch.full((2, columns), float(others))
    classes[0, CAR], classes[1, 0] = score, 1
    boxes = torch.tensor([[1.0, 2, 3, 4], [0, 0, 5, 5]])
    return encode_regions(
        9, Regions(boxes, torch.ones(2, 6), torch.ones(6), class_scores=classes, image_size=SIZE)
    )


def test_region_files(write):
    path = write(region_file())
    assert found(path) == ([[1, 2, 3, 4], [0, 0, 5, 5]], [CAR, 0], [0.75, 1])
    assert RegionSource(path).read("x.jpg").features is None
    given = RegionSource(path).read("x.jpg", feature_dim=6)
    assert (given.features.shape, given.image_feature.shape) == ((2, 6), (6,))
    assert found(write(region_file(1601)))[1] == [0, 0]  # other classes than COCO's
    with pytest.raises(DataError, match=r"for an image of \(100, 50\) pixels .* the image has \(50, 100\)"):
        found(path, size=(50, 100))
    with pytest.raises(DataError, match="image_box_feature holds 24 bytes; expected 1 x 7"):
        RegionSource(path).read("x.jpg", feature_dim=7)


def test_annotations_of_coco(write, caplog):
    path = write(instances())
    assert found(path) == ([[10, 20, 40, 25], [1, 2, 4, 6]], [BALL, 0], [1, 1])
    assert "1 categories are not among COCO's 80, and their boxes have no class: helmet" in caplog.messages[0]
    assert found(path, "y.jpg")[0] == [[0, 0, 0.5, 1]]
    assert not RegionSource(path).is_single_image
    with pytest.raises(DataError, match=r"b\.json: has no image with the file_name z\.jpg"):
        found(path, "z.jpg")
    numbered = instances(categories=[])  # COCO's own numbers
    assert found(write(numbered))[1] == [CLASS_OF_CATEGORY[3], CLASS_OF_CATEGORY[7]]
    with pytest.raises(DataError, match="two images have the same file_name"):
        RegionSource(write(instances(images=[{"id": 1, "file_name": "a/x"}, {"id": 2, "file_name": "b/x"}])))


def test_annotations_of_a_picture_of_another_size(write):
    images = [{"id": 9, "file_name": "x.jpg", "width": 200, "height": 100}, {"id": 4, "file_name": "y.jpg"}]
    path = write(instances(images=images, categories=[]))
    assert len(found(path, size=(200, 100))[0]) == 2
    with pytest.raises(
        DataError, match=r"image 9: its boxes are for an image of \(200, 100\) pixels .* \(100, 50\)"
    ):
        found(path)
    assert found(path, "y.jpg")[0]
    images[0]["width"] = 0  # some tools write so what they do not know
    assert len(found(write(instances(images=images, categories=[])))[0]) == 2


def test_detections_of_coco(write):
    path = write(detections())
    assert found(path, "COCO_val2014_000000000009.jpg") == (
        [[1, 2, 4, 6], [0, 0, 2, 2]],
        [BALL, CAR],
        [0.75, 0.25],
    )
    assert found(path, "4.png")[0] == [[1, 1, 3, 3]]
    assert found(path, "5.png")[0] == []
    with pytest.raises(DataError, match=r"x\.jpg does not end in one"):
        found(path)


def test_boxes_of_coco_up_to_the_edge(write, caplog):
    path = write([{"image_id": 9, "bbox": [90, 40.5, 10.01, 9.5]}])
    assert found(path, "9.jpg")[0] == [[90, 40.5, 99, 49]]
    assert caplog.messages == []


def test_names_of_many_digits(write):
    assert found(write(detections()), f"{10**24}.jpg")[0] == []


def test_numbers_of_coco_are_classes_of_ours():
    named = {1: "person", 13: "stopsign", 37: "sportsball", 90: "toothbrush"}
    assert {number: CLASS_NAMES[CLASS_OF_CATEGORY[number]] for number in named} == named
    assert len(CLASS_OF_CATEGORY) == 80


def test_a_folder_or_an_archive_has_a_file_for_each_picture(write, tmp_path):
    write([[1, 2, 3, 4]], "x.json")
    write({"boxes": [[5, 6, 7, 8]]}, "y.json")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "x.json", "in/x.json")
    assert found(str(tmp_path), "y.jpg")[0] == [[5, 6, 7, 8]]
    assert found(f"{tmp_path}/a.zip@/in", "x.jpg")[0] == [[1, 2, 3, 4]]
    write([[3, 4, 5, 6]], "9.json")
    for place in (f"{tmp_path}/a.zip", f"{tmp_path}/a.zip@/", f"{tmp_path}/a.zip@/in"):
        (tmp_path / "a.zip").unlink()
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.write(tmp_path / "9.json", f"{place.partition('zip@/')[2] or '.'}/9.json")
        assert found(place, "COCO_val2014_000000000009.jpg")[0] == [[3, 4, 5, 6]]  # as VQA names them
    assert found(str(tmp_path), "COCO_val2014_000000000009.jpg")[0] == [[3, 4, 5, 6]]
    assert RegionSource(str(tmp_path)).read("x_9.jpg", "y").boxes.tolist() == [[5, 6, 7, 8]]
    write([[7, 7, 9, 9]], "x_9.json")
    assert found(str(tmp_path), "x_9.jpg")[0] == [[7, 7, 9, 9]]
    with pytest.raises(DataError, match=r"has no z\.json for z\.jpg"):
        found(str(tmp_path), "z.jpg")
    with pytest.raises(DataError, match=r"a\.zip@/in: has no z_07\.json or 7\.json for z_07\.jpg"):
        found(f"{tmp_path}/a.zip@/in", "z_07.jpg")


def test_what_is_neither_file_nor_folder(write, tmp_path):
    for name, message in (
        ("none", "none: no such folder"),
        ("none.json", r"none\.json: cannot be read \(No such file"),
        ("none.zip", r"none\.zip: no such file; expected a zip archive"),
    ):
        with pytest.raises(DataError, match=message):
            RegionSource(f"{tmp_path}/{name}")
    with pytest.raises(DataError, match=r"notes\.txt: expected json in UTF-8, but"):
        RegionSource(write("no json", "notes.txt"))
    assert found(write([[1, 2, 3, 4]], "boxes"))[0] == [[1, 2, 3, 4]]


def test_a_byte_order_mark(tmp_path):
    for content in ([[1, 2, 3, 4]], instances(), detections()):
        (tmp_path / "b.json").write_text(json.dumps(content), encoding="utf-8-sig")
        assert RegionSource(f"{tmp_path}/b.json").read("9.jpg" if content == detections() else "x.jpg").source
    (tmp_path / "x.json").write_text("[[1, 2, 3, 4]]", encoding="utf-8-sig")
    assert found(str(tmp_path))[0] == [[1, 2, 3, 4]]


def test_packed_files(tmp_path):
    path = tmp_path / "set.packed"
    classes = torch.zeros(1, 81)
    classes[0, CAR] = 0.75
    regions = Regions(
        torch.tensor([[1.0, 2, 3, 4]]), torch.ones(1, 6), torch.ones(6), class_scores=classes, image_size=SIZE
    )
    with packed_file(path, PackedHeader(dtype="float32", feature_dim=6, classes=True)) as writer:
        writer.add("x", regions)
        writer.add("9", regions._replace(boxes=torch.tensor([[5.0, 6, 7, 8]])))
        writer.finish(0)
    assert found(str(path)) == ([[1, 2, 3, 4]], [CAR], [0.75])
    assert found(str(path), "COCO_val2014_000000000009.jpg")[0] == [[5, 6, 7, 8]]
    assert RegionSource(str(path)).read("x.jpg", feature_dim=6).features.tolist() == [[1] * 6]
    with pytest.raises(DataError, match=r"image z: not in this file"):
        found(str(path), "z.jpg")
    with pytest.raises(DataError, match=r"for an image of \(100, 50\) pixels"):
        found(str(path), size=(50, 100))


def test_boxes_beyond_the_picture_are_cut_off(write, caplog):
    path = write([[-0.5, 0, 100.01, 50], [-2, 10, 20, 30], [1, 1, 2, 2]])
    assert found(path)[0] == [[0, 0, 99, 49], [0, 10, 20, 30], [1, 1, 2, 2]]
    assert caplog.messages == [f"{path}: clipped 1 boxes to the image of 100 x 50 pixels"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected json in UTF-8, but it is empty"),
        ("[[1, 2", "expected json in UTF-8, but EOF"),
        ("3", "holds a int; expected a list of boxes"),
        ('"text"', "holds a str; expected a list"),
        ({"box": []}, "has no boxes; expected a list of boxes"),
        ([[1, 2, 3, 4], [1, 2, 3]], r"box 1 is \[1, 2, 3\]; expected four numbers"),
        ([[1, 2, 3, "x"]], "box 0 is .*; expected four numbers"),
        ([1, 2, 3, 4], "box 0 is 1; expected four numbers"),
        ([["1", "2", "3", "4"]], "box 0 is .*; expected four numbers"),
        ([[1, 2, 3, 4], [0, 0, True, True]], r"box 1 is \[0, 0, True, True\]; expected four numbers"),
        ([[0, 0, 1, 10**400]], "box 0 is .*; expected four numbers"),
        ([[0, 0, 1, [2]]], "box 0 is .*; expected four numbers"),
        (region_file(score=1.5), "box 0 has the class score 1.5; expected 0 to 1"),
        (region_file(score=-0.5, others=-1), "box 0 has the class score -0.5; expected 0 to 1"),
        ("[[0, 0, 1, 1], [0, NaN, 1, 1]]", "box 1, .*, is not finite"),
        ("[[0, 0, 1, Infinity]]", "box 0, .*, is not finite"),
        ([[0, 0, 1, 1], [9, 0, 8, 1]], "box 1, .*, is empty"),
        ([[100, 0, 120, 9]], "box 0, .*, is outside of the image of 100 x 50 pixels"),
        ([[0, -9, 5, -1]], "box 0, .*, is outside"),
        ({"boxes": [[1, 2, 3, 4]], "classes": []}, "one class for each of the 1 boxes"),
        ({"boxes": [[1, 2, 3, 4]], "classes": "car"}, "classes must be a list"),
        ({"boxes": [[1, 2, 3, 4]], "classes": ["carr"]}, "class 0 is 'carr'; did you mean car"),
        (
            {"boxes": [[1, 2, 3, 4]], "classes": [81]},
            "class 0 is 81; expected a COCO name, or a number from 0",
        ),
        ({"boxes": [[1, 2, 3, 4]], "classes": [True]}, "class 0 is True"),
        (
            instances(annotations=[{"image_id": 9, "bbox": [0, 0, 1]}]),
            r"annotations\.0\.bbox\.3: Field required",
        ),
        (
            instances(annotations=[{"image_id": 9, "bbox": [0, 0, 0, 1]}]),
            "image 9: box 0 is 0.0 wide .* empty",
        ),
        ('[{"image_id": 9, "bbox": [0, 0, 1, "1"]}]', r"0\.bbox\.3: Input should be a valid number"),
        ('[{"image_id": 9, "bbox": [0, 0, 1, true]}]', r"0\.bbox\.3: Input should be a valid number"),
        (
            '[{"image_id": 9, "bbox": [0, 0, 1, 1]}, {"image_id": 9, "bbox": [0, 0, 1, 1], "score": 1.5}]',
            r"1\.score: Input should be less than or equal to 1",
        ),
        ('[{"image_id": 9, "bbox": [0, 0, 1, 1], "score": -1}]', r"0\.score: Input should be greater"),
        ('[{"image_id": 9, "bbox": [0, 0, 1, 1], "score": NaN}]', r"0\.score: Input should be a finite"),
        (f'[{{"image_id": {10**30}, "bbox": [0, 0, 1, 1]}}]', r"0\.image_id: Input should be less than"),
        ('[{"image_id": 9, "bbox": [0, 0, NaN, 1]}]', r"0\.bbox\.2: Input should be a finite number"),
    ],
)
def test_what_is_wrong_is_named(write, content, message):
    with pytest.raises(DataError, match=rf"b\.json.*{message}"):
        found(write(content), "x.jpg" if isinstance(content, dict) else "9.jpg")
