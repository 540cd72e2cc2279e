"""What a run is computed with: devices, worker processes, a Dask cluster."""
