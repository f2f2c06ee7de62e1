"""What a model is quantized on: samples read or made, and what its ops are seen to take."""
