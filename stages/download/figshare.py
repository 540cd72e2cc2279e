"""What figshare's public API says of a collection: its articles, and of each file name, size, MD5 and where it lies.

API v2: `GET /collections/ID/articles` gives articles with their `id`, `GET /articles/ID/files` files with `name`,
`size`, `computed_md5` and `download_url`. Not here: how anything is fetched (stage.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from cache.errors import DownloadError

PAGE_SIZE = 100
"""Articles that one answer lists at most; the collections here have fewer."""
MD5 = re.compile(r"[0-9a-f]{32}")
GetJson = Callable[[str], Any]
"""Fetches an address below the API's and reads its JSON."""


class File(NamedTuple):
    """A published file."""

    name: str
    md5: str
    url: str
    size: int


def files_of(collection: int, get_json: GetJson, *, secure: bool) -> list[File]:
    """Return the files of a collection.

    Parameters
    ----------
    secure
        Whether files must come by https.

    Raises
    ------
    DownloadError
        The answers are not what the API documents, or two files have one name.
    """
    articles = get_json(f"collections/{collection}/articles?page_size={PAGE_SIZE}")
    found: dict[str, File] = {}
    for article in _list(articles, "articles"):
        for given in _list(get_json(f"articles/{_number(article, 'id')}/files"), "files"):
            file = _file(given, secure)
            if file.name in found:
                raise DownloadError(f"figshare collection {collection}: two files are called {file.name[:60]!r}")
            found[file.name] = file
    if not found:
        raise DownloadError(f"figshare collection {collection}: no file is listed")
    return list(found.values())


def _list(answer: Any, what: str) -> list[Any]:
    if not isinstance(answer, list):
        raise DownloadError(f"figshare's API gives no list of {what}; is --figshare-url right?")
    return answer


def _number(given: Any, key: str) -> int:
    value = given.get(key) if isinstance(given, dict) else None
    if not isinstance(value, int):
        raise DownloadError(f"figshare's API gives an entry without '{key}'; is --figshare-url right?")
    return value


def _file(given: Any, secure: bool) -> File:
    size = _number(given, "size")
    name, md5, url = (str(given.get(key) or "") for key in ("name", "computed_md5", "download_url"))
    scheme = urlsplit(url).scheme
    if not name or not MD5.fullmatch(md5) or scheme not in (("https",) if secure else ("https", "http")):
        raise DownloadError(f"figshare's API gives {name[:60]!r} without an MD5 or an address by https")
    return File(name, md5, url, size)
