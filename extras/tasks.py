"""Comparators that are losses, or have parameters of their own: tasks of --ssl, which ssl_tasks.py looks up here.

    python stage1_ssl.py --ssl dann --select all            # also mcc
    python stage1_ssl.py --ssl paretoda --select all --mtl paretoda         # the whole of ParetoDA; cgdm likewise
    python stage1_ssl.py --ssl pointdan --select all --backbone pointdan

All see self-distillation's views, so that only L_ssl differs, and none is for segmentation. The labelled and the
unlabelled stream stand for the two domains, in stage 2, too, where the former has pseudo-labelled target clouds in it.
docs/comparators.md has their papers, and where they differ.
"""

import copy
import math

import torch
import torch.nn.functional as F
from torch import nn

import extras.contrast  # noqa: F401 - adds itself
import extras.implicit  # noqa: F401 - adds itself
from engine.base import UserError
from extras.backbones import EXACT, NODES, WIDTH, PointDANEncoder
from extras.surgery import sureness
from models import GLOBAL
from ssl_tasks import TASKS, NoTask


class Reversed(torch.autograd.Function):
    """Features as they are; their gradient times -task.strength, as that stands in the backward pass."""

    @staticmethod
    def forward(ctx, features, task):
        ctx.task = task
        return features.view_as(features)

    @staticmethod
    def backward(ctx, gradient):
        return -ctx.task.strength * gradient, None


def small_head(out):
    """One hidden layer on the global feature: (B, 1024) -> (B, out)."""
    return nn.Sequential(nn.Linear(GLOBAL, 256), nn.ReLU(), nn.Linear(256, out))


def another(classifier):
    """One of the same form with fresh weights."""
    other = copy.deepcopy(classifier)
    for layer in other.modules():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    return other


# ---------------------------------------------------------------- DANN (Ganin et al., JMLR 2016)
class DANN(NoTask):
    """A discriminator tells the domains apart by the global feature; its reversed gradient makes the encoder hide them.

    The discriminator learns at full strength from the first step, the encoder at 2 / (1 + exp(-10 t/T)) - 1.
    """

    reuses, bodies = True, False

    def __init__(self, model, n, direction):
        super().__init__(model, n, direction)
        self.discriminator, self.strength = small_head(1), 0.0

    def weight(self, progress):  # the step asks between the forward and the backward pass
        self.strength = 2 / (1 + math.exp(-10 * progress)) - 1
        return 1.0

    def forward(self, model, view, features, generator):
        f = (features or self.encode(model, view.x))[1]  # (B, 1024)
        labelled = self.discriminator(Reversed.apply(f, self))[:, 0]  # log-odds
        return F.softplus(-labelled if view.y is not None else labelled)


# ---------------------------------------------------------------- MCC (Jin et al., ECCV 2020)
MCC_TEMPERATURE = 2.5


def class_confusion(logits):
    """Share of a class's predictions that goes to others, mean over classes: (B, C) -> scalar, 0 if all are sure.

    A cloud weighs 1 + exp(-H), H the entropy of its softened prediction.
    """
    p = (logits / MCC_TEMPERATURE).softmax(-1)
    together = (p * sureness(p.detach())[:, None]).T @ p  # (C, C)
    together = together / together.sum(1, keepdim=True).clamp_min(torch.finfo(p.dtype).tiny)  # 0: predicted nowhere
    return (together.sum() - together.trace()) / len(together)


class MCC(NoTask):
    """Class confusion of a batch's unlabelled predictions, the same for each of its clouds; 0 for the labelled ones."""

    bodies = False

    def forward(self, model, view, features, generator):
        if view.y is not None:
            return view.x.new_zeros(len(view.x))
        return class_confusion(model.predict(model.encoder(view.x))).expand(len(view.x))


# ---------------------------------------------------------------- ParetoDA (Lv et al., NeurIPS 2021)
class ParetoDA(DANN):
    """DANN, and a discriminator for each class, which the features do not feel and by which predictions are refined."""

    def __init__(self, model, n, direction):
        super().__init__(model, n, direction)
        self.by_class = small_head(model.classifier[-1].out_features)

    def refine(self, p, f):
        """p(class | cloud, target) of predictions and global features, by Bayes: (B, C), (B, 1024) -> (B, C)."""
        joint = p * torch.sigmoid(-self.by_class(f)).detach()
        return joint / joint.sum(-1, keepdim=True)

    def forward(self, model, view, features, generator):
        features = features or self.encode(model, view.x)
        domain, f = super().forward(model, view, features, generator), features[1].detach()
        labelled = self.by_class(f)  # (B, C), log-odds
        if view.y is not None:
            return domain + F.softplus(-labelled.gather(1, view.y[:, None]))[:, 0]
        with torch.no_grad():
            p = self.refine(model.predict(features).softmax(-1), f)
        return domain + (p * F.softplus(labelled)).sum(-1)


# ---------------------------------------------------------------- CGDM (Du et al., CVPR 2021)
CGDM_ENTROPY, CGDM_PSEUDO, CGDM_KEPT = 0.01, 0.01, 0.9  # the last: of the clusters from step to step


