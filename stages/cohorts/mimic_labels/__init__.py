"""What the labels of MIMIC-IV-ECG are made of: potassium results, and lines of machine reports."""
