"""What the scripts do. Each command parses its flags, builds things and calls them."""
