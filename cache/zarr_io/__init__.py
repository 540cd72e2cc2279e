"""Zarr groups, their metadata, and shards encoded and read without a detour. Not here: which arrays a store has."""
