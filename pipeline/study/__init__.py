"""A study's folder: its files, its params.yaml, how it is made, its run records."""
