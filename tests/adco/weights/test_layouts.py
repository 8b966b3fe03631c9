"""The layouts: which names they know, and which of them they drop."""

from __future__ import annotations

import textwrap

import pytest

from adco.config.loading import load_recipe
from adco.methods import METHODS, build_method
from adco.weights import layouts
from adco.weights.backbone import expected_shapes
from adco.weights.layouts import LAYOUTS, SOURCES, wrapper_of
from tests.adco.weights.public_checkpoints import BUILDERS


@pytest.mark.parametrize("method", METHODS)
def test_every_method_of_ours_is_read(method):
    state = build_method(load_recipe(f"{method}_r18_imagenette")).state_dict()
    names, dropped, unexpected = LAYOUTS[0].split(state)
    found = {new: tuple(state[old].shape) for old, new in names.items() if not new.endswith("num_batches_tracked")}
    assert found == expected_shapes("resnet18", "imagenet")
    assert not unexpected
    assert not set(dropped) & set(names)


def test_every_source_is_tested():
    assert {source for source, _ in BUILDERS.values()} | {"detectron2", "dino-student"} == set(SOURCES)


def test_no_layout_drops_a_backbone():
    for layout in LAYOUTS:
        for pattern, _ in layout.dropped:
            assert not layout.split({"conv1.weight": 0, "layer1.0.bn1.running_var": 0})[1], (layout.name, pattern)


def test_wrappers_are_taken_off_only_when_every_name_has_them():
    assert wrapper_of({"module._orig_mod.a": 0, "module._orig_mod.b": 0}) == "module._orig_mod."
    assert wrapper_of({"module.a": 0, "b": 0}) == ""
    assert wrapper_of({}) == ""


def test_the_example_of_the_module_docstring_is_a_layout():
    """The row that shows how to add a layout does what its text says."""
    example = layouts.__doc__.partition("Its row is\n")[2].partition("What follows")[0]
    layout = eval(textwrap.dedent(example), vars(layouts))
    names = ("net.conv1.weight", "net.layer1.0.bn2.weight", "net.fc.weight", "proj.0.weight", "queue")
    tensors = {f"module.{name}": 0 for name in names}
    backbone, dropped, unexpected = layout.split(tensors)
    assert layout.has_probe(tensors) and not unexpected
    assert list(backbone.values()) == ["conv1.weight", "layer1.0.bn2.weight"]
    assert list(dropped.values()) == [layouts.CLASSIFIER, layouts.HEAD, layouts.NEGATIVES]
