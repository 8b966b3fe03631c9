"""transfer/cli.py: the arguments that all benchmarks share."""

import pytest

import transfer.imagenet
import transfer.places205
from adco.utils.errors import UserError
from tests.transfer.data import arguments, assert_one_line_error
from transfer.cli import select_protocols
from transfer.svm.protocols import PROTOCOLS


@pytest.mark.parametrize("tool", [transfer.imagenet, transfer.places205])
def test_faults_of_arguments_are_one_line(folder, tmp_path, capsys, tool):
    assert_one_line_error(capsys, tool.main(arguments(folder, tmp_path, "--protocol", "best")), "best", "adco")
    assert_one_line_error(capsys, tool.main(["--protocol", "adco"]), "--checkpoint is required")
    assert_one_line_error(capsys, tool.main(arguments(tmp_path / "nowhere", tmp_path)), "nowhere")
    assert tool.main(["--protocol", "list"]) == 0


def test_protocols_are_selected_by_name(capsys):
    about = {name: protocol.about for name, protocol in PROTOCOLS.items()}
    assert select_protocols(None, "pcl", about) == ["pcl"]
    assert select_protocols(["vissl", "pcl", "vissl"], "pcl", about) == ["vissl", "pcl"]
    assert select_protocols(["all"], "pcl", about, also=["all"]) == ["all"]
    for unknown in ("best", "all"):
        with pytest.raises(UserError, match=f"{unknown}: not known; choose pcl, vissl"):
            select_protocols(["pcl", unknown], "pcl", about)
    assert capsys.readouterr().out == ""
    assert select_protocols(["list"], "pcl", {"a": "one\ntwo", "b": "three"}) == []
    assert capsys.readouterr().out == "a\n  one\n  two\nb\n  three\n"
