"""Triton kernels of tritoncrf, packaged as ``tritoncrf.kernels``: tensors and integers only, no models.

Imported by the Triton engine alone. `draw`, `rows`, `odds` and `teams` hold device functions; every other file a question, the
kernels that answer it, and a launcher under each. `shapes` and `device` say how they are launched.
"""
