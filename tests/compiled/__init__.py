"""Does the compiled code do what the kernels say? A small emulator of the PTX that Triton makes of them, on a CPU.

`parse` reads the text, `arithmetic` and `matrices` say what an instruction computes, `memory` keeps bytes and watches who
touches them, `program` runs all threads of a program in step, `launch` stands in for Triton's launcher, `problems` are compared
with the torch engine, and `planted` faults must be seen. ``python -m tests.compiled`` runs any of it.
"""
