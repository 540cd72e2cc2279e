"""Stage `ingest`: a data source in, records.parquet, signals.zarr and bad_records.csv out."""

from stages.ingest.stage import ingest

__all__ = ["ingest"]
