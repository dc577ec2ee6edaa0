"""What the lecture says: its tables, its numbers and its slips, each once.

EE807 at KAIST, lecture 11, "Transfer Learning", slides by Jongjin Park and Yunhun Jang; lines are
those of its text. A table is a dict by set-up (a data set, a pair of tasks) of dicts by method,
named as our experiments name it; where the lecture has no number, nor has the dict.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

Table = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Slip:
    """What the lecture says at some lines, and what is right, by whose word."""

    id: str
    lines: str
    says: str
    right: str
    source: str


def _table(text: str) -> Table:
    """Columns by "|"; the first line names the set-ups, the first column the methods."""
    rows = [[part.strip() for part in line.split("|")] for line in text.strip().splitlines()]
    return {
        column: {row[0]: float(row[i]) for row in rows[1:] if row[i] != "–"}
        for i, column in [*enumerate(rows[0])][1:]
    }


def gaps(table: Table, one: str, *others: str) -> list[float]:
    """One method minus each of the others, in every set-up that has both."""
    pairs = [(row, other) for other in others for row in table.values() if {one, other} <= {*row}]
    return [round(row[one] - row[other], 6) for row, other in pairs]


def tally(differences: Sequence[float]) -> str:
    """How many are above zero, of how many; and how many are zero, if any: "11 of 28, 1 tie"."""
    ties = sum(value == 0 for value in differences)
    said = f"{sum(value > 0 for value in differences)} of {len(differences)}"
    return f"{said}, {ties} {'tie' if ties == 1 else 'ties'}" if ties else said


# Growing a brain, Wang 2017, lines 184–196: accuracy in %; of each other kind the best
GROWN = _table("""
                    | MIT-67 | 102 Flowers | CUB200-2011 | Stanford-40
    fine-tuning     | 61.2   | 75.3        | 62.9        | 57.7
    task-customised | 68.2   | 91.3        | 67.9        | 66.4
    multi-task      | 64.5   | –           | 57.7        | –
    WA-CNN          | 66.3   | 92.8        | 69.0        | 67.5
""")
# The same, lines 209–215: accuracy in % on SUN-397, by what is fine-tuned
SUN397 = _table("""
                  | New   | FC7-new | FC6-new | All
    fine-tuning   | 53.63 | 54.75   | 54.29   | 55.93
    DA, rand      | 53.82 | 56.47   | 56.25   | 57.21
    DA, scaled    | 53.51 | 56.15   | 57.14   | 58.07
    WA, rand      | 53.78 | 54.66   | 49.72   | 51.34
    WA, copy+rand | 53.62 | 54.35   | 53.70   | 55.31
    WA, scaled    | 56.81 | 56.99   | 57.84   | 58.95
""")
# Distillation, Hinton 2015, lines 285–292: images for training, for testing; error in %
MNIST_TRAIN, MNIST_TEST = 60_000, 10_000
MNIST = {"teacher": 0.67, "alone": 1.46, "T=20": 0.74}
# Attention transfer, Zagoruyko 2017, lines 357–361: error in % on CIFAR-10, student ← teacher
CIFAR10 = _table("""
            | NIN ← NIN-wide | WRN-16-1 ← 16-2 | WRN-16-1 ← 40-1 | WRN-16-2 ← 40-2
    alone   | 9.38           | 8.77            | 8.77            | 6.31
    AT      | 8.93           | 7.93            | 8.25            | 5.85
    F-ActT  | 9.05           | 8.51            | 8.62            | 6.24
    KD      | 8.55           | 7.41            | 8.39            | 6.08
    AT+KD   | 8.33           | 7.51            | 8.01            | 5.71
    teacher | 7.28           | 6.31            | 6.58            | 5.23
""")
# The same, lines 365–369: error in % from ImageNet to birds and to scenes, ResNet-18 ← ResNet-34
CUB_AND_SCENES = _table("""
            | CUB  | Scenes
    alone   | 28.5 | 28.2
    KD      | 27   | 28.1
    AT      | 27   | 27.1
    teacher | 26.5 | 26
