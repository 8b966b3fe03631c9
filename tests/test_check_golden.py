"""The released code's numbers, and that the checker which compares with them can fail."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests import check_golden

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.npz")), ids=lambda path: path.stem)
def test_one_step_equals_the_released_code(path):
    worst = check_golden.differences(path)
    assert set(worst) == {"cross_entropies", "query_grads", "bank_after", "momentum_after"}
    assert max(worst.values()) < 1e-10


def test_the_checker_accepts_the_carried_files(capsys):
    assert check_golden.main([str(GOLDEN)]) == 0
    assert "all within 1e-10" in capsys.readouterr().out


@pytest.mark.parametrize("array", ["bank_after", "momentum_after", "query_grads", "cross_entropies"])
@pytest.mark.parametrize("error", [1e-8, float("nan")])
def test_the_checker_sees_a_wrong_number(tmp_path, capsys, array, error):
    with np.load(GOLDEN / "adco_sym_ranks1_case0.npz") as file:
        arrays = dict(file)
    arrays[array].flat[0] += error
    np.savez(tmp_path / "adco_sym_ranks1_case0.npz", **arrays)
    assert check_golden.main([str(tmp_path)]) == 1
    assert f"({array}) OFF" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["moco_sym_ranks1_case0.npz", "adco_other_ranks1_case0.npz", "adco_sym.npz"])
def test_the_checker_fails_on_what_it_cannot_compute(tmp_path, capsys, name):
    shutil.copy(GOLDEN / "adco_sym_ranks1_case0.npz", tmp_path / name)
    assert check_golden.main([str(tmp_path)]) == 1
    assert "NOT SUPPORTED" in capsys.readouterr().out


def test_an_empty_folder_is_no_success(tmp_path):
    assert check_golden.main([str(tmp_path)]) == 1
    assert check_golden.main([str(tmp_path / "absent")]) == 2
