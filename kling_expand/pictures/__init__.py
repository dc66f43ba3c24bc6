"""Work on pictures that needs Pillow (extra `images`)."""
