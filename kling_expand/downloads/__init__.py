"""Downloads of results to disk or memory."""
