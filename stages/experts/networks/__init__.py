"""The official architectures under their official key names."""