""")
# Jacobians, Srinivas 2018, lines 382–388: accuracy in % on CIFAR-100, by images a class
JACOBIANS = _table("""
                                 | 1     | 5     | 10    | 50    | 100   | 500
    CE                           | 5.69  | 13.9  | 20.03 | 37.6  | 44.92 | 54.28
    CE + activations             | 12.13 | 26.97 | 33.92 | 46.47 | 50.92 | 56.65
    CE + Jacobians               | 6.78  | 23.94 | 32.03 | 45.71 | 51.47 | 53.44
    CE + activations + Jacobians | 13.78 | 33.39 | 39.55 | 49.49 | 52.43 | 54.57
    activations                  | 10.73 | 28.56 | 33.6  | 45.73 | 50.15 | 56.59
    activations + Jacobians      | 13.09 | 33.31 | 38.16 | 47.79 | 50.06 | 51.33
""")
# The same, lines 395–401: accuracy in % from ImageNet to MIT Scenes, by images a class
SCENES = _table("""
                                             | 5     | 10    | 25    | 50    | full
    CE                                       | 11.64 | 20.30 | 35.19 | 46.38 | 59.33
    CE, pre-trained                          | 25.93 | 43.81 | 57.65 | 64.18 | 71.42
    CE + activations                         | 17.08 | 27.13 | 45.08 | 55.22 | 65.22
    CE + activations + Jacobians             | 17.88 | 28.25 | 45.26 | 56.49 | 66.04
    CE + activations + attention             | 16.53 | 28.35 | 46.01 | 57.80 | 67.24
    CE + activations + attention + Jacobians | 18.02 | 29.25 | 47.31 | 58.35 | 67.31
""")
# Selective joint fine-tuning, Ge 2017, lines 455–480, its own rows: mean accuracy in %
SELECTIVE = _table("""
                                   | Dogs | Flowers
    from scratch                   | 53.8 | 58.2
    selective from scratch         | 83.4 | 80.6
    fine-tuning                    | 80.4 | 92.3
    all sources                    | 85.6 | 93.4
    random sources                 | 85.5 | 93.2
    selective, not iterated        | 88.3 | 94.2
    selective, Gabor               | 87.5 | 93.8
    selective                      | 90.2 | 94.7
    selective, fusion              | 90.3 | 95.8
    selective, with validation set | –    | 97.0
""")
# Uncertainty weighting, Kendall 2018, lines 530–540: IoU in %, mean errors
TASK_WEIGHTS = _table("""
                            | segmentation | instance | depth
    each alone              | 59.4         | 4.61     | 0.640
    unweighted              | 50.1         | 3.79     | 0.592
    best weights of a grid  | 62.8         | 3.61     | 0.549
    segmentation + instance | 61.0         | 3.42     | –
    segmentation + depth    | 62.7         | –        | 0.533
    instance + depth        | –            | 3.54     | 0.539
    three tasks             | 63.4         | 3.50     | 0.522
""")
# Learning without forgetting, Li and Hoiem 2016, lines 623–642: LwF's accuracy in %, and points
# better than LwF; I is ImageNet, P is Places365. (a) with AlexNet, on the old and on the new task
LWF_OLD = _table("""
                       | I→VOC | I→CUB | I→Scenes | P→VOC | P→CUB | P→Scenes | I→MNIST
    accuracy of LwF    | 56.2  | 54.7  | 55.9     | 50.6  | 47.9  | 50.9     | 49.8
    LwF                | 0     | 0     | 0        | 0     | 0     | 0        | 0
    fine-tuning        | -0.9  | -3.8  | -2.0     | -2.2  | -4.6  | -2.1     | -2.8
    LFL                | 0.0   | -1.9  | -0.3     | 0.2   | 0.7   | -0.2     | -2.9
    fine-tuning FC     | 0.5   | 0.2   | 0.6      | 0.5   | 1.8   | 0.3      | 7.0
    feature extraction | 0.8   | 2.3   | 1.2      | 1.1   | 3.8   | 0.8      | 7.3
    joint training     | 0.7   | 0.6   | 0.5      | 0.7   | 2.3   | 0.3      | 7.2
