"""`python -m benchmarks.activation_study`."""

from .command import study

if __name__ == "__main__":
    study()
