"""The version of this project, for packages that may not import the public API above them."""

__version__ = "0.1.0"  # the one source: pyproject.toml reads it; CHANGELOG.md and CITATION.cff are tested against it
