"""Labels from a table of a person: which row is which record, and what its columns mean."""
