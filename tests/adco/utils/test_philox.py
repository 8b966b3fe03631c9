"""Philox against its authors' known answers, and what makes it useful: numbers depend on where, not on when."""

from __future__ import annotations

import numpy as np
import pytest

from adco.utils import philox

# kat_vectors of the Random123 distribution, philox4x32 with 10 rounds
KNOWN = [
    ([0] * 4, (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, (0xFFFFFFFF,) * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        (0xA4093822, 0x299F31D0),
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("words", "key", "answer"), KNOWN)
def test_known_answers(words, key, answer):
    assert philox.philox(np.array(words), key).tolist() == answer


def test_a_sample_has_its_numbers_whatever_batch_it_is_in():
    whole = philox.uniforms(3, 5, np.arange(100), view=1, count=37)
    part = philox.uniforms(3, 5, np.array([42, 7]), view=1, count=37)
    assert np.array_equal(part, whole[[42, 7]])


def test_seed_epoch_sample_and_view_all_matter():
    base = philox.uniforms(0, 0, np.array([0]), 0, 8)
    for seed, epoch, sample, view in ((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)):
        assert not np.intersect1d(base, philox.uniforms(seed, epoch, np.array([sample]), view, 8)).size


def test_uniforms_are_uniform():
    u = philox.uniforms(0, 0, np.arange(20_000), 0, 4)
    counts = np.histogram(u, bins=10, range=(0, 1))[0]
    expected = u.size / 10
    assert ((counts - expected) ** 2 / expected).sum() < 27.9  # chi-square, 9 degrees of freedom, p = 0.001
    assert abs(np.corrcoef(u.T) - np.eye(4)).max() < 0.03


def test_an_epochs_order_holds_every_sample_once_and_changes():
    first, second = philox.permutation(0, 0, 1000), philox.permutation(0, 1, 1000)
    assert sorted(first) == sorted(second) == list(range(1000))
    assert (first == second).mean() < 0.02
    assert np.array_equal(first, philox.permutation(0, 0, 1000))
