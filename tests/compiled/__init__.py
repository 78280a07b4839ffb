"""Does the compiled code do what the kernels say? A small emulator of the PTX that Triton makes of them, on a CPU.

`parse` reads the text, `arithmetic` and `matrices` say what an instruction computes, `memory` keeps bytes and watches who
touches them, `order` knows what a program has seen of others, `registers` and `access` are how operands are read and memory is
touched, `program` runs all threads of a program in step, `turns` one program after the other or several in turns, `launch`
stands in for Triton's launcher, `problems` are compared with the torch engine, `planted` faults must be seen, and those in
programs of a `team` that wait for each other. ``python -m tests.compiled`` runs any of it.
"""
