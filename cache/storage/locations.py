"""Where stores lie: in folders of this machine, or under a URL of an object storage. What both can do, by one name.

Not here: how shards are encoded (`cache.zarr_io.shards`), what is special about objects (`cache.storage.objects`).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from urllib.request import url2pathname

from cache.errors import MissingFileError, UsageError
from cache.storage.objects import ObjectPath, is_url
from cache.storage.obstore_client import AZURE, AZURE_HOST

Location = Path | ObjectPath
METADATA, FILE = "zarr.json", "file://"


def location_of(location: str | Path | ObjectPath) -> Location:
    """Return a location as a `Path` of this machine (also of a `file://` URL), or as an `ObjectPath` of another URL."""
    if isinstance(location, Path | ObjectPath):
        return location
    if not is_url(location):
        return Path(location)
    if location.startswith(FILE):
        return Path(url2pathname(location.removeprefix(FILE)))
    if holds_credentials(location):
        raise UsageError(
            "a URL holds credentials; leave them out, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or what "
            "docs/scaling.md names for Google's and Azure's storage"
        )
    return ObjectPath(location)


def holds_credentials(url: str) -> bool:
    """Whether a key or a token stands in a URL; `abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/x` names none."""
    protocol, _, rest = url.partition("://")
    before, at, host = rest.partition("/")[0].rpartition("@")
    if protocol not in AZURE:
        return bool(at)
    return "?" in rest or (bool(at) and (":" in before or not host.endswith(AZURE_HOST)))


def within(folder: Path, location: str) -> Location:
    """Return a location that is told from a folder: a URL as it is, a path relative to the folder."""
    return location_of(location) if is_url(location) else folder / Path(location).expanduser()


def require_writable(*locations: Location) -> None:
    """Refuse URLs that stores can only be read from, before work is done for them.

    Raises
    ------
    UsageError
        Naming the first one, and what can be written to.
    """
    for location in locations:
        if isinstance(location, ObjectPath):
            location.require_writable()


def name_within(store: Location, file: Location) -> str:
    """Return the name of a store's file or object from the store on, such as `done/c/0`."""
    if isinstance(file, Path):
        return file.relative_to(str(store)).as_posix()
    return file.url.removeprefix(f"{store}/")


def store_exists(store: Location) -> bool:
    """Whether there is a store. Among objects that is its root metadata, which is written last and deleted first."""
    if isinstance(store, Path):
        return store.exists()
    try:  # read it: of an object that is only asked for, a storage does not say why it is not given
        (store / METADATA).read_bytes()
    except FileNotFoundError:
        return False
    return True


def file_exists(file: Location) -> bool:
    """Whether there is a file or object of this name."""
    return file.is_file() if isinstance(file, Path) else file.exists()


def stores_in(folder: Location) -> list[Location]:
    """Return the stores right below a folder, in order."""
    return [store for store in _named_as_stores(folder) if store_exists(store)]


def half_made_in(folder: Location) -> list[Location]:
    """Return what killed runs left where there should be a store: objects without root metadata."""
    return [store for store in _named_as_stores(folder) if not store_exists(store)]


def _named_as_stores(folder: Location) -> list[Location]:
    if isinstance(folder, ObjectPath):
        found: list[Location] = list(folder.children())
    else:
        found = sorted(folder.glob("*.zarr")) if folder.is_dir() else []
    return [path for path in found if path.name.endswith(".zarr") and not path.name.startswith(".")]


def n_bytes(store: Location) -> int:
    """Return the bytes of all files or objects below a name."""
    if isinstance(store, ObjectPath):
        return sum(entry.size for entry in store.files().values())
    return sum(file.stat().st_size for file in store.rglob("*") if file.is_file())


def move(store: Location, target: Location, guard: Callable[[], None] | None = None) -> None:
    """Move a store to a name beside it, where nothing stands.

    A folder is renamed. Objects are copied by their server, root metadata last, and then removed, root metadata first:
    whenever it is interrupted, one of the two is whole.

    Parameters
    ----------
    guard
        Raises where this process no longer owns the store.
    """
    if guard is not None:
        guard()
    if isinstance(store, Path):
        store.rename(Path(str(target)))
        return
    names = sorted(store.files(), key=lambda name: name == METADATA)
    store.copy(names, ObjectPath(str(target)))
    if guard is not None:
        guard()
    remove(store)


def remove(store: Location) -> None:
    """Remove a store and everything below its name. Among objects, the root metadata first: then there is none."""
    if isinstance(store, ObjectPath):
        (store / METADATA).unlink(missing_ok=True)
        store.delete(sorted(store.files()))
    elif store.exists():
        shutil.rmtree(store)
    else:
        raise MissingFileError(f"{store} does not exist")