class CGDM(NoTask):
    """A second classifier; on the unlabelled clouds both part where they can, and the encoder brings them together.

    Also their entropy, how evenly they use the classes, and pseudo-labels from clusters, one a class, of the features.
    """

    reuses, bodies, strength = True, False, 1.0

    def __init__(self, model, n, direction):
        super().__init__(model, n, direction)
        self.second = another(model.classifier)
        self.register_buffer("clusters", torch.zeros(self.second[-1].out_features, GLOBAL))
        self.label = None

    @torch.no_grad()
    def clustered(self, f, p):
        """The nearest cluster of each cloud by the angle, once f (B, 1024) and p (B, C) have moved them: (B,)."""
        f = F.normalize(f)
        self.clusters.mul_(CGDM_KEPT).add_(p.T @ f)
        return (f @ F.normalize(self.clusters).T).argmax(1)

    def forward(self, model, view, features, generator):
        if view.y is not None:
            return F.cross_entropy(self.second(*(features or self.encode(model, view.x))), view.y, reduction="none")
        points, f = model.encoder(view.x)
        logits = model.predict((points, f)), self.second(points, f)
        self.label = self.clustered(f, sum(logits).softmax(-1))
        loss = sum(self.settled(each) for each in logits)
        turned = points, Reversed.apply(f, self)
        first, second = model.predict(turned).softmax(-1), self.second(*turned).softmax(-1)
        return loss - (first - second).abs().mean(-1)

    def settled(self, logits):
        """Entropy of each prediction, minus that of their mean, and cross-entropy with the clusters' labels: (B,)."""
        p = logits.softmax(-1)
        mean = p.mean(0)
        spread = torch.special.entr(p).sum(-1) - torch.special.entr(mean).sum()
        pseudo = len(p) * sureness(p.detach()) * F.cross_entropy(logits, self.label, reduction="none")
        return CGDM_ENTROPY * spread + CGDM_PSEUDO * pseudo


# ---------------------------------------------------------------- PointDAN (Qin et al., NeurIPS 2019)
KERNELS = 0.01, 0.1, 1.0, 10.0, 100.0  # sigma of each


class Attention(nn.Module):
    """Which of the nodes' numbers count, a domain's own: x * sigmoid(W2 ReLU(W1 x)) + x, and its norm, (B, D)."""

    def __init__(self, d):
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(d, d // 8), nn.ReLU(), nn.Linear(d // 8, d), nn.Sigmoid())
        self.bn = nn.BatchNorm1d(d)

    def forward(self, x):
        return self.bn(x * self.gate(x) + x)


def squared_mmd(x, y):
    """Squared maximum mean discrepancy by the sum of five Gaussian kernels: (n, D), (m, D) -> scalar, 0 where equal."""
    squared = torch.cdist(z := torch.cat([x, y]), z, compute_mode=EXACT).square()
    K = sum(torch.exp(-squared / (2 * sigma**2)) for sigma in KERNELS)
    n = len(x)
    return K[:n, :n].mean() + K[n:, n:].mean() - 2 * K[:n, n:].mean()


class PointDAN(NoTask):
    """A second classifier learns the labels, too; on the unlabelled clouds both part, which the encoder undoes.

    The encoder undoes it with sin(pi/2 t/T) of the gradient. Also the discrepancy of both streams' nodes, which is one
    number a batch: the labelled stream's are kept for the unlabelled one, which is called next.
    """

    bodies = False

    def __init__(self, model, n, direction):
        super().__init__(model, n, direction)
        if not isinstance(model.encoder, PointDANEncoder):
            raise UserError("--ssl pointdan: needs its nodes; give --backbone pointdan, too")
        d = WIDTH * min(NODES, n)
        self.of_labelled, self.of_unlabelled = Attention(d), Attention(d)
        self.second, self.strength, self.kept = another(model.classifier), 0.0, None

    def weight(self, progress):  # the step asks between the forward and the backward pass
        self.strength = math.sin(progress * math.pi / 2)
        return 1.0

    def forward(self, model, view, features, generator):
        points, f = self.encode(model, view.x)
        nodes = model.encoder.up_to_nodes(view.x)[1].flatten(1)  # a pass of their own, as in the authors' code
        if view.y is not None:
            self.kept = self.of_labelled(nodes)
            return F.cross_entropy(self.second(points, f), view.y, reduction="none")
        turned = points, Reversed.apply(f, self)
        first, second = model.predict(turned).softmax(-1), self.second(*turned).softmax(-1)
        apart = (first - second).abs().mean(-1)  # (B,)
        kept, self.kept = self.kept, None
        return squared_mmd(kept, self.of_unlabelled(nodes)) - apart if kept is not None else -apart


COMPARATORS = {"dann": DANN, "mcc": MCC, "paretoda": ParetoDA, "cgdm": CGDM}
TASKS |= COMPARATORS | {"pointdan": PointDAN}  # which has a backbone of its own
