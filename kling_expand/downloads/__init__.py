"""Downloads of results to the disk."""
