"""Contrast as a self-supervised task, which extras/tasks.py pulls in: SimCLR (Chen et al., ICML 2020) on two views.

    python stage1_ssl.py --ssl contrast

docs/more-backbones.md says what a masked sample still contributes.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from models import GLOBAL
from ssl_tasks import TASKS, NoTask

TEMPERATURE, WIDTH = 0.1, 128  # SimCLR's on ImageNet


def info_nce(one, two, temperature=TEMPERATURE):
    """How hard it is to tell each cloud's other view from all views of the other clouds: (B, C), (B, C) -> (B,).

    Mean over a cloud's two views of the cross-entropy among cosines / temperature, one positive and 2B - 2 negatives.
    """
    z = F.normalize(torch.cat([one, two]), dim=1)  # (2B, C)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    logits = (z @ z.T / temperature).masked_fill(itself, -torch.inf)
    other = torch.arange(len(z), device=z.device).roll(len(one))  # of view i the number of the same cloud's other one
    return F.cross_entropy(logits, other, reduction="none").view(2, -1).mean(0)


class Contrast(NoTask):
    """Two strong views of a cloud are to agree, behind a head of two layers, more than views of two clouds do.

    The clouds of a batch's own domain alone are compared: the task is called once for each.
    """

    reuses, bodies = True, False

    def __init__(self, model, n, direction):
        super().__init__(model, n, direction)
        self.head = nn.Sequential(nn.Linear(GLOBAL, GLOBAL), nn.ReLU(), nn.Linear(GLOBAL, WIDTH))

    def views(self, points, labels, source, generator):
        one, two = (super(Contrast, self).views(points, labels, source, generator) for _ in range(2))
        return replace(one, weak=two.x)  # as strong, in the place where a second view travels

    def forward(self, model, view, features, generator):
        one, two = features or self.encode(model, view.x), self.encode(model, view.weak)
        return info_nce(self.head(one[1]), self.head(two[1]))


TASKS["contrast"] = Contrast
