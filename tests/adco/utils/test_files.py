"""Files are whole or absent, and the error that a user reads is the first one."""

import errno
import os
from unittest import mock

import pytest

from adco.utils.errors import UserError
from adco.utils.files import atomic_write


def test_a_disk_that_becomes_read_only_during_a_write_is_the_error_reported(tmp_path):
    read_only = OSError(errno.EROFS, os.strerror(errno.EROFS))
    with (
        mock.patch("os.replace", side_effect=read_only),
        mock.patch("os.unlink", side_effect=read_only),
        pytest.raises(UserError, match="kept: cannot be written .Read-only file system"),
        atomic_write(tmp_path / "kept") as file,
    ):
        file.write(b"half")


def test_nothing_is_left_of_a_write_that_failed(tmp_path):
    (tmp_path / "kept").write_bytes(b"before")
    with pytest.raises(RuntimeError, match="stop"), atomic_write(tmp_path / "kept") as file:
        file.write(b"half")
        raise RuntimeError("stop")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept").read_bytes() == b"before"


def test_a_written_file_has_the_permissions_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "kept") as file:
            file.write(b"whole")
    finally:
        os.umask(before)
    assert (tmp_path / "kept").stat().st_mode & 0o777 == 0o640
