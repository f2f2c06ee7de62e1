"""How an op is quantized: the methods, one a file, and what they share."""
