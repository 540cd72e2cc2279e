"""The one door to ECG files of any format, WFDB included: for cohorts, and for new ECGs that a person names."""

from stages.readers.files.door import check_installed, facts_of, known_format, read_file, what_is_read
from stages.readers.files.new_ecgs import Recorded, find_ecgs, quality_warnings, read_ecg, without_parts
from stages.readers.formats.parts.contract import MEASUREMENTS, Facts, Format

__all__ = ["MEASUREMENTS", "Facts", "Format", "Recorded", "check_installed", "facts_of", "find_ecgs", "known_format"]
__all__ += ["quality_warnings", "read_ecg", "read_file", "what_is_read", "without_parts"]
