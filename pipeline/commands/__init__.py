"""The commands, one module a group.

`study` (make and fill one), `run` (its stages), `look` (at ECGs), `info` (what is here).
"""
