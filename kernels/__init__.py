"""Triton kernels of tritoncrf, packaged as ``tritoncrf.kernels``: tensors and integers only, no models.

Imported by ``tritoncrf.engines.triton`` alone, through `operators`. `draw`, `rows`, `edges` and `push` hold device functions;
every other file a question, the kernels that answer it, and a launcher under each. `shapes` says how they are launched.
"""
