"""Files and objects: where stores lie, how whole files and objects are written and read in parts. Knows no Zarr."""
