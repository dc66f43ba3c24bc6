"""The HTML report about a journal."""
