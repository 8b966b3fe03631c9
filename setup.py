"""Metadata lives in pyproject.toml; this file builds the optional C kernel of the input pipeline.

Without a compiler, or on a system where it does not build, the installation goes on without it: the pixel work then
runs in torch (see adco/loader.py).
"""

from setuptools import Extension, setup

KERNEL = Extension(
    "adco.native._pixels",
    sources=["adco/native/common.c", "adco/native/jpeg.c", "adco/native/pixels.c"],
    depends=["adco/native/native.h"],
    extra_compile_args=["-O3", "-std=gnu11", "-fno-math-errno", "-fno-trapping-math"],
    libraries=["m"],
    optional=True,
)

setup(ext_modules=[KERNEL])
