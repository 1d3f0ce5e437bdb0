from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from common.data.images import (
    clip_boxes,
    compute_im_info,
    flip_boxes,
    image_to_tensor,
    open_image,
    resize_boxes,
    target_size,
    vcr_padded_size,
)
from common.errors import DataError


def save(path, image, **options):
    image.save(path, **options)
    return path


@pytest.mark.parametrize(
    ("size", "scales", "expected"),
    [
        ((1920, 817), (600, 1200), (1198, 510)),
        ((1920, 1080), (600, 1200), (1066, 600)),
        ((640, 480), (600, 1000), (800, 600)),
        ((428, 640), (600, 1000), (600, 897)),
        ((1000, 600), (600, 1000), (1000, 600)),
        ((1001, 600), (600, 1000), (999, 599)),
        ((10, 10000), (600, 1000), (1, 1000)),
        ((9, 10000), (600, 1000), (1, 1000)),
        ((10000, 1), (600, 1000), (1000, 1)),
        ((1, 1), (600, 1000), (600, 600)),
    ],
)
def test_target_size(size, scales, expected):
    assert target_size(*size, scales) == expected


def test_target_size_fits_padded_size():
    for width in range(1, 60):
        for height in range(1, 60):
            size = target_size(width, height, (8, 12))
            padded_size = vcr_padded_size(*size, (8, 12))
            assert 1 <= size[0] <= padded_size[1]
            assert 1 <= size[1] <= padded_size[0]


@pytest.mark.parametrize(
    ("size", "expected"), [((1198, 510), (600, 1200)), ((600, 600), (600, 1200)), ((510, 1198), (1200, 600))]
)
def test_vcr_padded_size_is_height_and_width(size, expected):
    assert vcr_padded_size(*size, (600, 1200)) == expected


def test_boxes_are_flipped_clipped_and_resized():
    assert flip_boxes(torch.tensor([[10.0, 5.0, 110.0, 50.0]]), 800).tolist() == [[689, 5, 789, 50]]
    boxes = torch.tensor([[-3.0, 2.0, 9.5, 30.0], [12.0, -1.0, 4.0, 3.0]])
    assert clip_boxes(boxes, 10, 20).tolist() == [[0, 2, 9, 19], [9, 0, 4, 3]]
    im_info = compute_im_info((100, 50), (200, 75))
    assert im_info.tolist() == [200, 75, 2, 1.5]
    boxes = torch.tensor([[0.0, 0.0, 99.0, 49.0], [10.0, 20.0, 100.0, 60.0]])
    assert resize_boxes(boxes, im_info, flipped=False).tolist() == [[0, 0, 198, 73.5], [20, 30, 199, 74]]
    assert resize_boxes(boxes, im_info, flipped=True).tolist() == [[1, 0, 199, 73.5], [0, 30, 179, 74]]


def test_image_to_tensor_returns_channels_b_g_r():
    image = Image.new("RGB", (3, 2))
    image.putpixel((0, 1), (1, 2, 3))
    pixels = image_to_tensor(image, (3, 2))
    assert (pixels.dtype, pixels.shape) == (torch.uint8, (3, 2, 3))
    assert pixels[:, 1, 0].tolist() == [3, 2, 1]
    assert pixels.sum() == 6
    assert image_to_tensor(image, (3, 2), flipped=True)[:, 1, 2].tolist() == [3, 2, 1]


def test_image_to_tensor_antialiases():
    image = Image.new("RGB", (4, 1))
    image.putpixel((1, 0), (70, 70, 70))
    # A triangle filter of width 4 around x = 1 weights the first three pixels 3, 3, 1.
    assert image_to_tensor(image, (2, 1))[0].tolist() == [[30, 10]]


