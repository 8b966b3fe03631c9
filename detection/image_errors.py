"""Makes detectron2 report an image that it cannot read in one line that names the file, also in its stock scripts."""

from __future__ import annotations

import functools
import logging

from detectron2.data import detection_utils

from adco.utils.errors import UserError, one_line

ADVICE = "repair or replace it; tools/check_data.py --decode all lists every such file"


def install() -> None:
    """Make detectron2's `read_image` and `check_image_size` raise UserError. Calling it again has no effect.

    detectron2's trainer then logs no traceback for such an error, nor for a loss that diverged: one line says it.
    """
    if not hasattr(detection_utils.read_image, "__wrapped__"):
        detection_utils.read_image = naming_file(detection_utils.read_image)
        detection_utils.check_image_size = with_user_error(detection_utils.check_image_size)
        logging.getLogger("detectron2.engine.train_loop").addFilter(needs_traceback)


def naming_file(read):
    """Wrap `read_image` so that its errors are UserErrors that name the file."""

    @functools.wraps(read)
    def read_image(file_name, format=None):
        try:
            return read(file_name, format)
        except MemoryError:
            raise
        except Exception as error:  # decoders raise many types of errors for a broken file
            reason = one_line(getattr(error, "strerror", None) or error)[:80] or type(error).__name__
            raise UserError(f"{file_name}: this image cannot be decoded ({reason}); {ADVICE}") from error

    return read_image


def with_user_error(check):
    """Wrap `check_image_size` so that it raises UserError for an image of another size than its annotation says."""

    @functools.wraps(check)
    def check_image_size(dataset_dict, image):
        try:
            check(dataset_dict, image)
        except detection_utils.SizeMismatchError as error:
            raise UserError(one_line(error)) from error

    return check_image_size


def needs_traceback(record: logging.LogRecord) -> bool:
    """Log filter: False for a UserError and a diverged loss, which are reported in one line elsewhere."""
    return not (record.exc_info and isinstance(record.exc_info[1], UserError | FloatingPointError))
