"""Download of one file over HTTP or HTTPS: resumed after a break, bounded in size, and never a web page for weights."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import time
import urllib.request as web
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit

from adco.utils.errors import UserError
from adco.utils.files import write_text
from adco.utils.progress import progress

BLOCK = 1 << 18  # bytes read at once
MOST_BYTES = 2 << 30  # of a file whose size is not published, because an answer may have no end
PASSING = (408, 425, 429, 500, 502, 503, 504)  # HTTP status codes after which another try may succeed
WEIGHTS = re.compile(rb"PK\x03\x04|\x80[\x02-\x05]|.{7}\x00\{", re.DOTALL)  # a zip, a pickle, safetensors
WEB_PAGE = re.compile(rb"\s*<(!doctype|html|\?xml|head|body)", re.IGNORECASE)
SHARE_LINK = "answers with a web page, not with the file (a share link that wants a visitor, or one that has expired)"


class DownloadError(Exception):
    """This address does not give the file, and another try would not help. The text is the reason."""


class FileTooLargeError(DownloadError):
    """More bytes than the file can have."""


class Interrupted(Exception):
    """The transfer was interrupted. The received bytes are kept, and another try continues after them."""


class StaleDownloadError(Interrupted):
    """The received bytes are not those of the file at this address any more. Another try starts from the beginning."""


@dataclass(frozen=True)
class RetryPolicy:
    """When to stop waiting, and how often to try.

    Attributes:
        timeout_seconds: Longest wait for the next bytes.
        tries: Tries of one address.
        pause_seconds: Pause before the second try; it doubles for each one after.
    """

    timeout_seconds: float = 30
    tries: int = 4
    pause_seconds: float = 1


PATIENT = RetryPolicy()


def fetch(url: str, part: Path, size: int | None = None, patience: RetryPolicy = PATIENT, title: str = "") -> None:
    """Download `url` into `part`, after the bytes that are there if they are of the same version of the file.

    After an error `part` keeps the received bytes. `PART.origin` holds their address and version.

    Args:
        url: The http or https address.
        part: The file to write.
        size: Bytes of the file, where they are published; any other size is then an error.
        patience: Timeout and number of tries.
        title: Text before the progress bar; default: the name of the file in `url`.

    Raises:
        DownloadError: The address does not give the file, or every try was interrupted.
        UserError: `part` cannot be written, or the disk is full.
    """
    for attempt in range(patience.tries):
        try:
            return _transfer(url, part, size, patience.timeout_seconds, title or urlsplit(url).path.split("/")[-1])
        except Interrupted as error:
            reason = error
            if attempt + 1 < patience.tries:
                time.sleep(patience.pause_seconds * 2**attempt)
        except OSError as error:
            raise UserError(
                f"{part}: cannot be written ({error.strerror or error}); make room, or set ADCO_CACHE to another folder"
            ) from error
    raise DownloadError(f"{reason}, {patience.tries} times")


def discard(part: Path) -> None:
    """Remove a part, so that the next transfer starts from the beginning."""
    part.unlink(missing_ok=True)
    _origin(part).unlink(missing_ok=True)


def check_head(path: Path) -> None:
    """Raise DownloadError unless a file begins like a zip, a pickle or safetensors, the formats of weights."""
    with path.open("rb") as file:
        head = file.read(256)
    if WEB_PAGE.match(head):
        raise DownloadError(SHARE_LINK)
    if not WEIGHTS.match(head):
        raise DownloadError(f"answers with something that is no weight file (it begins with {head[:16]!r})")


def _transfer(url: str, part: Path, size: int | None, timeout_seconds: float, title: str) -> None:
    """One try."""
    part.parent.mkdir(parents=True, exist_ok=True)
    done, version = _kept(part, url)
    try:
        answer = _ask(url, done, version, timeout_seconds)
        if answer is None:  # the part is the whole file
            return
        with answer:
            start, total = _extent(answer, done, size)
            if start and _version(answer) != version:
                raise StaleDownloadError("the file has changed meanwhile")
            _check_room(part, start, total)
            write_text(_origin(part), json.dumps({"url": url, "version": _version(answer)}))
            with part.open("ab" if start else "wb") as file:
                for block in _blocks(answer, start, total, size, title):
                    file.write(block)
                file.flush()
                os.fsync(file.fileno())
    except (StaleDownloadError, FileTooLargeError):
        discard(part)
        raise


def _check_room(part: Path, start: int, total: int | None) -> None:
    free = shutil.disk_usage(part.parent).free
    if total is not None and total - start > free:
        raise UserError(
            f"{part}: {total - start} bytes are to come, {free} are free; make room, or set ADCO_CACHE to another place"
        )


def _ask(url: str, done: int, version: str, timeout_seconds: float) -> http.client.HTTPResponse | None:
    """Open the address; None if the file has `done` bytes. Raises DownloadError or Interrupted."""
    headers = {"User-Agent": "adco", "Accept": "*/*"}
    if done:
        headers |= {"Range": f"bytes={done}-", "If-Range": version}
    try:
        _check_scheme(url)
        answer = web_opener().open(web.Request(url, headers=headers), timeout=timeout_seconds)
    except HTTPError as error:
        with error:
            if error.code == 416:
                if error.headers.get("Content-Range") == f"bytes */{done}":
                    return None
                raise StaleDownloadError("416 the part that is here is none of the file's") from error
        reason = f"{error.code} {' '.join(str(error.reason).split())}"[:200]
        raise (Interrupted if error.code in PASSING else DownloadError)(reason) from error
    except (OSError, http.client.HTTPException) as error:
        raise Interrupted(_words(error)) from error
    except ValueError as error:
        raise DownloadError(f"is no address ({error})") from error
    if answer.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
        answer.close()
        raise DownloadError(SHARE_LINK)
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        answer.close()
        raise DownloadError(f"sends the file packed as {answer.headers['Content-Encoding']}")
    return answer


def _extent(answer: http.client.HTTPResponse, done: int, size: int | None) -> tuple[int, int | None]:
    """(the byte at which the answer starts, the whole file's bytes or None). Raises DownloadError or Interrupted."""
    length = answer.headers.get("Content-Length", "")
    start, total = 0, int(length) if length.isdigit() else None
    if answer.status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.headers.get("Content-Range", ""))
        if not match or int(match[1]) != done:
            raise DownloadError("answers with another part of the file than the one asked for")
        start, total = done, int(match[2])
    elif answer.status != 200:
        raise DownloadError(f"answers {answer.status} {answer.reason}")
    if total is not None and total != (size or total):
        raise DownloadError(f"announces {total} bytes, expected {size}")
    if total is not None and total > MOST_BYTES:
        raise DownloadError(f"announces {total} bytes, more than {MOST_BYTES}")
    if total is None and size is None and not answer.chunked:
        raise DownloadError("does not say how long the file is, so that its end cannot be distinguished from a break")
    return start, total


