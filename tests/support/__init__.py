"""What tests of several folders share, and no fixture is: bundles, models, defects and samples made by hand."""
