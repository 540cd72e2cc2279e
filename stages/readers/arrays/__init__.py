"""Readers of recordings that lie in files of arrays: HDF5 and MATLAB v5."""
