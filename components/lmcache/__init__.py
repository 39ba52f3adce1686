"""The LMCache server as a process of the graph: one a host, shared by that host's engines."""
