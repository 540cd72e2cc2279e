"""Heads of one expert on many records, read block by block in bounded memory."""
