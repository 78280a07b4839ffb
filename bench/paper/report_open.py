"""What does the paper leave open, and what did we choose? One entry a question, in the order of the paper.

Settings come from the presets and the library's own defaults, figures from ``tuning.json`` alone: an entry names what it was
tuned as (a word in what a trial changes), and the report adds what the trials say.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from bench.paper import statistics
from bench.paper.methods import METHODS
from bench.paper.presets import PRESETS, Preset
from bench.paper.report_rows import Trial


@dataclass(frozen=True)
class Choice:
    """A question that the paper leaves open."""

    question: str
    paper: str
    """What it does say."""
    ours: str
    words: tuple[str, ...] = ()
    """Trials belong here that change something whose name has a word beginning with one of these."""


def choices() -> list[Choice]:
    """All of them, with the settings as the code has them now."""
    half, full = PRESETS["half"], PRESETS["full"]
    ours, theirs = half.visit_sweeps, METHODS["joint_pcd1"][1]["sweeps"]
    return [
        Choice(
            "Step sizes (eq. 8, 11)",
            "\"a diminishing sequence\"; no rate is given, neither for the pre-training nor for the CRF",
            f"rates that fall linearly to 0 over a stage. `half`: {_rates(half)}. `full`: {_rates(full)}",
            ("rate", "step", "optimizer", "momentum"),
        ),
        Choice(
            "Length of learning (M of Algorithm 1)",
            "neither the epochs of pre-training nor those of joint learning are given, nor when it stops",
            "a fixed number of visits of each training image, the same in every row: "
            + "; ".join(f"`{p.name}` {p.pretrain} epochs of pre-training, then {p.epochs}" for p in PRESETS.values()),
            ("epoch", "visit", "length"),
        ),
        Choice(
            "Order of the images",
            "d drawn uniformly, with replacement, one at a time",
            "shuffled epochs without replacement, one image an update, so that every chain is visited as often",
            ("batch", "order"),
        ),
        Choice(
            "Sweeps per visit (K)",
            "PCD: one step, \"one step of the MCMC method\"; CD-K with K = 1, 2, 5",
            f"both: K = {theirs} as the paper has it, and K = {ours}, the library's default; CD-10 beside CD-1, CD-2, CD-5; "
            f"K = {PRESETS['facades'].visit_sweeps} on the facades",
            ("k =", "sweeps per"),
        ),
        Choice(
            "First state of the persistent chains",
            "not said (at test time: a draw from the marginals of the pre-trained network)",
            "a draw from the network's own marginals at the image's first visit",
            ("restart", "chain"),
        ),
        Choice(
            "Order of the sites in a sweep (Algorithm 2)",
            "n = 1 .. N, \"highly parallelizable\", citing chromatic sampling",
            "chromatic: sites that share no edge are drawn together, colour after colour; exact Gibbs sampling too",
        ),
        Choice(
            "Scale of the gradient",
            "not said whether it is summed over pixels or divided by their number, which sets what a rate means",
            "the mean over labelled pixels that are not known anyway, for the tables too",
        ),
        Choice(
            "Sign of (11)",
            "read literally, with psi as energies, the step would lower the likelihood",
            "the gradient of the negative log-likelihood, tested against autograd through an enumerated log Z",
        ),
        Choice(
            "Sweeps at test time",
            "\"extremely long runtimes\" from a random labelling; neither burn-in nor the number of averaged sweeps is given",
            "chosen once on validation images (see Inference), the same for all sampled rows: in `half` a burn-in of "
            f"{half.burn_in} and {half.sweeps} averaged sweeps",
            ("burn", "inference", "100 + 200"),
        ),
        Choice(
            "How marginals are estimated from samples",
            "not said: most simply, by counting labels",
            "by averaging each pixel's local conditional (16) over the sweeps: the same mean, of lower variance",
        ),
        Choice(
            "Start of the tables",
            "not said",
            "zero",
        ),
        Choice(
            "The 64 neighbours",
            "Fig. 2b; the text names (5, 10) alone. They cannot be recovered",
            f"a sparse grid that reaches about a seventh of a figure's height and two dense blocks: `half` and `whole` "
            f"{_offsets(half)}, `full` {_offsets(full)}",
            ("neighbo", "reach", "offset", "8 classes", "20 classes", "32 classes", "48 classes", "96 classes"),
        ),
        Choice(
            "Smoothing of the tables",
            "no weight decay, prior or smoothing is mentioned; pairs that never occur keep weights near zero (Fig. 2)",
            "none: no weight decay, and a pair that neither data nor samples show keeps its zero",
            ("smooth", "decay", "regular"),
        ),
        Choice(
            "Background in sampling",
            "a label like any other, left out of the accuracy; not said whether the CRF is told, though it \"can be easily "
            "identified from the depth map\"",
            "pixels without depth are clamped to background in both phases and at test time, for every row alike",
            ("clamp", "background"),
        ),
        Choice(
            "Drift between unaries and tables",
            "not discussed: both can express a bias per label",
            "left alone",
            ("drift", "auxiliary", "cross-entropy", "cross_entropy"),
        ),
        Choice(
            "Input and start of the network",
            "Table 1's layers; neither the scaling of depth, nor padding, nor the weights' start",
            "depth about the body's own mean in units of 0.3 m, zero padding to full resolution; the small network "
            "starts as He et al. 2015, the paper's with torch's default",
            ("start",),
        ),
        Choice(
            "View of the network",
            "Table 1's sees 73 pixels of figures about 330 tall; not said why, or what another view would do",
            "the same share of a figure: 35 pixels at half scale. What the network sees for itself the CRF need not tell it "
            "(see What the network sees)",
        ),
        Choice(
            "Choice of settings",
            "no validation set is mentioned",
            "on images held out of the headline split's training images. Test images of the other splits and folds are among "
            "them: figures on the random split and on folds 1 to 4 of the facades are not free of the choice",
        ),
        Choice(
            "Runs",
            "one figure a method, no deviation",
            "the deviation over seeds where several were run, and an interval over test images for each comparison",
        ),
        Choice(
            "What the CNN is compared with",
            "the pre-trained network, without the further visits that the joint model gets",
            "that network, and the control: the same network after as many further visits with cross-entropy",
        ),
        Choice(
            "CRF-as-RNN",
            "[11] as published; iterations, kernels and how its filters were approximated are not given",
            "a dense Gaussian CRF over position and depth with unrolled mean field; `bench/paper/methods/crfrnn.py` states how "
            "it filters",
            ("crfrnn", "crf-as-rnn"),
        ),
        Choice(
            "Random forest",
            "the online forest of [35], its figure read off (\"about\")",
            "a batch forest on depth differences; `bench/paper/methods/forest.py` states its settings",
            ("forest",),
        ),
        Choice(
            "Data",
            "2000 and 500 synthetic depth images of [35], not public any more",
            "a substitute of the same classes, number and scale; whole clips held out for the headline, the paper's kind of "
            "random split beside it",
        ),
    ]  # fmt: skip


def lines(trials: Sequence[Trial]) -> list[str]:
    """The list as Markdown, with what the trials say of each entry."""
    found = []
    for choice in choices():
        mine = [trial for trial in trials if _belongs(trial, choice.words)]
        tried = f" Tried, per cent on validation images: {_tried(mine, trials)}." if mine else ""
        found.append(f"- **{choice.question}.** The paper: {choice.paper}. Ours: {choice.ours}.{tried}")
    return found


def _belongs(trial: Trial, words: Sequence[str]) -> bool:
    """Whether what a trial changes (what follows the last comma in its name) has a word that begins with one of these."""
    changed = trial.what.rpartition(", ")[2]
    if changed.startswith("edges "):
        return False  # of no question of the paper's: `report_edges` has them
    return any(re.search(rf"\b{re.escape(word)}", changed.lower()) for word in words)


def _tried(mine: Sequence[Trial], trials: Sequence[Trial]) -> str:
    """Each setting with its accuracy on validation images, and what it gains over the same without the change."""
    said = []
    for what, setting in dict.fromkeys((trial.what, trial.setting) for trial in mine):
        same = [trial for trial in mine if (trial.what, trial.setting) == (what, setting)]
        gains = [over for trial in same if (over := gain(trial, trials)) is not None]
        stated = ("preset", "network", "images", "pretrain", "epochs")
        kept = [(name, value) for name, value in setting if name in stated] or setting
        text = f"{what} ({', '.join(f'{name} {value}' for name, value in kept)}) {_mean([trial.accuracy for trial in same])}"
        base = what.rpartition(", ")[0]
        said.append(text + (f", {statistics.mean_and_deviation(gains)[0] * 100:+.2f} over {base}" if gains else ""))
    return "; ".join(said)


def gain(trial: Trial, trials: Sequence[Trial]) -> float | None:
    """Over the trial named by the part before the last comma, of the same seed and settings but for those in the name."""
    base, comma, changed = trial.what.rpartition(", ")
    named = {name for name, _ in trial.setting if name.replace("_", " ") in changed}
    # "network rate" does not name the network.
    named -= {name for name in named if any(other != name and other.startswith(name) for other in named)}
    mine = {name: value for name, value in trial.setting if name not in named}
    for other in trials:
        theirs = {name: value for name, value in other.setting if name in mine}
        if comma and (other.what, other.seed, theirs) == (base, trial.seed, mine):
            return trial.accuracy - other.accuracy
    return None


def _mean(values: Sequence[float]) -> str:
    return f"{100 * statistics.mean_and_deviation(values)[0]:.2f}"


def _rates(preset: Preset) -> str:
    kind = "Adam" if preset.momentum is None else f"SGD with momentum {preset.momentum:g} (tables without)"
    return (
        f"{kind}, pre-training from {preset.pretrain_rate:g}, then the network from {preset.network_rate:g} and the tables "
        f"from {preset.table_rate:g}"
    )


def _offsets(preset: Preset) -> str:
    found = preset.neighborhood
    return f"{len(found)} classes, {2 * len(found)} neighbours, reach {found.reach[0]} pixels"
