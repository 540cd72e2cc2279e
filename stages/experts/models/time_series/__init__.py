"""Experts that were trained on, or made for, time series of any kind."""
