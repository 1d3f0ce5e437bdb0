from PIL import Image

from common.inference.grid import GRID, GridDetector


def test_grid_covers_image_and_warns_once(caplog):
    detector = GridDetector()
    first, second = detector([Image.new("RGB", (100, 40)), Image.new("RGB", (1, 1))])
    detector([Image.new("RGB", (5, 5))])
    (message,) = caplog.messages
    assert message.startswith("no boxes and no detector: using a grid of 14 regions")
    assert first.boxes[:5].tolist() == [
        [0, 0, 99, 39], [0, 0, 49, 39], [50, 0, 99, 39], [0, 0, 99, 19], [0, 20, 99, 39],
    ]  # fmt: skip
    assert first.boxes[5:8].tolist() == [[0, 0, 49, 19], [25, 0, 74, 19], [50, 0, 99, 19]]
    assert first.boxes[-1].tolist() == [50, 20, 99, 39]
    assert len(first.boxes) == len(GRID) == len(first.class_ids) == len(first.scores)
    assert second.boxes.unique().tolist() == [0]


def test_grid_does_not_warn_again(caplog):
    GridDetector(warned=True)([Image.new("RGB", (5, 5))])
    assert caplog.messages == []
