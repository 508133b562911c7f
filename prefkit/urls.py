"""Files behind a URL: what fsspec's file systems give, made steady and discreet.

`hf://datasets/OWNER/NAME[@REVISION]/…`, `s3://`, `gs://`, `https://` and `http://`, each through the package of its
protocol. Credentials, endpoints and anonymous access come from the environment variables of these packages alone:

    hf    HF_TOKEN, HF_ENDPOINT
    s3    AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE, AWS_ENDPOINT_URL; FSSPEC_S3='{"anon": true}'
    gs    GOOGLE_APPLICATION_CREDENTIALS, STORAGE_EMULATOR_HOST; FSSPEC_GS='{"token": "anon"}'
    http  FSSPEC_HTTP='{"client_kwargs": {"headers": {…}}}'

A file is read by byte ranges, one request a block. A failure that may pass (a lost connection, a time-out, the statuses
408, 425, 429 and 5xx) is tried again after each of WAITS, on top of what the packages themselves repeat. A server that
does not give ranges is read as one stream; after a failure this begins anew and skips what was read before.

Signed URLs carry their secret in the query, so nothing that is printed or recorded holds a query, a user name or a
password: messages name `shown(url)`, and of another library's error only its text without them.
"""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from prefkit.errors import DataError, PrefkitError, UsageError
from prefkit.extras import install

# The package of each protocol, and where it finds credentials.
PACKAGES = {
    "hf": ("huggingface_hub", "HF_TOKEN"),
    "s3": ("s3fs", "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"),
    "gs": ("gcsfs", "GOOGLE_APPLICATION_CREDENTIALS"),
    "http": ("aiohttp", "the URL, or FSSPEC_HTTP"),
    "https": ("aiohttp", "the URL, or FSSPEC_HTTP"),
}
WAITS = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds
BLOCK = 8 << 20
PASSING = (408, 425, 429)

# What changes when a file does, by the name that each file system gives it; the first that is there is taken.
VERSIONS = ("ETag", "etag", "generation", "blob_id", "Last-Modified", "LastModified", "mtime")

T = TypeVar("T")


def is_url(name: str) -> bool:
    """Whether an input or output is given by URL, not by path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", name) is not None


def place(name: str | Path) -> Path | str:
    """A path, or a URL, by what the name looks like."""
    return name if isinstance(name, str) and is_url(name) else Path(name)


def shown(url: str) -> str:
    """A URL as it may be printed and recorded: without user name, password, and the query and fragment of http."""
    scheme, _, rest = url.partition("://")
    if _is_http(url):
        rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def _scheme(url: str) -> str:
    return url.partition("://")[0].lower()


def _is_http(url: str) -> bool:
    return _scheme(url) in ("http", "https")


def components(url: str) -> tuple[str, ...]:
    """Host (bucket, kind of repository) and path components of a URL."""
    return tuple(part for part in shown(url).partition("://")[2].split("/") if part)


def files(url: str, wanted: Callable[[str], bool]) -> list[str]:
    """The URLs of the files that `url` names, by name: a glob's matches, the file itself, or all in a folder.

    `wanted` tells by its name whether a file is one; in folders and globs others are passed over, and so are hidden
    ones. hf:// URLs name a commit then, so that they mean the same bytes for ever. Empty where nothing is there.
    """
    scheme, _, rest = url.partition("://")
    place = pinned(f"{scheme.lower()}://{rest}")
    try:
        return steady(place, lambda fs: _files(fs, place, wanted))
    except NotFound:
        return []


def _files(fs: Any, url: str, wanted: Callable[[str], bool]) -> list[str]:
    http = _is_http(url)  # in which a ? begins the query
    folder, *pattern = re.split(r"[*\[]" if http else r"[*?\[]", url, maxsplit=1)
    if pattern and (matches := fs.glob(url, detail=True)):
        found = [name for name, info in matches.items() if info["type"] == "file"]
        folder = folder.rpartition("/")[0]
    elif (wanted(url) or not http) and not url.endswith("/") and fs.info(url)["type"] == "file":
        return [url]
    else:
        found, folder = fs.find(url), url
    names = sorted(fs.unstrip_protocol(name) for name in found)
    depth = len(components(folder))
    return [name for name in names if wanted(name) and not any(p.startswith(".") for p in components(name)[depth:])]


def pinned(url: str) -> str:
    """An hf:// URL with the commit that its revision names now; other URLs as they are."""
    if _scheme(url) != "hf":
        return url
    if len(components(url)) < 3 or components(url)[0] != "datasets":
        raise UsageError(f"{url}: write it as hf://datasets/OWNER/NAME/path, with NAME@REVISION for a revision.")

    def pin(fs: Any) -> str:
        from huggingface_hub import HfApi

        place = fs.resolve_path(url)
        api = HfApi(endpoint=fs.endpoint, token=fs.token)
        commit = api.dataset_info(place.repo_id, revision=place.revision).sha
        return f"hf://datasets/{place.repo_id}@{commit}/{place.path_in_repo}"

    return steady(url, pin)


def state(url: str) -> tuple[int | None, str]:
    """Size in bytes (None where the server does not say) and version of a remote file: what changes when it does."""
    info = steady(url, lambda fs: fs.info(url))
    version = next((str(info[name]) for name in VERSIONS if info.get(name)), "")
    return info.get("size"), f"{info.get('size')} {version}"


