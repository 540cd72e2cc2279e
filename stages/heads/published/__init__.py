"""The published systems exactly: EnECG's heads and gate, ECG-Soup's probe head."""