""")
LWF_NEW = _table("""
                       | I→VOC | I→CUB | I→Scenes | P→VOC | P→CUB | P→Scenes | I→MNIST
    accuracy of LwF    | 76.1  | 57.7  | 64.5     | 70.2  | 34.8  | 75.2     | 99.3
    LwF                | 0     | 0     | 0        | 0     | 0     | 0        | 0
    fine-tuning        | -0.3  | -0.7  | -0.8     | 0.1   | 1.0   | -1.7     | 0.0
    LFL                | -0.4  | -2.6  | -0.9     | -0.7  | -1.7  | -0.5     | -0.6
    fine-tuning FC     | -0.7  | -3.9  | -2.1     | -1.3  | -4.9  | -1.1     | -0.2
    feature extraction | -0.5  | -5.2  | -3.3     | -1.4  | -12.3 | -1.7     | -0.8
    joint training     | -0.2  | -1.1  | -0.6     | 0.0   | 1.5   | -0.3     | 0.0
""")
# (b) with AlexNet on the test set, (c) with VGG; on the old and on the new task
LWF_TEST_AND_VGG = _table("""
                       | P→VOC old | P→VOC new | I→CUB old | I→CUB new | I→Scenes old | I→Scenes new
    accuracy of LwF    | 50.6      | 73.7      | 60.6      | 72.5      | 66.8         | 74.9
    fine-tuning        | -2.1      | 0.1       | -9.9      | 0.6       | -4.1         | -0.3
    LFL                | –         | –         | 0.3       | -2.8      | 0.0          | -2.1
    fine-tuning FC     | –         | –         | 3.2       | -6.7      | 1.4          | -2.4
    feature extraction | 1.3       | -2.3      | 8.2       | -8.6      | 1.9          | -5.1
    joint training     | 0.9       | -0.1      | 8.0       | 2.5       | 4.1          | 1.5
""")
LWF_BOTH = {  # the mean of both tasks
    pair: {way: (old + LWF_NEW[pair][way]) / 2 for way, old in row.items()}
    for pair, row in LWF_OLD.items()
}
# Where a slide says otherwise than its source or its own numbers: id, lines, says, right, source
_SLIPS = """
E1 | 280–281 | it is potentially advantageous to attend to very negative logits
   | to attend less to them, at lower T: they may be noise; which wins is open | Hinton 2015, 2.1
E2 | 352, 363 | AT works better than KD; AT+KD is best in most cases
   | AT in 2 pairs of 4, AT+KD in 3 of 4 | its own table, CIFAR10
E3 | 342 | ‖·‖_p without a square, and letters of its own | no slip: the paper has no square either,
     but the authors' code takes the squared mean | Zagoruyko 2017, equation 2, and its code
E4 | 375 | matching Jacobians is distilling with noise | up to a Hessian term of the same order
   | measured; Srinivas 2018, proposition 1
E5 | 521 | approximate as σ₂ → 1 | it drops a factor 1/σ₂, whence log σ₂ | Kendall 2018, equation 10
E6 | 606 | y' on the left | ŷ': one hat is missing; the loss has it | Li and Hoiem 2016, section 3
E7 | 592 | LwF trains faster than joint training | no slip, but to be measured: the
     authors' code does not share the pass; it could | README of the authors' code
E8 | 634 | feature extraction is like fine-tune FC, perhaps with more last layers | the whole trunk
     is frozen, without dropout, below a new head of two layers | Li and Hoiem 2016, and its code
E9 | 472 | Flowers without the source: 92.3 | 90.2 | README of the authors' code
E10 | 179 | outperforms most task-customised CNNs | on 3 sets of 4 | its own table, GROWN
E11 | 380, 392 | Jacobians help with small data, and all transfer | without CE not from 100 images a
     class on, with CE not with all 500; for all of Scenes by 0.07 | its own JACOBIANS and SCENES
E12 | 503, 515 | beside ‖y − f‖² stands log σ | D·log σ, for D numbers | the normal density
"""
_EACH = [" ".join(slip.split()).split(" | ") for slip in re.split(r"\n(?=E)", _SLIPS.strip())]
SLIPS = {id: Slip(id, *more) for id, *more in _EACH}
