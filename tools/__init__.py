"""The commands: they parse arguments and call; nobody imports them."""