def test_open_image_accepts_paths_images_and_arrays(tmp_path):
    array = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)
    image = Image.fromarray(array)
    path = save(tmp_path / "a.png", image)
    for source in (path, str(path), image, array):
        opened = open_image(source)
        assert (opened.mode, opened.size) == ("RGB", (4, 3))
        assert np.array_equal(np.asarray(opened), array)
    assert open_image(np.full((2, 3), 7, np.uint8)).getpixel((2, 1)) == (7, 7, 7)
    rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0]]], np.uint8)
    assert [open_image(rgba).getpixel((x, 0)) for x in (0, 1)] == [(10, 20, 30), (255, 255, 255)]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        *(
            (np.zeros(shape, dtype), r"expected uint8 of shape \(h, w\), \(h, w, 3\) or \(h, w, 4\)")
            for shape, dtype in (
                ((2, 2, 3), np.float64), ((2, 2, 2), np.uint8), ((3,), np.uint8), ((1, 2, 2, 3), np.uint8),
                ((2, 2), np.uint16),
            )
        ),
        (np.zeros((0, 3, 3), np.uint8), "has no pixels"),
        (Image.new("RGB", (0, 5)), "it has 0 x 5 pixels"),
        (3, "an image of type int; expected a path"),
        ("/nowhere/a.png", "a.png: cannot be read"),
        ("/tmp", r"cannot be read \(Is a directory\)"),
    ],
)  # fmt: skip
def test_open_image_rejects_other_sources(source, message):
    with pytest.raises(DataError, match=message):
        open_image(source)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_open_image_applies_exif_orientation(tmp_path, orientation):
    upright = Image.new("RGB", (3, 2))
    upright.putpixel((0, 0), (255, 0, 0))
    inverse = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    stored = upright.transpose(inverse[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    opened = open_image(save(tmp_path / "a.png", stored, exif=exif))
    assert np.array_equal(np.asarray(opened), np.asarray(upright))


def test_open_image_ignores_damaged_exif(tmp_path):
    exif = b"Exif\0\0II*\0\xff\xff\xff\xff"
    assert open_image(save(tmp_path / "a.jpg", Image.new("RGB", (3, 2), "red"), exif=exif)).size == (3, 2)


def test_open_image_converts_all_modes(tmp_path):
    gray = Image.fromarray(np.array([[0, 40000, 65535]], np.uint16))
    converted = open_image(save(tmp_path / "a.png", gray))
    assert [converted.getpixel((x, 0))[0] for x in range(3)] == [0, 156, 255]  # 40000 / 257 = 155.6
    assert open_image(save(tmp_path / "b.tif", gray)).getpixel((1, 0)) == (156, 156, 156)
    palette = Image.new("P", (1, 1), 1)
    palette.putpalette([9, 9, 9, 50, 60, 70])
    white = (255, 255, 255)
    for name, image, options, expected in (
        ("c.jpg", Image.new("CMYK", (8, 8), (0, 0, 0, 0)), {}, white),
        ("d.png", Image.new("RGBA", (1, 1), (200, 0, 0, 0)), {}, white),
        ("e.png", palette, {}, (50, 60, 70)),
        ("f.png", palette, {"transparency": 1}, white),
        ("g.png", Image.new("1", (1, 1), 1), {}, white),
    ):
        assert open_image(save(tmp_path / name, image, **options)).getpixel((0, 0)) == expected, name
    with pytest.raises(DataError, match=r"h\.tif: .*floating-point numbers; save it with 8 or 16 bits"):
        open_image(save(tmp_path / "h.tif", Image.new("F", (1, 1))))


@pytest.mark.parametrize("name", ["a.gif", "a.webp"])
def test_open_image_takes_the_first_frame_of_an_animation(tmp_path, name):
    red, blue = (Image.new("RGB", (4, 4), color) for color in ("red", "blue"))
    path = save(tmp_path / name, red, save_all=True, append_images=[blue], lossless=True)
    r, _, b = open_image(path).getpixel((0, 0))
    assert (r > 200, b < 50) == (True, True)


@pytest.mark.integration
def test_open_image_names_the_limit_of_pixels(tmp_path, monkeypatch):
    assert open_image(save(tmp_path / "b.png", Image.new("L", (20_000, 200)))).size == (20_000, 200)
    path = save(tmp_path / "a.png", Image.new("1", (20_000, 20_000)))
    with pytest.raises(DataError, match=r"a\.png: too large; an image may have 178,956,970 pixels at most"):
        open_image(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 7)  # Pillow warns above it, and fails above twice as many
    assert open_image(save(tmp_path / "b.png", Image.new("L", (5, 2)))).size == (5, 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"not an image", "of no known format"),
        (b"\x89PNG\r\n\x1a\n", "not a readable image"),
    ],
)
def test_open_image_rejects_other_files(tmp_path, content, message):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.png: .*{message}"):
        open_image(tmp_path / "a.png")


def test_open_image_rejects_truncated_files(tmp_path):
    data = BytesIO()
    Image.effect_noise((64, 64), 50).save(data, "JPEG")
    path = tmp_path / "a.jpg"
    path.write_bytes(data.getvalue()[:-500])
    with pytest.raises(DataError, match=r"a\.jpg: not a readable image \(.*truncated"):
        open_image(path)
    with Image.open(path) as opened, pytest.raises(DataError, match=r"a\.jpg: .*truncated"):
        open_image(opened)
