"""Folders of images: what is a class, what well-known layouts look like, and in which order images come."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from purify_jax import data
from purify_jax.checks import InputError
from purify_jax.data.folders import is_hidden


def write(path, value=0, shape=(4, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(shape, value, np.uint8)).save(path)


@pytest.mark.parametrize(
    "name",
    [".ipynb_checkpoints", "__MACOSX", ".git", "@eaDir", "$RECYCLE.BIN", "Thumbs", "__pycache__",
     ".Trashes", "System Volume Information", "lost+found"],
)  # fmt: skip
def test_hidden_and_system_folders_are_no_classes(tmp_path, caplog, name):
    write(tmp_path / "test" / "cat" / "1.png")
    write(tmp_path / "test" / name / "._1.png")
    write(tmp_path / "test" / name / "copy.png")
    write(tmp_path / "test" / "zebra" / "1.png")
    write(tmp_path / "test" / "cat" / "._1.png")  # macOS writes such files beside others
    found = data.load_split("folder", "test", tmp_path)
    assert (found.class_names, sorted(found.labels)) == (("cat", "zebra"), [0, 1])
    assert f"left out: {name}" in caplog.text


@given(st.text(max_size=8))
@settings(max_examples=25, deadline=None)
def test_dots_hide_and_other_names_do_not(name):
    assert is_hidden(f".{name}")
    assert not is_hidden(f"class {name}")


def test_an_empty_class_is_refused(tmp_path):
    write(tmp_path / "test" / "cat" / "1.png")
    (tmp_path / "test" / "dog").mkdir()
    (tmp_path / "test" / "dog" / "notes.txt").write_text("none")
    with pytest.raises(InputError, match="no readable images in .*test of dog, expected at least"):
        data.load_split("folder", "test", tmp_path)
    (tmp_path / "test" / "dog" / "1.png").write_bytes(b"damaged")
    with pytest.raises(InputError, match="no readable images in .*test of dog"):
        data.load_split("folder", "test", tmp_path)


def test_tiny_imagenet(tmp_path):
    root = tmp_path / "tiny-imagenet-200"
    for value, wnid in enumerate(("n01443537", "n01629819")):
        write(root / "train" / wnid / "images" / f"{wnid}_0.png", value)
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("box")
        write(root / "val" / "images" / f"val_{value}.png", value)
    rows = ["val_0.png\tn01443537\t0\t32\t44\t62", "val_1.png\tn01629819\t0\t0\t1\t1"]
    (root / "val" / "val_annotations.txt").write_text("\n".join(rows) + "\n")
    for split in ("train", "val"):
        found = data.load_split("folder", split, root)
        assert found.class_names == ("n01443537", "n01629819")
        assert found.images[:, 0, 0, 0].tolist() == found.labels.tolist()
    write(root / "test" / "images" / "test_0.png")
    with pytest.raises(InputError, match="one folder 'images' and no labels, as Tiny-ImageNet's t"):
        data.load_split("folder", "test", root)
    with pytest.raises(InputError, match="expected the folder inside it, .*tiny-imagenet-200"):
        data.load_split("folder", "val", tmp_path)
    (root / "val" / "val_annotations.txt").write_text("val_0.png n01443537\n")
    with pytest.raises(InputError, match="val_annotations.txt is damaged, expected lines"):
        data.load_split("folder", "val", root)


def test_layouts_that_are_refused_by_name(tmp_path):
    load = lambda split, root=tmp_path: data.load_split("folder", split, root)
    write(tmp_path / "val" / "ILSVRC2012_val_00000001.png")
    with pytest.raises(InputError, match="ImageNet's images without their classes"):
        load("val")
    write(tmp_path / "flat" / "1.png")
    with pytest.raises(InputError, match="holds 1 images and no class folders"):
        load("flat")
    write(tmp_path / "kaggle" / "ILSVRC" / "Data" / "CLS-LOC" / "train" / "n01440764" / "1.png")
    with pytest.raises(InputError, match="folder inside it, .*ILSVRC/Data/CLS-LOC"):
        load("train", tmp_path / "kaggle")
    inside = tmp_path / "kaggle" / "ILSVRC" / "Data" / "CLS-LOC"
    assert load("train", inside).class_names == ("n01440764",)
    with pytest.raises(InputError, match=r"no class folders, .*data_dir holds flat, kaggle, val"):
        load("test")


@pytest.fixture
def sorted_folder(tmp_path):
    """Ten classes of twelve images each, whose values are their classes."""
    for label in range(10):
        for i in range(12):
            write(tmp_path / "test" / f"class {label}" / f"{i}.png", label, (1, 1))
    return tmp_path


def test_slices_of_a_folder_hold_all_classes(sorted_folder, caplog):
    whole = data.load_split("folder", "test", sorted_folder)
    assert whole.images.ravel().tolist() == whole.labels.tolist()
    for part in (whole.take(48), data.load_split("folder", "test[60%:]", sorted_folder)):
        assert len(part) == 48
        assert len(np.unique(part.labels)) == 10
    assert "no images of" not in caplog.text
    few = whole.take(3)
    lacking = [f"class {label}" for label in range(10) if label not in few.labels]
    assert f"folder test: no images of {', '.join(lacking)} in the first 3" in caplog.text


def test_the_order_is_fixed_and_a_new_file_moves_none(sorted_folder):
    """Of SHA-256: the first of 120 are known, and those that were there keep their order."""
    whole = data.load_split("folder", "test", sorted_folder)
    assert whole.labels[:6].tolist() == [7, 2, 1, 3, 8, 5]
    write(sorted_folder / "test" / "class 3" / "new.png", 33, (1, 1))
    more = data.load_split("folder", "test", sorted_folder)
    assert more.images[more.images.ravel() != 33].tolist() == whole.images.tolist()


def test_data_sorted_by_class_say_so(caplog):
    labels = np.repeat(np.arange(4), 5)
    data.Dataset("own", "test", np.zeros((20, 1, 1, 1)), labels, 4).take(10)
    assert "own test: no images of 2, 3 in the first 10" in caplog.text
    caplog.clear()
    data.load_split("digits", "test").take(3)
    assert not caplog.text


def test_grey_among_colour(tmp_path):
    write(tmp_path / "test" / "a" / "grey.png", 7)
    write(tmp_path / "test" / "a" / "colour.png", 9, (4, 4, 3))
    found = data.load_split("folder", "test", tmp_path)
    assert sorted(map(tuple, found.images[:, 0, 0])) == [(7, 7, 7), (9, 9, 9)]
    for channels in (1, 3):
        found = data.load_split("folder", "test", tmp_path, channels=channels)
        assert found.image_shape == (4, 4, channels)
