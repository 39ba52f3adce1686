"""Scripts for machines with one, two or four GPUs; each proves itself on a CPU with a toy model. See docs/gpu.md."""
