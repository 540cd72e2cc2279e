"""From what heads learn: experts' features, read at once or lazily, and their standardisation."""
