"""Images that cannot be read end a run, detectron2's stock scripts included, with one line that names the file."""

from __future__ import annotations

import functools
import logging

from detectron2.data import detection_utils

from adco.utils.errors import UserError, one_line

ADVICE = "mend or replace it; tools/check_data.py --decode all finds every such file"


def install() -> None:
    """Make detectron2's reader of images, which its mappers call in every process, raise UserError. Once is enough.

    detectron2's trainer then leaves out its traceback, for a run that diverged too: the line says it all.
    """
    if not hasattr(detection_utils.read_image, "__wrapped__"):
        detection_utils.read_image = named(detection_utils.read_image)
        detection_utils.check_image_size = named_size(detection_utils.check_image_size)
        logging.getLogger("detectron2.engine.train_loop").addFilter(unexplained)


def named(read):
    """`read_image` whose errors name the file."""

    @functools.wraps(read)
    def read_image(file_name, format=None):
        try:
            return read(file_name, format)
        except MemoryError:
            raise
        except Exception as error:  # decoders raise whatever a broken file leads them to
            reason = one_line(getattr(error, "strerror", None) or error)[:80] or type(error).__name__
            raise UserError(f"{file_name}: this image cannot be decoded ({reason}); {ADVICE}") from error

    return read_image


def named_size(check):
    """`check_image_size` as a UserError: an image of another size than its annotation has its boxes elsewhere."""

    @functools.wraps(check)
    def check_image_size(dataset_dict, image):
        try:
            check(dataset_dict, image)
        except detection_utils.SizeMismatchError as error:
            raise UserError(one_line(error)) from error

    return check_image_size


def unexplained(record: logging.LogRecord) -> bool:
    """Whether a log entry's traceback, if it has one, is news: a UserError and a diverged loss are told in one line."""
    return not (record.exc_info and isinstance(record.exc_info[1], UserError | FloatingPointError))
