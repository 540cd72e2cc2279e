"""Readers of the files that carts and archives write: one file a format; `known` lists them.

Each is known by its content.

Not here: WFDB (stages/readers/wfdb), the door to files of any format (stages/readers/files).
"""
