"""The report's part on decisions: operating points, decision curves, conformal sets and intervals."""
