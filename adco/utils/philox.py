"""Random numbers that are a function of where they are used, not of what was drawn before.

Philox-4x32-10 (Salmon et al., SC 2011), vectorised: the key is (seed, purpose), the counter (sample, epoch, view,
block). No state to save, so views do not depend on workers, ranks or restarts.
"""

from __future__ import annotations

import numpy as np

# purposes: the order of samples in an epoch, the choices of a view, images shuffled between ranks, negatives to mix
ORDER, VIEWS, SHUFFLE, MIX = 0, 1, 2, 3

_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_MASK, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


def philox(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """counter: (..., 4) words of 32 bits, key: 2 words. Returns (..., 4) uint32, ten rounds."""
    c0, c1, c2, c3 = np.moveaxis(counter.astype(np.uint64), -1, 0)
    k0, k1 = (np.uint64(word) for word in key)
    for _ in range(10):
        low, high = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (high >> _HALF) ^ c1 ^ k0, high & _MASK, (low >> _HALF) ^ c3 ^ k1, low & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def uniforms(seed: int, epoch: int, samples: np.ndarray, view: int, count: int, purpose: int = VIEWS) -> np.ndarray:
    """(B,) sample numbers -> (B, count) float64 uniform in [0, 1), a function of (seed, epoch, sample, view)."""
    blocks = np.arange(-(-count // 4))
    counter = np.empty((len(samples), len(blocks), 4), dtype=np.uint64)
    counter[..., 0], counter[..., 1] = np.asarray(samples)[:, None], epoch
    counter[..., 2], counter[..., 3] = view, blocks
    return philox(counter, (seed, purpose)).reshape(len(samples), -1)[:, :count] * 2.0**-32


def permutation(seed: int, epoch: int, count: int, purpose: int = ORDER) -> np.ndarray:
    """The order of `count` samples in an epoch (or of images in a step): (count,) int64, each once."""
    counter = np.zeros((count, 4), dtype=np.uint64)
    counter[:, 0], counter[:, 1] = np.arange(count), epoch
    words = philox(counter, (seed, purpose)).astype(np.uint64)
    return np.argsort((words[:, 0] << _HALF) | words[:, 1], kind="stable")
