"""What decode and prefill workers have in common: a process with an engine, which tells what its engine holds."""
