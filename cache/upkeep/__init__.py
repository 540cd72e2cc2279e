"""What is done with stores that exist: resuming, verifying, repairing, importing and exporting them."""
