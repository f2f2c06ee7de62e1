"""Formats of checkpoint, each recognized by its content and mapped to our configuration and weights in its own file."""