class RemoteFile(io.RawIOBase):
    """The bytes of a remote file from `start` up to `end`, read by ranges, and again where a read fails.

    `sequential` turns true when the server is found to give no ranges.
    """

    def __init__(self, url: str, start: int = 0, end: int | None = None):
        super().__init__()
        self.sequential = False
        self._url = url
        self._position = start
        self._end = end
        self._random = False
        self._file: Any = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            size, _ = state(self._url)
            if size is None:
                raise DataError(f"{shown(self._url)}: its server does not tell the size. Download the file first.")
            offset += size
        elif whence == io.SEEK_CUR:
            offset += self._position
        self._random = self._random or offset != self._position
        self._position = offset
        return offset

    def readinto(self, buffer: Any) -> int:
        wanted = len(buffer) if self._end is None else min(len(buffer), self._end - self._position)
        data = steady(self._url, lambda fs: self._read(fs, wanted)) if wanted > 0 else b""
        if len(data) > wanted:
            raise DataError(f"{shown(self._url)}: its server gives other bytes than it is asked for.")
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _read(self, fs: Any, size: int) -> bytes:
        try:
            if self._file is None:
                self._file = self._opened(fs)
            if not self.sequential:
                self._file.seek(self._position)
            data = bytes(self._file.read(size))
            if not data and self._end is not None:
                raise ConnectionError(f"the file ends at byte {self._position:,}, before {self._end:,}")
            return data
        except ValueError:  # how fsspec says that the server ignored the range, or that there is no size to seek in
            self._drop()
            if self.sequential or not _is_http(self._url):
                raise
            if self._random:
                raise DataError(f"{shown(self._url)}: its server gives no byte ranges. Download the file.") from None
            self.sequential = True
            return self._read(fs, size)
        except BaseException:
            self._drop()
            raise

    def _opened(self, fs: Any) -> Any:
        if not self.sequential:
            file = fs.open(self._url, "rb", cache_type="none")
            if file.size is not None:
                return file
            self.sequential = True
        file = fs.open(self._url, "rb", block_size=0)
        left = self._position
        while left and (skipped := file.read(min(left, BLOCK))):
            left -= len(skipped)
        if left:
            raise ConnectionError(f"the file ends before byte {self._position:,}")
        return file

    def _drop(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def close(self) -> None:
        self._drop()
        super().close()


class NotFound(DataError):
    """There is nothing at the URL."""


def steady(url: str, call: Callable[[Any], T]) -> T:
    """`call` with the file system of `url`, again after failures that may pass; DataError in one sentence at last.

    Whatever the packages raise is caught, since each has errors of its own; the causes are not kept, because they may
    hold secrets.
    """
    for wait in (*WAITS, None):
        try:
            return call(_file_system(url))
        except PrefkitError:
            raise
        except Exception as error:
            if wait is None or not _may_pass(error):
                raise _failure(url, error) from None
        time.sleep(wait)
    raise AssertionError


def _file_system(url: str) -> Any:
    scheme = _scheme(url)
    if scheme not in PACKAGES:
        raise UsageError(f"{shown(url)}: the URLs that can be used are hf://, s3://, gs://, https:// and http://.")
    options: dict[str, Any] = {"use_listings_cache": False}
    try:
        import fsspec

        if _is_http(url):
            import aiohttp

            # No limit to the whole of a long stream, and no compression under way, which would move the bytes.
            options |= {
                "timeout": aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60),
                "headers": {"Accept-Encoding": "identity"},
            }
        return fsspec.filesystem(scheme, **options)
    except ImportError:
        raise UsageError(f"{shown(url)}: this needs {PACKAGES[scheme][0]}: {install('url')}.") from None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and its causes; fsspec calls many failures a FileNotFoundError and keeps the real one as the cause."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _status(error: BaseException) -> int | None:
    """The HTTP status behind an error, if there is one."""
    for cause in _chain(error):
        response = getattr(cause, "response", None)
        metadata = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
        found = (
            getattr(cause, "status", None),  # aiohttp
            getattr(response, "status_code", None),  # huggingface_hub
            metadata.get("HTTPStatusCode"),  # botocore
            getattr(cause, "code", None) if type(cause).__name__ == "HttpError" else None,  # gcsfs
        )
        for status in found:
            if str(status).isdecimal():
                return int(str(status))
    return None


def _may_pass(error: Exception) -> bool:
    status = _status(error)
    if status is not None:
        return status >= 500 or status in PASSING
    *_, cause = _chain(error)
    final = (FileNotFoundError, ValueError, TypeError, NotImplementedError)
    return not isinstance(cause, final) and type(cause).__name__ != "OfflineModeIsEnabled" and not _is_refused(cause)


def _is_refused(error: BaseException) -> bool:
    if isinstance(error, PermissionError) or "Credential" in type(error).__name__:
        return True
    return str(error).startswith("Forbidden")  # so gcsfs says it


def _failure(url: str, error: Exception) -> DataError:
    status = _status(error)
    *_, cause = _chain(error)
    if status == 404 or (status is None and isinstance(cause, FileNotFoundError)):
        return NotFound(f"{shown(url)}: not found.")
    if status in (401, 403) or _is_refused(cause):
        return DataError(
            f"{shown(url)}: does not exist, or needs other credentials ({status or type(cause).__name__}). "
            f"They are taken from {PACKAGES[_scheme(url)][1]}."
        )
    if status == 412:
        return DataError(f"{shown(url)}: changed while it was read. Run the same command again.")
    said = discreet(str(cause)) or "it says no more"
    return DataError(f"{shown(url)}: the request failed ({type(cause).__name__}: {said}).")


def discreet(text: str) -> str:
    """A message in one line, without the queries, user names and passwords of URLs in it."""
    line = re.sub(r"//[^/@\s]*@", "//", " ".join(text.split()))
    return re.sub(r"\?\S+", "", line)[:300]
