"""Metrics and curves of times to event: concordance, AUC and Brier at horizons, calibration, Kaplan-Meier."""
