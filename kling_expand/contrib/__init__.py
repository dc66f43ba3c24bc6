"""How does it fit into your framework? One file for each, importing that framework and no other."""
