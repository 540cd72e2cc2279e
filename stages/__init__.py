"""The work: one module or folder a stage. No stage imports another; what they share has a room of its own."""
