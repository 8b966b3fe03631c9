"""Counter-based random numbers: a function of (seed, epoch, sample, view), not of the numbers drawn before.

Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), vectorised. The key is (seed,
purpose), the counter (sample, epoch, view, block). There is no state to save, and views do not depend on workers, ranks
or restarts.
"""

from __future__ import annotations

import numpy as np

# purposes: order of the samples of an epoch, parameters of a view, images shuffled between ranks, negatives to mix
ORDER, VIEWS, SHUFFLE, MIX = 0, 1, 2, 3

_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_MASK, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


def philox(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Ten rounds of Philox-4x32.

    Args:
        counter: (..., 4) integers in [0, 2^32).
        key: Two integers in [0, 2^32).

    Returns:
        (..., 4) uint32, uniform.
    """
    c0, c1, c2, c3 = np.moveaxis(counter.astype(np.uint64), -1, 0)
    k0, k1 = (np.uint64(word) for word in key)
    for _ in range(10):
        # two products of 32 bits each; their high words are mixed with the counter and the key
        low, high = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (high >> _HALF) ^ c1 ^ k0, high & _MASK, (low >> _HALF) ^ c3 ^ k1, low & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def uniforms(seed: int, epoch: int, samples: np.ndarray, view: int, count: int, purpose: int = VIEWS) -> np.ndarray:
    """Uniform numbers for each sample, a function of (seed, epoch, sample, view, purpose).

    Args:
        seed, epoch: In [0, 2^32).
        samples: (B,) sample numbers in [0, 2^32).
        view: Number of the view.
        count: Numbers for each sample.
        purpose: One of this module's constants; different purposes give independent numbers.

    Returns:
        (B, count) float64 in [0, 1).
    """
    blocks = np.arange(-(-count // 4))  # a block is four numbers
    counter = np.empty((len(samples), len(blocks), 4), dtype=np.uint64)
    counter[..., 0], counter[..., 1] = np.asarray(samples)[:, None], epoch
    counter[..., 2], counter[..., 3] = view, blocks
    return philox(counter, (seed, purpose)).reshape(len(samples), -1)[:, :count] * 2.0**-32


def permutation(seed: int, epoch: int, count: int, purpose: int = ORDER) -> np.ndarray:
    """A random order of the samples of an epoch (or of the images of a step), a function of (seed, epoch, purpose).

    Returns:
        (count,) int64, a permutation of 0 to count - 1.
    """
    counter = np.zeros((count, 4), dtype=np.uint64)
    counter[:, 0], counter[:, 1] = np.arange(count), epoch
    words = philox(counter, (seed, purpose)).astype(np.uint64)
    # sort by a random number of 64 bits
    return np.argsort((words[:, 0] << _HALF) | words[:, 1], kind="stable")
