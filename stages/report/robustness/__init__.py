"""The report's part on robustness: what disturbances do to the gate and to each expert."""
