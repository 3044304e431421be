"""The one image reader: every kind of picture, value ranges, folders, and the ways to make a square."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from labkit.diffusion import from_pil
from labkit.images import ImageError, centre_box, common_range, fit_levels, read_folder, read_levels, read_tensor
from labkit.metrics import ImagePipeline
from labkit.metrics.images import uint8_images

LEVELS = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)  # not square, channels differ
LEVELS[0, 0], LEVELS[0, 1] = 0, 255  # the whole range
CHW = torch.from_numpy(LEVELS).permute(2, 0, 1)
GREY = LEVELS[..., 0]


@pytest.mark.parametrize(
    "same",
    [
        LEVELS, CHW, LEVELS.transpose(2, 0, 1), LEVELS.astype(np.int64), LEVELS.astype(np.uint16) * 257,
        Image.fromarray(LEVELS), CHW.float() / 127.5 - 1, (CHW.double() / 127.5 - 1).numpy(), CHW.float(),
        np.dstack([LEVELS, np.full_like(GREY, 255)]),
    ],
    ids=["uint8", "tensor", "chw", "int64", "uint16", "pil", "float[-1,1]", "float64", "float[0,255]", "rgba"],
)  # fmt: skip
def test_every_kind_of_picture_is_the_same_picture(same):
    assert np.array_equal(read_levels(same), LEVELS)
    assert torch.equal(uint8_images([same])[0], CHW)
    tensor = read_tensor(same)
    assert tensor.shape == (3, 6, 5) and tensor.dtype == torch.float32
    torch.testing.assert_close(tensor, from_pil([Image.fromarray(LEVELS)])[0], atol=1e-6, rtol=0)


def test_grey_and_flags_get_three_channels():
    want = np.repeat(GREY[..., None], 3, axis=2)
    for same in (GREY, GREY[..., None], torch.from_numpy(GREY)[None], Image.fromarray(GREY), GREY.astype(np.float32)):
        assert np.array_equal(read_levels(same, value_range=(0, 255)), want)
    assert read_levels(np.array([[True, False]])).tolist() == [[[255] * 3, [0] * 3]]


def test_floats_keep_their_digits_as_tensors():
    floats = torch.linspace(-1, 1, 3 * 4 * 6).view(3, 4, 6)
    assert torch.equal(read_tensor(floats), floats)
    torch.testing.assert_close(read_tensor(floats / 2 + 0.5, value_range=(0, 1)), floats)
    assert torch.equal(read_tensor(floats.half()), floats.half().float())
    assert read_tensor(floats).data_ptr() != floats.data_ptr()  # nobody else's picture changes with it


@pytest.mark.parametrize(
    ("low", "high", "match"),
    [
        (0.0, 1.0, r"can be \[0, 1\] or part of \[-1, 1\]: declare"),
        (0.1, 0.9, "declare value_range"),
        (-0.1, 1.05, "declare value_range"),  # [0, 1] after a bicubic filter
        (0.0, 1.9, "declare value_range"),
        (-2.1, 2.6, "before any normalisation"),
        (0.0, 65535.0, r"expected \[0, 1\]"),
        (float("nan"), 1.0, "overflowed"),
    ],
)
def test_floats_with_two_readings_are_refused_in_one_line(low, high, match):
    floats = torch.full((3, 4, 4), 0.5 * (low + high))
    floats[0, 0, :2] = torch.tensor([low, high])
    for read in (read_levels, read_tensor, ImagePipeline("tiny", 4)):
        with pytest.raises(ImageError, match=match) as error:
            read(floats)
        assert "\n" not in str(error.value)


def test_a_declared_range_is_held_against_the_values():
    with pytest.raises(ImageError, match=r"run from -1 to 1, expected \[0, 1\]"):
        read_levels(torch.linspace(-1, 1, 27).view(3, 3, 3), value_range=(0, 1))
    with pytest.raises(ImageError, match="integers from -1 to 3"):
        read_levels(np.array([[-1, 3]]))
    assert (read_levels(torch.full((3, 2, 5), 0.5), value_range=(0, 1)) == 128).all()


@pytest.mark.parametrize("of_the_floats", [(-1, 1), (0, 1)])
def test_a_range_of_floats_is_not_that_of_the_integers_beside_them(tmp_path, of_the_floats):
    deep = GREY.astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "deep.png")
    for same in (tmp_path / "deep.png", deep, GREY.astype(np.int64)):
        assert np.array_equal(read_levels(same, value_range=of_the_floats)[..., 0], GREY)
    dark = np.full((2, 3), 200, np.uint16)  # of 65535, not of 255
    assert (read_levels(dark, value_range=of_the_floats) == 1).all()
    with pytest.raises(ImageError, match="expected 0 to 255"):
        read_levels(deep, value_range=(0, 255))


def test_one_bright_picture_has_the_range_of_its_set():
    dark, bright = torch.linspace(-1, 1, 48).view(3, 4, 4), torch.full((3, 4, 4), 0.5)
    assert common_range([bright, dark]) == (-1.0, 1.0) and common_range([Image.new("RGB", (2, 2))]) is None
    assert torch.equal(uint8_images([bright, dark])[0], torch.full((3, 4, 4), 191, dtype=torch.uint8))
    with pytest.raises(ImageError, match="the set of images"):
        uint8_images([bright, torch.full((3, 4, 4), torch.nan)])


NO_PICTURES = [
    np.zeros((2, 2, 2, 3)), np.zeros((5, 7, 2), np.uint8), None, np.array([["a"]]), torch.zeros(3, 0, 4),
    Image.new("RGB", (0, 3)), torch.zeros(3, 2, 2).long() - 1,
]  # fmt: skip


@pytest.mark.parametrize("bad", NO_PICTURES)
def test_what_is_no_picture_is_refused(bad):
    with pytest.raises(ImageError):
        read_levels(bad)


# ---- files ----------------------------------------------------------------------------------------------------------


def test_files_of_every_mode_are_read_as_a_viewer_shows_them(tmp_path):
    clear = np.dstack([LEVELS, np.zeros_like(GREY)])
    Image.fromarray(clear).save(tmp_path / "clear.png")
    Image.fromarray(GREY).save(tmp_path / "grey.png")
    Image.fromarray(LEVELS).quantize(4).save(tmp_path / "palette.png")
    Image.new("CMYK", (4, 2), (255, 0, 0, 0)).save(tmp_path / "cmyk.jpg")
    Image.fromarray(GREY.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    Image.fromarray(GREY.astype(np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(GREY.astype(np.float32) / 255).save(tmp_path / "unit.tif")
    turned = Image.fromarray(LEVELS)
    exif = turned.getexif()
    exif[0x0112] = 6  # a camera held upright
    turned.save(tmp_path / "turned.png", exif=exif)
    folder, grey = read_folder(tmp_path), np.repeat(GREY[..., None], 3, axis=2)
    read = dict(zip(folder.names, (read_levels(folder.path(i)) for i in range(7)), strict=False))
    assert folder.names == ("clear.png", "cmyk.jpg", "deep.png", "float.tif", "grey.png", "palette.png",
                            "turned.png", "unit.tif")  # fmt: skip
    assert (read["clear.png"] == 255).all()
    assert read["cmyk.jpg"][0, 0, 1] > read["cmyk.jpg"][0, 0, 0] + 100  # cyan ink: no red
    assert all(np.array_equal(read[name], grey) for name in ("deep.png", "float.tif", "grey.png"))
    assert len(np.unique(read["palette.png"].reshape(-1, 3), axis=0)) == 4
    assert np.array_equal(read["turned.png"], np.rot90(LEVELS, -1))
    with pytest.raises(ImageError, match=r"unit.tif has values from 0 to 1.*declare"):
        folder[7]
    assert np.array_equal(read_folder(tmp_path, value_range=(0, 1))[7], grey)
    assert np.array_equal(read_levels((tmp_path / "grey.png").read_bytes()), grey)
    assert np.array_equal(read_levels(Image.open(tmp_path / "turned.png")), np.rot90(LEVELS, -1))


def test_a_folder_has_one_order_and_names_what_cannot_be_read(tmp_path):
    for name in ("b.png", "a/c.PNG", "B.png", ".hidden/x.png", "10.png", "9.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (2, 2)).save(tmp_path / name)
    noise = np.random.default_rng(2).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:1500])
    (tmp_path / "phone.heic").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("no picture")
    Image.new("RGB", (2, 2)).save(tmp_path / "saved.png")
    (tmp_path / "saved.png").rename(tmp_path / "saved.jfif")  # as a browser names what it saves
    (tmp_path / "shelf").symlink_to(tmp_path / "a", target_is_directory=True)
    folder = read_folder(tmp_path)
    known = ("10.png", "9.png", "B.png", "a/c.PNG", "b.png", "cut.png", "phone.heic", "saved.jfif", "shelf")
    assert folder.names == known
    assert [len(batch) for batch in folder[:4].batches(3)] == [3, 1]
    assert set(folder.unreadable()) == {"cut.png", "phone.heic", "saved.jfif", "shelf"}
    with pytest.raises(ImageError, match=r"saved\.jfif: holds a picture \(PNG\), its name ends otherwise: rename it"):
        folder[7:][0]
    with pytest.raises(ImageError, match=r"cut\.png cannot be read as a picture .*: copy it again") as error:
        list(folder.batches(2))
    assert str(tmp_path / "cut.png") in str(error.value) and "\n" not in str(error.value)
    assert "a/c.PNG" not in read_folder(tmp_path, recursive=False).names
    (tmp_path / "empty").mkdir()
    for path, match in (("empty", "holds no pictures"), ("nowhere", "is not a folder")):
        with pytest.raises(ImageError, match=match):
            read_folder(tmp_path / path)
    with pytest.raises(ImageError, match="no image file"):
        read_levels(tmp_path / "gone.png")


# ---- squares --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(37, 90), (90, 37), (40, 40), (8, 20), (64, 65)])
def test_the_crop_of_clip_is_the_processors_digit_for_digit(shape):
    levels = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    theirs = torch.as_tensor(np.asarray(processor(Image.fromarray(levels))["pixel_values"])[0])
    ours = fit_levels(levels, 32, "clip")
    torch.testing.assert_close(read_tensor(ours), theirs.float(), atol=1e-6, rtol=0)
    pipeline = ImagePipeline("clip-32", 32, fit="clip")
    torch.testing.assert_close(pipeline([levels])[0], theirs.float(), atol=1e-6, rtol=0)


def test_a_crop_keeps_proportions_where_a_squash_does_not():
    levels = np.zeros((40, 80, 3), dtype=np.uint8)
    levels[:, 20:60] = 255  # the central square is white
    assert (fit_levels(levels, 16, "crop") == 255).all() and not (fit_levels(levels, 16) == 255).all()
    assert fit_levels(levels, (10, 30), "crop").shape == (10, 30, 3)
    assert fit_levels(levels, (10, 30), "clip").shape == (10, 30, 3)
    cropping = ImagePipeline("tiny-16", 16, fit="crop")
    assert (cropping([levels]) > 0.999).all() and "centre crop" in cropping.describe()
    with pytest.raises(ValueError, match="unknown way to fit"):
        fit_levels(levels, 16, "pad")


def test_sizes_of_numpy_crop_as_pythons_own_do():
    levels = np.arange(100 * 120 * 3, dtype=np.uint8).reshape(100, 120, 3)
    want = fit_levels(levels, (64, 32), "crop")
    for kind in (np.uint8, np.int64, torch.tensor):
        assert np.array_equal(fit_levels(levels, (kind(64), kind(32)), "crop"), want)
        assert centre_box(kind(100), kind(120), kind(64), kind(64)) == (0, 10, 100, 100)  # 120 * 64 is no uint8
