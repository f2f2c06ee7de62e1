"""Forms of checkpoint, each recognised by its content and mapped to our configuration and weights in its own file."""
