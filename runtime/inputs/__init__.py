"""What callers pass, checked and made into what a graph takes."""
