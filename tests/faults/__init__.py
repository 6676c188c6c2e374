"""Faults of files: every kind of content at every place where a file from outside comes in (`make faults`)."""
