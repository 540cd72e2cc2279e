"""The commands, one module a group: `study` (make and fill one), `run` (its stages), `info` (what is here)."""
