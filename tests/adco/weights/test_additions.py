"""Files and models that a user adds to the zoo pass the same checks as a download."""

from __future__ import annotations

import pytest

from adco.utils.errors import UserError
from adco.weights.additions import add_file, add_model
from adco.weights.zoo import download, models, read_record
from tests.adco.weights.misbehaving_server import BODY, MD5, OTHER, SHA, model_of


def test_a_file_that_came_by_other_means_passes_the_same_checks(server, tmp_path):
    model, file = model_of(server, "page", hash_prefix=f"md5:{MD5[:8]}"), tmp_path / "got.pth.tar"
    for wrong, words in ((b"<html>", "web page"), (OTHER, "its md5 is")):
        file.write_bytes(wrong)
        with pytest.raises(UserError, match=f"got.pth.tar: .*{words}.*not taken as m"):
            add_file(model, file)
    assert not model.path.exists() and read_record(model) is None
    file.write_bytes(BODY)
    assert add_file(model, file) == SHA and download(model, offline=True).read_bytes() == BODY
    assert file.is_file()


def test_what_is_no_checkpoint_does_not_become_a_model(server, tmp_path):
    file = tmp_path / "x.pth"
    file.write_bytes(BODY)
    for name, source in (("x", str(file)), ("x", str(tmp_path / "absent")), ("Wrong Name", server.url("good"))):
        with pytest.raises(UserError):
            add_model(name, source)
    with pytest.raises(UserError, match="taken"):
        add_model("dino-r50", server.url("good"))
    with pytest.raises(UserError, match="sha256: expected 64 digits"):
        add_model("x", server.url("good"), sha256="abc")
    assert "x" not in models()
