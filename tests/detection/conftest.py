"""Fixtures of the tests of detection."""

from __future__ import annotations

import pytest

from tests.detection.helpers import make_voc


@pytest.fixture
def voc(tmp_path):
    """Name of a small VOC dataset that is registered in detectron2."""
    import detection  # noqa: F401  (patches before detectron2)

    from detectron2.data import DatasetCatalog, MetadataCatalog  # isort: skip
    from detectron2.data.datasets import register_pascal_voc  # isort: skip

    name = f"voc_{tmp_path.name}"
    register_pascal_voc(name, str(make_voc(tmp_path) / "VOC2007"), "test", 2007)
    MetadataCatalog.get(name).evaluator_type = "pascal_voc"
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)
