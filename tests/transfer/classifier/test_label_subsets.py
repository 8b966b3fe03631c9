"""transfer/classifier/label_subsets.py: drawn and published lists of labelled images."""

from pathlib import Path

import numpy as np
import pytest

from adco.data.images import index_folder
from adco.utils.errors import UserError
from transfer.classifier.label_subsets import drawn_list, list_sha256, only, read_list


def test_drawn_lists_are_a_share_of_each_class_by_the_seed(folder):
    index = index_folder(folder / "train")
    quarter = drawn_list(index, 25, seed=0)
    assert quarter == drawn_list(index, 25, seed=0) != drawn_list(index, 25, seed=1)
    part = only(index, quarter)
    assert np.bincount(part.labels).tolist() == [2, 2, 2] and len(drawn_list(index, 1, 0)) == 3
    assert all(path.startswith(part.classes[label]) for path, label in zip(part.paths, part.labels, strict=True))


def test_published_lists_are_read_by_name(folder, tmp_path):
    index = index_folder(folder / "train")
    for n, path in enumerate((folder / "train").rglob("*.png")):
        path.rename(path.with_name(f"{path.parent.name}_{n}.png"))
    index = index_folder(folder / "train")
    names = [Path(path).name for path in index.paths[::3]]
    listed = tmp_path / "1percent.txt"
    listed.write_text("\n".join(reversed(names)) + "\n")
    assert read_list(listed, index) == tuple(sorted(index.paths[::3]))
    assert list_sha256(read_list(listed, index)) == list_sha256(tuple(sorted(index.paths[::3])))
    listed.write_text("unexpected.png\n")
    with pytest.raises(UserError, match=r"1percent.txt:1: 'unexpected.png'"):
        read_list(listed, index)
