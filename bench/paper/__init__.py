"""Does the library do what the paper claims? Every method of Table 2 of Kirillov et al. (ACCV 2016) on the same data.

``python -m bench.paper --preset half --data FOLDER --out DIR`` trains and tests the rows of a preset and writes their figures
as JSON, ``python -m bench.paper.figures`` draws the paper's figures from what was learned, and ``python -m bench.paper.report``
makes docs/paper.md from the committed results. Every row starts from the same pre-trained network, sees each training image
as often, and is tested on the same images; the methods differ in the objective alone.
"""
