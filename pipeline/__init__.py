"""What a person touches: the `ensemble` command, parameters, devices, progress. The work itself is in `stages`."""
