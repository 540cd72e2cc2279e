"""WFDB records: headers, samples in one file or many, records of segments."""
