"""Stage `download`: collections from PhysioNet, checked against their digests, resumable."""

from stages.download.stage import COLLECTIONS, Credentials, download

__all__ = ["COLLECTIONS", "Credentials", "download"]
