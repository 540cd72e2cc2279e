"""What `fit-heads`, `evaluate` and `predict` share: the joined data, folds, saved fits, the gate's signal."""
