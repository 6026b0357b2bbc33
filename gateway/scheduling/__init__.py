"""The scheduler: pure decisions over jobs, levels and blocks. No clock, no I/O, no tensors."""
