"""What came out? ``python -m bench.paper.report`` writes docs/paper.md from the JSON of bench/paper/results and nothing else.

The same JSON gives the same page. What was not measured says so, with the command that would; where the order differs from
the paper's, the sentence is made from the interval.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench.paper import report_edges, report_objective, report_open, report_photographs, report_tables, statistics
from bench.paper.presets import PRESETS
from bench.paper.report_claims import ARGUMENT, CLAIM, EDGES, FURTHER, METHODS, OBJECTIVE
from bench.paper.report_rows import Results, Row, read
from bench.paper.run import program

ROOT = Path(__file__).parents[2]
RESULTS, PAGE = ROOT / "bench" / "paper" / "results", ROOT / "docs" / "paper.md"
FOLDERS = ("half", "whole", "full", "facades", "faces", "facades_unet", "faces_unet", "half_unet", "toy")

HEAD = f"""\
<!-- Written by `python -m bench.paper.report` from bench/paper/results/*.json; changes belong there. -->
# The paper, reproduced

Kirillov et al., *Joint Training of Generic CNN-CRF Models with Stochastic Optimization* (ACCV 2016): every method of its
Table 2, and those its section 4 argues against, on a substitute for its data: 20 labels, 19 body parts and background, from
depth. The images are others, so what can be reproduced is the order of the methods and the margins between them. Within a
preset every row starts from the same pre-trained network, visits each training image as often and is tested on the same images.

Accuracy is the per cent of body pixels right, pooled over the test images. *a ± b (n)* is mean and standard deviation over n
seeds, a lone figure one run. Intervals are {100 * statistics.LEVEL:.0f} % bootstrap intervals of the paired difference,
{statistics.RESAMPLES} resamples of the test images, over the seeds that both rows have; seeds share the images and so the draw.
They say how much another sample of such images might change, not another seed; frames of one clip resemble each other, so they
are rather too narrow."""

TITLES = {
    "half": "Half scale",
    "whole": "Half scale, the whole training split",
    "full": "Full scale, the paper's network",
    "facades": "Facades: colour photographs, 12 classes",
    "faces": "Faces: colour photographs, 6 classes",
    "facades_unet": "A strong network on the facades: U-Net with ResNet-18",
    "faces_unet": "A strong network on the faces: U-Net with ResNet-18",
    "half_unet": "A strong network at half scale: U-Net with ResNet-18",
    "toy": "Toy: generated figures",
}
NOTES = {
    "full": "Wants one GPU; on an H200 the main rows should take less than 25 minutes (predicted, not measured).",
    "facades": """\
Does joint learning help outside body parts? Every fold is test data once. The settings, K = 100 above all, were chosen on
images that are test images of folds 1 to 4; fold 0 is free of that. A step of the last row takes 2.7 times the processor time
of this small network's alone, 1.28 times the likelihood's (`python -m bench.objective --preset facades --data FOLDER --work
RUN --sweeps 10 --rate 3e-3 --images 30 --warm 3`).""",
    "faces": """\
A second photographic set (Khan et al. 2015). Its archive has 70 photographs, six of them twice, on both sides of its own
split, with another annotation each time; folds have each of the 64 once. Those two annotations agree at 96.4 % of the pixels,
at a mean IoU of 86.8 (`python -m bench.paper.annotators --data FOLDER`): no model can be told to be better than that. Some
photographs may show one person twice. Tables learned beside the fixed network do not reach the control here. It knows its
training images too well: in fold 0 it has 96.6 % of their pixels right, at a cross-entropy of 0.086 nats, of the test images'
93.4 %, at 0.217 (`python -m bench.paper.known --work runs/faces --data FOLDER`), so what tables learn beside it is not what
other images need. Joint learning, where the network gives way, does, with tables by kind of edge: nearly half of the way from
the control to the two annotations' agreement, in accuracy and in mean IoU. A step of joint PCD takes 1.23 times the processor
time of the control's, of which sampling is a quarter; with tables by kind of edge 1.51 times, and 37 % (`python -m
bench.paper.share --work runs/faces --data FOLDER --rows joint_pcd joint_kinds`). Nothing was tuned but K: on held-out images
K = 10 did as well as 100; the rows at three times the rates have the facades' settings. The costs below are of a machine that
ran many other jobs.""",
    "facades_unet": """\
Does a CRF still help a network that sees the whole image? One fold of the facades, one seed, 10 epochs of pre-training from
random weights and 4 more; the U-Net's control has not reached the small network's, 302 images are few for its 14.3 million
parameters. The CRF's settings are those that won for the small network, three times this preset's rates. A step takes 1.28
times the processor time of the network's alone while chains are hot (`python -m bench.objective --preset facades_unet --data
FOLDER --sweeps 10 --rate 3e-4 --images 5 --warm 3 --visits 1`).""",
    "faces_unet": """\
Does a CRF still help a network that sees the whole image? One fold of the faces, 20 epochs of pre-training from random
weights and 6 more. The U-Net is no better here than the small network (51 images are few for its 14.3 million parameters),
and the control still gains over it, so this is not its best. With tables by kind of edge the CRF adds to its accuracy, with
one table a class nothing, and no row's mean IoU is above the control's by more than chance. Beside the fixed network tables
stay below the control: 96.0 % of the training pixels right against 92.6 % of the test images' (`python -m bench.paper.known
--work runs/faces_unet --data FOLDER`). A step of joint PCD with kinds, K = 10, takes 1.09 times the processor time of the
control's, and sampling is 8 % of it (`python -m bench.paper.share --work runs/faces_unet --data FOLDER --rows
joint_kinds`).""",
    "half_unet": "On 300 images, with a network that sees the whole figure.",
    "toy": "Minutes on a CPU, so that the machinery is tested; no evidence for real images.",
}
FIGURES = {
    "figure1.png": "Depth, truth, network, CRF-as-RNN joint, ours separate, ours joint, with the share of right body pixels "
                   "(the paper's Fig. 1); test images evenly spaced, not chosen.",
    "figure2.png": "Parts, neighbourhood, and learned energies of one part around another for every offset: red discouraged, "
                   "blue encouraged (the paper's Fig. 2). L is the body's left, to the right in a picture from the front.",
    "figure3.png": "The network before and after joint learning, the max-marginal labels of both CRFs, and the marginals of "
                   "the circled pixel (the paper's Fig. 3); chosen: the image where the joint CRF gains most over the separate "
                   "one, of some evenly spaced, and in it, of the pixels put right, the one that grew most ambiguous.",
    "kinds.png": "The tables of one offset, of the class whose tables differ most, for each kind of edge: energies of a label "
                 "at the first end (rows) and one at the second (columns), red discouraged, blue encouraged.",
    "learning.png": "Learning: energy gap, chain accuracy and flip rate of the sampled rows. Chains keep up where the gap "
                    "stays near zero.",
    "inference.png": "Accuracy after so many sweeps, from the pre-trained network's marginals and from a random labelling.",
}  # fmt: skip


ACCOUNT = """Where this differs from the paper; rows without a deviation are of one seed. Margins over the control are smaller
than the paper's over its CNN: the network here is better to begin with, and with 2071 images and 6 epochs, as on the random
split, it comes closer still. Neither 12 epochs, K = 20 nor a longer reach gave joint learning more than 0.2 points on
validation images. With K = 1,
at the network rate that all joint rows share, the chains lag: at the end of learning their energy still falls by 0.08 nats a
pixel if they go on, with K = 10 by less than 0.01 (Did the chains keep up?), and the network alone is lost. A third of the rate
gave K = 1 0.4 points on 300 images, and left it 1.2 below K = 10. CD-1 and CD-2, biased towards the data, do not pass tables
learned beside the fixed network. Mean field learned through ends above joint PCD here, for cross-entropy asks for single
pixels right, which is what is counted, the likelihood for whole labellings (What is learned by); ten iterations are no better
than five.
Its price grows with the iterations, as section 4 says: a learning step takes 1.9, 3.8 and 6.2 times the processor time of joint
PCD's with 2, 5 and 10 of them (106, 210 and 343 ms against 55), and as autograd unrolls them 3.6, 6.9 and 14.5 times at 9, 17
and 30 times the memory (`python -m bench.paper.methods.growth --preset half --data FOLDER`; the learning times below are of a
machine that ran other jobs too; that of five iterations, 747 s, was put together from two slices of a run that was killed,
and its peak is the second slice's). Piecewise tables are each right about their own edges, and 96 neighbours count the same
evidence over and over: on 300 images, beside a fixed network, they have 54.5 % of the validation pixels right as they are and
83.7 % when multiplied by 0.03, where the network alone has 80.1 % and tables learned by PCD 85.1 %."""
LAG = """Where learning ended, the model is held still and some training images' chains go on. Energy that moves away from 0
says that they had not reached what the model gives its samples: learning took its errors from labels that the model would not
draw. The rates have fallen to 0 by then, the kindest moment to ask. Means over images with standard errors."""
VIEWS = """The small network sees 65 pixels, nearly half of a figure; `bench.paper.networks:half` sees 35, the share that the
paper's network sees, with as many weights. On validation images:"""


def page(results: Results, figures: Path, link: str) -> str:
    """The whole page. figures: the folder to look for pictures in; link: its path as the page writes it."""
    unknown = sorted({row.name for row in results.rows} - set(METHODS))
    if unknown:
        raise ValueError(f"results: expected rows of {', '.join(METHODS)}, got {unknown[0]!r}")
    strange = sorted({row.preset for row in results.rows} - set(PRESETS))
    if strange:
        raise ValueError(f"results: expected rows of presets {', '.join(PRESETS)}, got {strange[0]!r}")
    photographs, apart = report_photographs.lines(results), report_photographs.mine(results.trials)
    # These have a table of their own.
    results = replace(results, trials=tuple(trial for trial in results.trials if trial not in apart))
    lines = [HEAD, "", "## Is it the paper's order?", "", *_order(results.rows)]
    lines += report_edges.lines(results)
    lines += report_objective.lines(results)
    lines += photographs
    for preset in FOLDERS:
        lines += ["", f"## {TITLES[preset]}", "", *_preset(preset, [row for row in results.rows if row.preset == preset])]
    lines += ["", "## Inference", ""]
    lines += report_tables.inference_lines(results.inference) if results.inference else ["Not measured."]
    if results.lags:
        lines += ["", "## Did the chains keep up?", "", LAG, "", *report_tables.lag_table(results.lags)]
    lines += ["", "## Memory between visits", ""]
    lines += report_tables.storage_table(results.storage) if results.storage else ["Not measured."]
    lines += ["", "## Figures", "", *_figures(figures, link)]
    lines += ["", "## What the paper leaves open", "", "Where no other setting is named, none was measured.", ""]
    lines += report_open.lines(results.trials)
    views = report_tables.views_table(results.trials)
    if views:
        lines += ["", "## What the network sees", "", VIEWS, "", *views]
    lines += ["", "## What was tried", ""]
    if results.trials:
        lines += ["On validation images, held out of the training split; several seeds as mean ± deviation (number).", ""]
        lines += report_tables.trials_table(results.trials)
    else:
        lines += ["Not measured."]
    return "\n".join(lines) + "\n"


def _order(rows: Sequence[Row]) -> list[str]:
    """The claim on the headline split of `half`, sentence by sentence."""
    half = PRESETS["half"]
    mine = [row for row in rows if row.preset == half.name]
    split = half.splits[0]
    lines = [
        "The claim: joint PCD > joint CD-K > separate PCD, and ours joint > CRF-as-RNN joint. On the headline split of `half`, "
        f"{report_tables.split_title(split)}, in points of accuracy; the paper's PCD has K = 1 and stands beside ours here:",
        "",
    ]
    def said(pairs: Sequence[tuple[str, str]]) -> list[str]:
        found = [(report_tables.compare(mine, [split], *pair), pair) for pair in pairs]
        return [f"- {report_tables.sentence(compared, *pair)}" for compared, pair in found]

    lines += [*said(CLAIM), "", "And joint PCD against what section 4 argues against, on our own tables:", "", *said(ARGUMENT)]
    return [*lines, "", ACCOUNT] if mine else lines


def _preset(name: str, rows: Sequence[Row]) -> list[str]:
    preset = PRESETS[name]
    lines = [NOTES[name], ""] if name in NOTES else []
    if not rows:
        return [*lines, f"Not measured: `{_command(name, ' '.join(preset.splits), None)}`"]
    splits = [*preset.splits, *sorted({row.split for row in rows} - set(preset.splits))]
    if preset.visit_sweeps != PRESETS["half"].visit_sweeps:
        lines += [f"Our K is {preset.visit_sweeps} here.", ""]
    names = [method for method in METHODS if method in (preset.rows or METHODS) or any(row.name == method for row in rows)]
    images = sorted({row.images for row in rows})
    tests = {row.split: str(len(row.scores)) for row in rows if row.scores is not None}
    tested = " / ".join(tests[split] for split in splits if split in tests) or "an unknown number of"
    lines += [
        f"{' / '.join(map(str, images))} training images, {tested} test images; {_answer(rows)}", "",
        *_alone(rows), "Accuracy of the whole model:", "",
        *report_tables.by_split(rows, names, splits, lambda row: row.accuracy, paper=name in ("half", "whole", "full")), "",
        "Accuracy of its network alone:", "",
        *report_tables.by_split(rows, names, splits, lambda row: row.network_accuracy, paper=False), "",
        "Mean IoU of the whole model:", "",
        *report_tables.by_split(rows, names, splits, lambda row: row.mean_iou, paper=False), "",
    ]  # fmt: skip
    lines += _missing(name, names, splits, rows)
    groups = [[split] for split in splits] if len(splits) <= 2 else [list(splits)]
    for group in groups:
        pairs = [report_tables.compare(rows, group, *pair) for pair in (*CLAIM, *FURTHER, *ARGUMENT, *EDGES, *OBJECTIVE)]
        known = [pair for pair in pairs if pair is not None]
        if known:
            folds = "all folds" if {row.split for row in rows} >= set(group) else "the folds that were measured"
            title = report_tables.split_title(group[0]) if len(group) == 1 else folds
            lines += [f"Paired differences in points, {title}:", "", *report_tables.pairs_table(known), ""]
    machines = ", ".join(sorted({row.machine or "unknown" for row in rows}))
    commits = ", ".join(sorted({row.commit for row in rows}))
    return [*lines, f"Costs ({machines}; commits {commits}):", "", *report_tables.costs_table(rows)]


def _alone(rows: Sequence[Row]) -> list[str]:
    """A warning where means over seeds stand beside single runs."""
    counts = {len({row.seed for row in rows if (row.name, row.split) == place}) for place in {(r.name, r.split) for r in rows}}
    if len(counts) < 2:
        return []
    return ["Means over seeds stand beside rows of one seed: between those, only the paired differences below compare.", ""]


def _answer(rows: Sequence[Row]) -> str:
    sweeps = sorted({(row.burn_in, row.sweeps) for row in rows if row.burn_in is not None and row.sweeps is not None})
    if not sweeps:
        return "burn-in and sweeps unknown."
    return f"sampled rows answer with {' / '.join(f'a burn-in of {b} and {s} averaged sweeps' for b, s in sweeps)}."


def _missing(name: str, methods: Sequence[str], splits: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """The commands for what the tables lack."""
    lines = []
    for split in splits:
        missing = [method for method in methods if not any(row.name == method and row.split == split for row in rows)]
        if missing:
            lines.append(f"- `{_command(name, split, missing if len(missing) < len(methods) else None)}`")
    return ["To measure what is missing:", "", *lines, ""] if lines else []


def _command(preset: str, split: str | None, rows: Sequence[str] | None) -> str:
    data = "" if PRESETS[preset].file is None else " --data FOLDER"
    device = " --device cuda" if preset == "full" else ""
    some = ("" if split is None else f" --splits {split}") + ("" if rows is None else f" --rows {' '.join(rows)}")
    return f"python -m bench.paper --preset {preset}{data} --out runs/{preset}{device}{some}"


def _figures(folder: Path, link: str) -> list[str]:
    lines = []
    for name, caption in FIGURES.items():
        if (folder / name).is_file():
            lines += [f"![{caption}]({link}/{name})", "", caption, ""]
    return lines[:-1] or ["None drawn yet: `python -m bench.paper.figures --work runs/half --data FOLDER`"]


@program
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.paper.report", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=PAGE)
    options = parser.parse_args(arguments)
    if not options.out.parent.is_dir():
        raise FileNotFoundError(f"out: expected a file in an existing folder, got {options.out}")
    figures = options.out.parent / "figures"
    text = page(read(options.results), figures, os.path.relpath(figures, options.out.parent))
    options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
