"""What decisions are worth on test records: operating points, decision curves, conformal coverage."""
