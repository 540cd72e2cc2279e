"""What the report shows of a survival task: Kaplan-Meier curves with numbers at risk, calibration, horizons."""
