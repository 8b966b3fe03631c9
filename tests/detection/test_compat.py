"""Compatibility: detectron2 0.6 is patched, a newer one is not, and a missing one is reported."""

from __future__ import annotations

import subprocess
import sys

import pytest

import detection  # noqa: F401
from adco.utils.errors import UserError
from detection import compat
from tests import ROOT

WITHOUT_DETECTRON2 = "import sys; sys.modules['detectron2'] = None; sys.argv = {argv!r}; "


def python(code: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, **options)


def test_the_placeholder_says_what_is_missing_when_used():
    placeholder = compat._placeholder()
    assert placeholder.get_compiler_version() == "not built"
    with pytest.raises(UserError, match="deform_conv_forward.*install detectron2 from its Git"):
        placeholder.deform_conv_forward(1)
    assert not hasattr(placeholder, "__wrapped__")


def test_patches_are_applied_once_and_only_where_needed():
    assert compat.apply_patches() == []  # importing `detection` has done so
    if compat.needs_patches():
        import numpy
        import PIL.Image

        assert numpy.str is str
        assert PIL.Image.LINEAR == PIL.Image.BILINEAR


def test_a_newer_detectron2_is_left_alone(tmp_path, monkeypatch):
    newer = tmp_path / "detectron2"
    (newer / "utils").mkdir(parents=True)
    (newer / "utils" / "develop.py").touch()
    monkeypatch.setattr(compat, "_folder", lambda: newer)
    monkeypatch.delitem(sys.modules, compat.EXTENSION, raising=False)
    assert not compat.needs_patches()
    assert compat.apply_patches() == []
    assert compat.EXTENSION not in sys.modules


def test_detectron2s_own_hook_does_for_stock_scripts_all_that_ours_do():
    code = (
        "import os; os.environ['DETECTRON2_ENV_MODULE'] = 'detection.register'\n"
        "import detectron2; from detectron2.modeling import ROI_HEADS_REGISTRY as R\n"
        "print('Res5ROIHeadsExtraNorm' in R)\n"
        "import detection.register as r; r.setup_environment()\n"
        "from detection import coco_eval\n"
        "print(coco_eval.in_use() == coco_eval.installed()[0])\n"
        "import detectron2.checkpoint.detection_checkpoint as d\n"
        "print(d.pickle.__name__, hasattr(d.DetectionCheckpointer.load, '__wrapped__'))"
    )
    assert python(code).stdout.split() == ["True", "True", "RestrictedPickle", "True"]


def test_without_detectron2_the_import_says_how_to_get_it():
    run = python(WITHOUT_DETECTRON2.format(argv=["x"]) + "import detection")
    last = run.stderr.strip().splitlines()[-1]
    assert "uv sync" in last
    assert "pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2.git'" in last


@pytest.mark.parametrize(
    ("script", "argv"),
    [("detection.train_net", ["--config-file", "x.yaml"]), ("tools.convert_to_d2", ["random:resnet18", "never.pkl"])],
)
def test_without_detectron2_a_tool_prints_one_line(script, argv):
    if script.startswith("detection"):  # `-m` would import the package before the script can report
        start = "import runpy; runpy.run_path('detection/train_net.py', run_name='__main__')"
    else:
        start = f"import runpy; runpy.run_module({script!r}, run_name='__main__')"
    run = python(WITHOUT_DETECTRON2.format(argv=[script, *argv]) + start)
    assert run.returncode == 2
    assert len(run.stderr.strip().splitlines()) == 1
    assert run.stderr.startswith("error: detectron2 is not installed")
