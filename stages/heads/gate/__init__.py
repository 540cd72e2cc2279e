"""Weights over experts for every record: what the gate reads, how it is trained, how it mixes."""
