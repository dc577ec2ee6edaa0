"""Does a student that looks where its teacher looks learn more? The lecture's table of attention transfer, in small.

A thin residual network learns clothes from 2,000 pictures, with the help of a teacher of the same depth and twice the width, or of the same
width and more depth. The teacher saw the same pictures, shifted and mirrored; what it says and where it looks is recorded once.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tlcourse.claims import Claim, Decision, Given, count, greater
from tlcourse.data import Images, load, random_flip, random_shift
from tlcourse.experiments.base import Experiment, Row, Scale
from tlcourse.methods.attention import activation_loss, attention_map, attention_transfer_loss, connectors
from tlcourse.methods.distillation import distillation_loss
from tlcourse.metrics import errors
from tlcourse.models import WideResNet
from tlcourse.training import Batch, Objective, cross_entropy, fit, predict, record, seed_everything

GROUPS = ("group1", "group2", "group3")
STUDENT = (10, 1)
TEACHERS = {"wider": (10, 2), "deeper": (28, 1)}  # depth and width
# For each arm four settings: learning rate, and what is its own. Where to look was found in a trial with a seed of its own.
BETA = [{"beta": 3.0}, {"beta": 10.0}]
SOFT = [{"T": 4.0, "alpha": 0.9}, {"T": 20.0, "alpha": 0.9}]
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {}
MAPPINGS: dict[str, dict[str, Any]] = {
    "sum, p = 1": {"p": 1},
    "sum, p = 2": {"p": 2},
    "sum, p = 4": {"p": 4},
    "max, p = 2": {"p": 2, "over": "max"},
}
LAYERS = {"first group": GROUPS[:1], "second group": GROUPS[1:2], "third group": GROUPS[2:], "all groups": GROUPS}
