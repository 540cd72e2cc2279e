"""Heads of one expert whose features fit into memory: probe and LoRA for all folds and tasks at once."""
