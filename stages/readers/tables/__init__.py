"""Tables of any size as text columns: CSV in the dialects that programs write, packed or not, and Excel sheets."""

from stages.readers.tables.csv_table import Table, find_table
from stages.readers.tables.numbers import numbers
from stages.readers.tables.whole_table import read_table

__all__ = ["Table", "find_table", "numbers", "read_table"]
