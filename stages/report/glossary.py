"""What the methods are, in plain words, so that the report is read without the docs."""

from __future__ import annotations

EXPERT = "one frozen model alone: a head on its embeddings, trained like the gate's heads"

METHODS: dict[str, tuple[str, str]] = {
    "gate": ("gate", "the default: every expert has a head, and a gate weighs their answers anew for each record"),
    "enecg": ("EnECG preset", "the published EnECG heads and gate (lead II), on the experts' own outputs"),
    "ppa": (
        "layer mean (PPA)",
        "the default itself (heads, low-rank adapters, gate over experts) on the plain mean of each expert's layers",
    ),
    "pma": (
        "layer gate (PMA)",
        "the default itself (heads, low-rank adapters, gate over experts) on a mean of each expert's layers that a "
        "small network weighs anew for each record",
    ),
    "attention": (
        "attention over seconds",
        "the default itself (heads, low-rank adapters, gate over experts) on each expert's seconds of the record, "
        "which a learned query weighs anew for each record",
    ),
    "full_rank": (
        "full-rank heads",
        "per expert and task a network with one hidden layer of 64 units, trained in full; experts averaged alike",
    ),
    "probe_head": (
        "ECG-Soup's probe head",
        "per expert and task the published network with one hidden layer of 256 units and batch normalisation on the "
        "plain mean of the expert's layers; experts averaged alike",
    ),
    "concat": ("concatenation", "all experts' embeddings side by side, one logistic or ridge regression"),
    "knn": (
        "nearest neighbours",
        "the mean label of the nearest training records by cosine over all experts' standardised embeddings; nothing "
        "is trained, and the number of neighbours is chosen on the training records",
    ),
    "stacking": ("stacking", "a logistic or ridge regression on the experts' own predictions for unseen patients"),
    "mean": ("uniform mean", "the plain average of the experts' answers, every expert counted alike"),
    "trivial": (
        "trivial baseline",
        "no ECG at all: the training set's mean, or its class shares (over pooled folds its AUROC can fall below 0.5)",
    ),
}

TERMS: tuple[tuple[str, str], ...] = (
    ("95 % interval", "Where the value would lie had other patients come: patients are drawn anew with replacement "
     "(all ECGs of a patient together) and the metric is recomputed; 2.5 % of the results lie on either side."),
    ("better, worse, no clear difference", "The difference to the best single expert, taken on the same redrawn "
     "patients. It counts as better or worse only when its 95 % interval leaves zero out. The best single expert is "
     "chosen on these very test records, which favours it."),
    ("threshold", "The probability from which on a class counts as present. PPV and NPV: how often an alarm, or its "
     "absence, is right; LR+ and LR\N{MINUS SIGN}: how much either changes the odds of the class."),
    ("net benefit", "What acting from a threshold probability on is worth, in true alarms per record, when a false "
     "alarm weighs as the threshold says: at 20 % four false alarms cost what one true alarm brings."),
    ("gate weight", "How much an expert's answer counts for one record; a record's weights add up to one."),
    ("calibration", "Of the records given 70 %, seven in ten should be positive: dots on the diagonal. Dots below it "
     "mean that the model is too sure."),
    ("undefined", "A dash: the test records do not define the value, for instance an AUROC without any positive."),
)  # fmt: skip


def method_title(method: str, described: dict[str, str] | None = None) -> str:
    """Return a method's name for a reader."""
    if described and "title" in described:
        return described["title"]
    return METHODS[method][0] if method in METHODS else method.removeprefix("expert:")


def method_meaning(method: str, described: dict[str, str] | None = None) -> str:
    """Return what a method is, in a clause."""
    if described and "description" in described:
        return described["description"]
    return METHODS[method][1] if method in METHODS else EXPERT if method.startswith("expert:") else ""
