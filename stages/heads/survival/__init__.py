"""Time to event: Cox's partial likelihood, and the baseline hazard that turns log-hazards into probabilities."""
