"""Triton kernels of tritoncrf, packaged as ``tritoncrf.kernels``: tensors and integers only, no models.

Imported by ``tritoncrf.engines.triton`` alone. This version holds none: the torch engine runs everything.
"""
