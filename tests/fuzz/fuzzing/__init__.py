"""Files that are read, mutated by their structure, and whoever reads them watched: see `__main__`."""
