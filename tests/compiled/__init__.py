"""Does the compiled code do what the kernels say? A small emulator of the PTX that Triton makes of them, on a CPU.

`parse` reads the text, `arithmetic`, `approximate` and `matrices` say what an instruction computes, `memory` keeps bytes and
watches who touches them, `order` knows what a program has seen of others. By `registers` operands are read, by `access` memory
is touched, `program` runs all threads of a program in step, `turns` one program after the other or several in turns, `launch`
stands in for Triton's launcher. `problems` are compared with the torch engine, `planted` faults must be seen, and those in a
kernel whose programs are a `team`. ``python -m tests.compiled`` runs any of it.
"""
