"""Kernels in C for the CPU at hand, compiled at first use. Wherever they are called there is a way in torch, too."""
