"""The views of an image: their random parameters, and the pixels that these give."""
