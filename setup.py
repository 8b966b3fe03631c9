"""Metadata lives in pyproject.toml; this file builds the optional C kernel of the input pipeline.

Without a compiler, or on a system where it does not build, the installation goes on without it: the pixel work then
runs in torch (see adco/data/loader.py).
"""

from setuptools import Extension, setup

KERNEL = Extension(
    "adco.data.native._pixels",
    sources=["adco/data/native/common.c", "adco/data/native/jpeg.c", "adco/data/native/pixels.c"],
    depends=["adco/data/native/native.h"],
    extra_compile_args=["-O3", "-std=gnu11", "-fno-math-errno", "-fno-trapping-math"],
    libraries=["m"],
    optional=True,
)

setup(ext_modules=[KERNEL])
