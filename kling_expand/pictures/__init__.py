"""Processing of pictures with Pillow (extra `images`)."""
