"""Experts that were trained on ECGs."""
