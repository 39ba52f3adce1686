"""The cache controller's pure parts."""
