from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from common.data.images import open_image
from common.errors import DataError


def saved(path, image, **options):
    image.save(path, **options)
    return path


def test_a_path_an_archive_a_picture_and_an_array_are_the_same(tmp_path):
    array = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)
    image = Image.fromarray(array)
    path = saved(tmp_path / "a.png", image)
    for source in (path, str(path), image, array):
        found = open_image(source)
        assert (found.mode, found.size) == ("RGB", (4, 3))
        assert np.array_equal(np.asarray(found), array)


def test_arrays_of_grey_and_with_opacity():
    assert open_image(np.full((2, 3), 7, np.uint8)).getpixel((2, 1)) == (7, 7, 7)
    half = np.array([[[10, 20, 30, 255], [10, 20, 30, 0]]], np.uint8)
    assert [open_image(half).getpixel((x, 0)) for x in (0, 1)] == [(10, 20, 30), (255, 255, 255)]
    with pytest.raises(DataError, match="has no pixels"):
        open_image(np.zeros((0, 3, 3), np.uint8))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 2, 3)), np.zeros((2, 2, 2), np.uint8), np.zeros((3,), np.uint8),
        np.zeros((1, 2, 2, 3), np.uint8), np.zeros((2, 2), np.uint16),
    ],
)  # fmt: skip
def test_other_arrays_are_named(array):
    with pytest.raises(DataError, match=r"expected uint8 of shape \(h, w\), \(h, w, 3\) or \(h, w, 4\)"):
        open_image(array)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_as_exif_says(tmp_path, orientation):
    """A picture of 3 x 2 with one red pixel in its upper left corner as it is looked at."""
    shown = Image.new("RGB", (3, 2))
    shown.putpixel((0, 0), (255, 0, 0))
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    stored = shown.transpose(undo[orientation]) if orientation > 1 else shown
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = open_image(saved(tmp_path / "a.png", stored, exif=exif))
    assert found.size == (3, 2)
    assert np.array_equal(np.asarray(found), np.asarray(shown))


def test_damaged_exif_data_say_nothing(tmp_path):
    data = BytesIO()
    Image.new("RGB", (3, 2), "red").save(data, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    (tmp_path / "a.jpg").write_bytes(data.getvalue())
    assert open_image(tmp_path / "a.jpg").size == (3, 2)


def test_colours_of_all_kinds(tmp_path):
    grey = Image.fromarray(np.array([[0, 40000, 65535]], np.uint16))
    wide = open_image(saved(tmp_path / "a.png", grey))
    assert [wide.getpixel((x, 0))[0] for x in range(3)] == [0, 156, 255]  # 40000 / 257 = 155.6
    assert open_image(saved(tmp_path / "b.tif", grey)).getpixel((1, 0)) == (156, 156, 156)
    cmyk = saved(tmp_path / "c.jpg", Image.new("CMYK", (8, 8), (0, 0, 0, 0)))
    assert open_image(cmyk).getpixel((0, 0)) == (255, 255, 255)
    clear = Image.new("RGBA", (1, 1), (200, 0, 0, 0))
    assert open_image(saved(tmp_path / "d.png", clear)).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (1, 1), 1)
    palette.putpalette([9, 9, 9, 50, 60, 70])
    assert open_image(saved(tmp_path / "e.png", palette)).getpixel((0, 0)) == (50, 60, 70)
    assert open_image(saved(tmp_path / "f.png", palette, transparency=1)).getpixel((0, 0)) == (255, 255, 255)
    assert open_image(Image.new("1", (1, 1), 1)).getpixel((0, 0)) == (255, 255, 255)
    with pytest.raises(DataError, match=r"f\.tif: .*floating-point numbers; save it with 8 or 16 bits"):
        open_image(saved(tmp_path / "f.tif", Image.new("F", (1, 1))))


def test_of_an_animation_the_first_frame(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for name in ("a.gif", "a.webp"):
        path = saved(tmp_path / name, frames[0], save_all=True, append_images=frames[1:], lossless=True)
        red, _, blue = open_image(path).getpixel((0, 0))
        assert (red > 200, blue < 50) == (True, True)


def test_very_small_and_very_long(tmp_path):
    assert open_image(saved(tmp_path / "a.png", Image.new("RGB", (1, 1)))).size == (1, 1)
    assert open_image(saved(tmp_path / "b.png", Image.new("L", (20_000, 200)))).size == (20_000, 200)
    with pytest.raises(DataError, match="it has 0 x 5 pixels"):
        open_image(Image.new("RGB", (0, 5)))


def test_a_huge_one_names_the_limit(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.png", Image.new("1", (20_000, 20_000)))
    with pytest.raises(DataError, match=r"a\.png: too large; an image may have 178,956,970 pixels at most"):
        open_image(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 7)  # Pillow warns above it, and stops above twice as many
    assert open_image(saved(tmp_path / "b.png", Image.new("L", (5, 2)))).size == (5, 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"no picture at all", "of no known format"),
        (b"\x89PNG\r\n\x1a\n", "not a readable image"),
    ],
)
def test_what_is_no_picture(tmp_path, content, message):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.png: .*{message}"):
        open_image(tmp_path / "a.png")


def test_cut_off_missing_and_a_folder(tmp_path):
    path = saved(tmp_path / "a.jpg", Image.effect_noise((64, 64), 50))
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(DataError, match=r"a\.jpg: not a readable image \(.*truncated"):
        open_image(path)
    with Image.open(path) as opened, pytest.raises(DataError, match=r"a\.jpg: .*truncated"):
        open_image(opened)
    with pytest.raises(DataError, match="none: cannot be read"):
        open_image(tmp_path / "none")
    with pytest.raises(DataError, match=r"cannot be read \(Is a directory\)"):
        open_image(tmp_path)
