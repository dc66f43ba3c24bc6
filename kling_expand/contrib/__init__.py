"""The same, inside your framework: one file for each, importing that framework and no other."""
