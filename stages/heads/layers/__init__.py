"""Mixing an expert's layers into one vector: last, pooled mean, gated mean."""
