"""Image files are read as a viewer shows them."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from purify_jax.checks import InputError
from purify_jax.data import image_files, read_image
from purify_jax.data.images import to_bytes

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (6, 4, 3), dtype=np.uint8)
GREY = RGB[..., :1]
DEEP = RNG.integers(0, 65536, (6, 4), dtype=np.uint16)
COLOUR = Image.fromarray(RGB)


def with_alpha(opacity):
    return Image.fromarray(np.dstack([RGB, np.full((6, 4), opacity, np.uint8)]))


def palette(**transparency):
    image = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(6, 4), "P")
    image.putpalette(list(range(0, 240, 10)) * 3)
    image.info |= transparency
    return image


#: Orientation → how the stored pixels are turned to be shown (EXIF 2.32, tag 274).
TURNED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
def test_orientation(tmp_path, orientation, suffix):
    path, exif = tmp_path / f"a.{suffix}", Image.Exif()
    exif[0x0112] = orientation
    COLOUR.save(path, exif=exif, lossless=True)
    np.testing.assert_array_equal(read_image(path), TURNED[orientation](RGB))
    if suffix == "png":
        Image.fromarray(DEEP).save(path, exif=exif)
        expected = np.rint(DEEP / 257).astype(np.uint8)[..., None]
        np.testing.assert_array_equal(read_image(path), TURNED[orientation](expected))


def test_a_damaged_orientation_turns_nothing(tmp_path):
    COLOUR.save(tmp_path / "a.png", exif=b"Exif\0\0no such thing")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), RGB)


@pytest.mark.parametrize(
    ("image", "suffix", "expected"),
    [
        (COLOUR, "png", RGB),
        (COLOUR, "bmp", RGB),
        (COLOUR, "tga", RGB),
        (COLOUR, "ppm", RGB),
        (Image.fromarray(GREY[..., 0]), "png", GREY),
        (Image.fromarray(GREY[..., 0] > 99), "png", 255 * (GREY > 99)),
        (Image.fromarray(DEEP), "png", np.rint(DEEP / 257)[..., None]),
        (Image.fromarray(DEEP), "tif", np.rint(DEEP / 257)[..., None]),
        (Image.fromarray(DEEP), "pgm", np.rint(DEEP / 257)[..., None]),
        (Image.fromarray((GREY[..., 0] / 255).astype(np.float32)), "tif", GREY),
        (with_alpha(255), "png", RGB),
        (with_alpha(0), "png", np.full((6, 4, 3), 255)),
        (Image.merge("LA", [Image.fromarray(GREY[..., 0]), Image.new("L", (4, 6), 255)]), "png", GREY),
        (palette(), "png", np.asarray(palette().convert("RGB"))),
        (palette(), "gif", np.asarray(palette().convert("RGB"))),
        (Image.new("CMYK", (2, 3), (255, 0, 0, 0)), "tif", np.tile([0, 255, 255], (3, 2, 1))),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)  # fmt: skip
def test_pixels(tmp_path, image, suffix, expected):
    image.save(tmp_path / f"a.{suffix}")
    found = read_image(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.uint8
    for channels in (1, 3):
        assert read_image(tmp_path / f"a.{suffix}", channels).shape[-1] == channels
    if expected.shape[-1] == 1:  # grey as colour: three times itself
        colour = read_image(tmp_path / f"a.{suffix}", 3)
        np.testing.assert_array_equal(colour, np.repeat(expected, 3, -1))


def test_transparency_is_white(tmp_path):
    half = np.rint(RGB.astype(float) * 128 / 255 + 255 * 127 / 255)
    with_alpha(128).save(tmp_path / "half.png")
    assert np.abs(read_image(tmp_path / "half.png") - half).max() <= 1
    for transparency in (3, bytes([255, 255, 255, 0])):  # one index, or the opacity of each
        palette().save(tmp_path / "p.png", transparency=transparency)
        found = read_image(tmp_path / "p.png")
        np.testing.assert_array_equal(found[0, 3], [255, 255, 255])
        np.testing.assert_array_equal(found[0, 2], np.asarray(palette().convert("RGB"))[0, 2])
    COLOUR.save(tmp_path / "key.png", transparency=tuple(map(int, RGB[0, 0])))
    np.testing.assert_array_equal(read_image(tmp_path / "key.png")[0, 0], [255, 255, 255])


def test_an_animation_is_its_first_frame(tmp_path):
    rest = [Image.new("RGB", (4, 6), "red")] * 2
    for suffix in ("gif", "webp", "png", "tif"):
        more = {"lossless": True} if suffix == "webp" else {}
        COLOUR.save(tmp_path / f"a.{suffix}", save_all=True, append_images=rest, **more)
        assert np.abs(read_image(tmp_path / f"a.{suffix}").astype(int) - RGB).max() <= 30


@given(
    arrays(
        st.sampled_from([np.uint16, np.int32, np.float32, bool]),
        (2, 3),
        elements={"min_value": 0, "max_value": 1},
    )
)
@settings(max_examples=40, deadline=None)
def test_bytes_of_any_numbers(pixels):
    most = {"u": 65535, "i": 65535, "f": 1, "b": 1}[pixels.dtype.kind]
    np.testing.assert_array_equal(to_bytes(pixels), np.rint(pixels * (255.0 / most)))
    for bad in (np.array([-1]), np.array([70000]), np.array([2.0]), np.array([np.nan])):
        with pytest.raises(InputError, match="expected 8 or 16 bits, or floats in"):
            to_bytes(bad)


def test_image_files_are_those_that_a_viewer_opens(tmp_path):
    buffer = io.BytesIO()
    COLOUR.save(buffer, "PNG")
    images = ["a.PNG", "b.jpeg", "c.webp", "d.gif", "e.tiff", "f.heic", "g.bmp", "h"]
    for name in [*images, ".hidden.png", "._a.png", "notes", "Thumbs.db", "labels.npy", "x.txt"]:
        text = name in ("notes", "Thumbs.db", "x.txt", "labels.npy")
        (tmp_path / name).write_bytes(b"text" if text else buffer.getvalue())
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in image_files(tmp_path)] == images
    (tmp_path / "f.heic").write_bytes(b"ftypheic")
    with pytest.raises(InputError, match=r"Pillow reads no .heic: convert it to PNG"):
        read_image(tmp_path / "f.heic")
    for damaged in (b"", buffer.getvalue()[:60]):
        (tmp_path / "a.PNG").write_bytes(damaged)
        with pytest.raises(InputError, match="a.PNG cannot be read: .+"):
            read_image(tmp_path / "a.PNG")


def test_purify_names_and_counts_what_it_skips(run_binary, tmp_path):
    (tmp_path / "in").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 3
    up = np.zeros((8, 8), np.uint8)
    up[:4] = 255
    Image.fromarray(up[::-1]).save(tmp_path / "in" / "phone.png", exif=exif)
    Image.fromarray(up).convert("RGBA").save(tmp_path / "in" / "colour.png")
    Image.fromarray(up).resize((24, 16)).save(tmp_path / "in" / "large.png")
    (tmp_path / "in" / "raw.heic").write_bytes(b"ftypheic")
    command = [
        "purify",
        "--model=digits",
        "--num_steps=1",
        "--num_restarts=1",
        f"--input={tmp_path / 'in'}",
    ]
    done = run_binary(*command, f"--workdir={tmp_path / 'out'}")
    assert "large.png is (16, 24, 1), expected (8, 8, 1); --image_size=8 resizes it" in done.stdout
    assert "skipped: image: " in done.stdout
    assert "2 images purified, 2 skipped" in done.stdout
    for name in ("phone", "colour"):
        found = read_image(tmp_path / "out" / "purified" / f"{name}.png").astype(int)
        assert found[:4].mean() > 128 > found[4:].mean()
    done = run_binary(*command, "--image_size=8", f"--workdir={tmp_path / 'all'}")
    assert "3 images purified, 1 skipped" in done.stdout
