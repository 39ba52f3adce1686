"""Starts, watches and stops the processes of a graph; the command line."""
