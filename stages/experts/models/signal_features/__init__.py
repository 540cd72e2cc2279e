"""Experts without a trained network: features computed from the signal."""
