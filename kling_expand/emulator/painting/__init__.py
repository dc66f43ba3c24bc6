"""Painting: from the bytes of a photo to the bytes of an expanded picture."""
