"""Image folders: a fixed order, and errors that name the folder or the file."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from adco.data.images import BadImages, UnreadableImage, index_folder, read_image
from adco.utils.errors import UserError


def test_order_labels_and_classes(images):
    index = index_folder(images / "val")
    assert index.classes == ("class0", "class1", "class2")
    assert index.paths == tuple(sorted(index.paths))
    assert [index.classes[label] for label in index.labels] == [path.split("/")[0] for path in index.paths]
    assert len(index) == 18


def test_a_flat_folder_is_one_class(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "b.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.jpg")
    (tmp_path / "notes.txt").write_text("no image")
    index = index_folder(tmp_path)
    assert (index.paths, index.labels) == (("a.jpg", "b.png"), (0, 0))


def test_nested_images_are_listed_and_link_loops_end(tmp_path):
    deep = tmp_path / "cat" / "a" / "b"
    deep.mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(deep / "x.png")
    (deep / "loop").symlink_to(tmp_path / "cat")
    assert index_folder(tmp_path).paths == ("cat/a/b/x.png",)


@pytest.mark.parametrize("make", [False, True])
def test_missing_and_empty_folders_are_named(tmp_path, make):
    folder = tmp_path / "data"
    if make:
        (folder / "cat").mkdir(parents=True)
    with pytest.raises(UserError, match=str(folder)):
        index_folder(folder)


def test_greyscale_and_palette_become_rgb(tmp_path):
    for mode in ("L", "P", "RGBA", "CMYK"):
        path = tmp_path / (f"{mode}.tif" if mode == "CMYK" else f"{mode}.png")
        Image.new(mode, (5, 4)).save(path)
        assert (read_image(path).mode, read_image(path).size) == ("RGB", (5, 4))


def test_unreadable_files_say_why(tmp_path):
    path = tmp_path / "x.jpg"
    path.write_bytes(b"\xff\xd8\xff junk")
    with pytest.raises(UnreadableImage, match="x.jpg"):
        read_image(path)
    with pytest.raises(UnreadableImage):
        read_image(tmp_path / "absent.jpg")


def test_too_many_unreadable_files_are_an_error_that_names_one():
    bad = BadImages(Path("root"), total=100, max_share=0.02, setting="--max-bad-share")
    bad.update({"b.jpg": "truncated", "a.jpg": "empty"})
    assert bad.report() == "a.jpg\tempty\nb.jpg\ttruncated\n"
    with pytest.raises(UserError, match=r"root/c.jpg: cannot be read \(gone\); 3 of 100 .* --max-bad-share=0.06"):
        bad.update({"c.jpg": "gone"})