def _blocks(
    answer: http.client.HTTPResponse, start: int, total: int | None, size: int | None, title: str
) -> Iterator[bytes]:
    """The answer's bytes, `total` of them, or all to its end if it did not announce how many.

    Raises Interrupted if it ends early or nothing comes in time, FileTooLargeError if it does not end in time.
    """
    most = total or size or MOST_BYTES
    done, bound = start, most if total is not None else most + 1
    with progress(total or size, title, "B", initial=start) as bar:
        bar.unit_scale = True
        while done < bound:
            try:
                block = answer.read1(min(BLOCK, bound - done))
            except (OSError, http.client.HTTPException) as error:
                raise Interrupted(f"{_words(error)} after {done} of {total or size or '?'} bytes") from error
            if not block:
                break
            done += len(block)
            bar.update(len(block))
            yield block
    if done < (total or size or 0):
        raise Interrupted(f"broke off after {done} of {total or size} bytes")
    if done > most:
        raise FileTooLargeError(f"sends more than {most} bytes")


class _WebOnly(web.HTTPRedirectHandler):
    """Follows redirects to http and https only, and never from https to http."""

    max_redirections = 10

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        _check_scheme(newurl, secure=req.type == "https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def web_opener() -> web.OpenerDirector:
    """An opener of http and https addresses only, also after a redirect; for others it raises DownloadError.

    It lacks the handlers for file, ftp and data that `build_opener` adds. Proxies are those of the environment.
    """
    opener = web.OpenerDirector()
    for handler in (web.ProxyHandler, web.HTTPHandler, web.HTTPSHandler, web.HTTPDefaultErrorHandler):
        opener.add_handler(handler())
    for handler in (_WebOnly, web.HTTPErrorProcessor, web.UnknownHandler):
        opener.add_handler(handler())
    return opener


def _check_scheme(url: str, secure: bool = False) -> None:
    scheme = urlsplit(url).scheme.lower()
    if scheme not in ("http", "https"):
        raise DownloadError(f"leads to {url[:100]}: only http and https are followed")
    if secure and scheme != "https":
        raise DownloadError(f"leads from https to {url[:100]}: not followed")


def _origin(part: Path) -> Path:
    return part.with_name(part.name + ".origin")


def _kept(part: Path, url: str) -> tuple[int, str]:
    """(bytes of `part` after which a transfer of `url` can continue, their version); (0, "") for none."""
    try:
        origin = json.loads(_origin(part).read_text())
        if origin["url"] == url and origin["version"]:
            return part.stat().st_size, origin["version"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return 0, ""


def _version(answer: http.client.HTTPResponse) -> str:
    """The version of the file for If-Range: a strong ETag, else the date of the last change."""
    etag = answer.headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else answer.headers.get("Last-Modified", "")


def _words(error: Exception) -> str:
    """A network error as a text."""
    reason = getattr(error, "reason", error)
    if isinstance(reason, TimeoutError):
        return "no answer in time"
    return " ".join(str(getattr(reason, "strerror", None) or reason or type(reason).__name__).split())[:200]
