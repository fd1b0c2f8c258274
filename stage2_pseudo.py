"""Stage 2 of SM-DSB (Sec. III-C): pseudo-labels on the target, selection among the labelled samples of both domains.

    python stage2_pseudo.py --init runs/NAME/stage1.pt                             # fine-tune, all else as in stage 1
    python stage2_pseudo.py --init runs/NAME/stage1.pt --out runs/other --scratch  # fresh weights, as Self-dist does

The labelled batch is drawn from source and pseudo-labelled target together, with one threshold for both; the scores of
pseudo-labelled samples are slightly perturbed first. A GCN on the target's features makes pseudo-labels confident
little by little (Self-dist-GCN). The step is stage 1's. No target label is opened. Run the same command to resume.
"""

import engine  # noqa: F401, I001 - first: how torch's threads wait
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import data
import models
import ssl_tasks
import stage1_ssl
from engine.base import UserError, cli, file_hash, generator, seed_of
from engine.flags import Parser, add_flags, number
from engine.metrics import describe
from engine.run import Run, load_checkpoint
from stage1_ssl import CHOICES, evaluator, joining, load, optimisation, settle, step, unlabelled_mask

# ---------------------------------------------------------------- settings: what is not here comes from the checkpoint
SETTINGS = dict(
    perturb=[0.1, 0.05],  # mean (the paper's) and std (ours) of what is added to the scores of pseudo-labelled samples
    gcn_iters=1000,  # a refinement; 0 = off
    scratch=False,  # the paper says "fine-tune"
    filter_stream=False,  # as in Alg. 1; the text of Sec. III can be read as masking the unlabelled stream, too
)
UNSURE = 0.2  # weight of a pseudo-label that is not yet confident
NEIGHBOURS, CORRELATION, HIDDEN_P = 10, 0.95, 0.2  # the graph of Self-dist-GCN, and how many p are hidden


# ---------------------------------------------------------------- pseudo-labels
class PseudoLabels:
    """Of each target training cloud label and confidence, (n,) or (n, N) of parts; confident (n,), masked (n + 1,)."""

    def __init__(self, p):
        self.confidence, self.label = p.max(-1)
        self.confident = torch.zeros(len(p), dtype=torch.bool, device=p.device)  # none before the first refinement
        # masked when a pseudo-label was last scored; one more entry stands for all of the source
        self.masked = torch.zeros(len(p) + 1, dtype=torch.bool, device=p.device)

    def state_dict(self):
        return vars(self).copy()

    def load_state_dict(self, state):
        vars(self).update(state)

    def weight(self, i):
        return torch.where(self.confident[i], 1.0, UNSURE)


# ---------------------------------------------------------------- GCN refinement (Cardace et al., WACV 2023)
def adjacency(f):
    """D^-1/2 A D^-1/2 of messages from each node to the <= 10 it correlates most with, (n, 1024) -> sparse (n, n).

    Row j sums over the nodes i that chose j, and D is the in-degree: PyG's rule for the pairs (i, j).
    """
    z = F.normalize(f - f.mean(1, keepdim=True))  # the cosine of centred rows is Pearson's correlation
    senders, receivers = [], []
    for i in torch.arange(len(z), device=z.device).split(1024):  # n x n never exists whole
        r = z[i] @ z.T
        r.scatter_(1, i[:, None], 2.0)  # a node is its own neighbour, whatever the rounding
        value, j = r.topk(min(NEIGHBOURS, len(z)))
        keep = value > CORRELATION
        senders.append(i[:, None].expand_as(j)[keep])
        receivers.append(j[keep])
    index = torch.stack([torch.cat(receivers), torch.cat(senders)])  # (2, edges)
    d = torch.bincount(index[0], minlength=len(z)).float().rsqrt()  # at least 1: a node is its own neighbour
    weight = d[index[0]] * d[index[1]]
    return torch.sparse_coo_tensor(index, weight, (len(z), len(z)), check_invariants=False).coalesce()


class GCN(nn.Module):
    """Three graph convolutions on f + Linear(p): (n, 1024), (n, C), sparse (n, n) -> logits (n, C)."""

    def __init__(self, width, classes):
        super().__init__()
        self.embed = nn.Linear(classes, width)
        self.layers = nn.ModuleList([nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, classes)])
        for layer in self.layers:  # as PyG starts them
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, f, p, A):
        h = f + self.embed(p)
        for i, layer in enumerate(self.layers):
            h = F.dropout(F.relu(h), 0.5, self.training) if i else h
            h = torch.sparse.mm(A, F.linear(h, layer.weight)) + layer.bias  # the bias is not propagated
        return h


def refine(args, model, clouds, pseudo, done):
    """Make the floor(n_c t/T) surest clouds of each class confident, with the GCN's label -> how many changed."""
    logits, f = describe(model, clouds)  # un-augmented, in eval mode
    p = logits.softmax(-1)
    A, g = adjacency(f), generator(f.device, args.seed, "gcn", done)
    torch.manual_seed(seed_of(args.seed, "gcn weights", done))
    gcn = GCN(f.shape[1], p.shape[1]).to(f.device)
    optimizer = torch.optim.Adam(gcn.parameters(), lr=1e-3, weight_decay=5e-4, fused=True)
    for _ in range(args.gcn_iters):
        shown = torch.rand(len(p), 1, generator=g, device=p.device) >= HIDDEN_P
        optimizer.zero_grad()
        F.cross_entropy(gcn(f, p * shown, A), p.argmax(-1)).backward()
        optimizer.step()
    with torch.no_grad():
        confidence, label = gcn.eval()(f, p, A).double().softmax(-1).max(-1)  # float32 ties near 1
    before = pseudo.label.clone()
    shuffled = torch.randperm(len(label), generator=g, device=f.device)  # the files' order may be the classes'
    for c in label.unique():  # a class nobody is given is skipped
        members = shuffled[label[shuffled] == c]
        surest = members[confidence[members].argsort(descending=True, stable=True)]
        chosen = surest[: len(surest) * done // args.steps]
        pseudo.label[chosen], pseudo.confident[chosen] = c, True
        pseudo.confidence[chosen] = confidence[chosen].float()
    return int((pseudo.label != before).sum())


# ---------------------------------------------------------------- the loop
def views(t, args, task, src, tgt, pseudo):
    """Step t's two Views, the generator that goes on, w_y (B,) of the labelled one, and who is in them.

    Half a batch is drawn from the union of source and pseudo-labelled target, in the source's view, source first;
    half a batch from the unlabelled target. Who: the index of a sample's target cloud (B,), -1 for the source.
    """
    g, half = generator(args.device, args.seed, "stage 2", t), args.batch_size // 2
    i = data.stream(len(src.train) + len(tgt.train), half, t, args.seed, "union")  # the host knows how many of each
    i_s, i_t = (k.to(args.device) for k in (i[i < len(src.train)], i[i >= len(src.train)] - len(src.train)))
    labelled = []  # one a domain: their clouds may differ in size
    if len(i_s):
        labelled.append(task.views(src.train[i_s], src.train_labels[i_s], True, g))
    if len(i_t):
        labelled.append(task.views(tgt.train[i_t], pseudo.label[i_t], True, g))
    w_y = torch.cat([torch.ones(len(i_s), device=i_s.device), pseudo.weight(i_t)])  # (B,) of Sec. III-C
    i_u = data.stream(len(tgt.train), half, t, args.seed, "unlabelled").to(args.device)
    u = task.views(tgt.train[i_u], None, False, g)
    return ssl_tasks.cat(labelled), u, g, w_y, torch.cat([torch.full_like(i_s, -1), i_t]), i_u


def perturbation(t, args, is_pseudo):
    """Sec. III-C: pseudo-labels distort the score, so theirs are shifted before the pooled threshold, (B,) -> (B,)."""
    g = generator(is_pseudo.device, args.seed, "perturb", t)
    noise = torch.randn(is_pseudo.shape, generator=g, device=is_pseudo.device)
    return is_pseudo * (args.perturb[0] + args.perturb[1] * noise)


def train(args, run, src, tgt, start, observe=None):
    """Stage 2 from a checkpoint of stage 1; writes RUN/stage2.pt. observe(t, model, task, pseudo) looks on first."""
    torch.manual_seed(seed_of(args.seed, "weights 2"))
    model = models.build(args.backbone, len(src.classes)).to(args.device)
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    clouds = data.evaluation_subset(tgt.train, args.points)  # un-augmented, for labels and the GCN
    model.load_state_dict(start["student"])  # the best on source validation
    pseudo = PseudoLabels(describe(model, clouds)[0].softmax(-1))
    if pseudo.label.ndim == 2:
        tgt = replace(tgt, train=clouds)  # labels of points: stage 2 sees the points that have one
    if args.scratch:
        model.load_state_dict(fresh)
    # a teacher restarts from this student; that of stage 1 is dropped
    task = ssl_tasks.build(args.ssl, model, args.points, data.direction(args.task)).to(args.device)
    if args.ssl == start["config"]["args"]["ssl"] and not args.scratch:
        task.load_state_dict(start["task"])
    optimizer, schedule = optimisation(args, [*model.parameters(), *task.parameters()])
    parts = {"student": model, "task": task, "optimizer": optimizer, "schedule": schedule, "pseudo": pseudo}
    if task.teacher:
        parts["teacher"] = task.teacher.model
    descend = joining(args.mtl)

    rounds = {j * args.steps // 20 for j in range(1, 20)} - {0} if args.gcn_iters else set()
    for t in run.loop(parts, evaluator(args, run, model, task, src, tgt, pseudo)):
        if observe:
            observe(t, model, task, pseudo)
        s, u, g, w_y, who, i_u = views(t, args, task, src, tgt, pseudo)
        is_pseudo = who >= 0
        shift = perturbation(t, args, is_pseudo)
        lam_t = ~pseudo.masked[i_u] if args.filter_stream else unlabelled_mask(t, args, u)
        torch.manual_seed(seed_of(args.seed, "dropout 2", t))
        optimizer.zero_grad()
        row, lam_s = step(t, args, model, task, s, u, g, w_y, shift, lam_t, descend)
        pseudo.masked[who] = ~lam_s
        row |= {"pseudo": is_pseudo.sum(), "kept_pseudo": (lam_s & is_pseudo).sum()}
        optimizer.step()
        schedule.step()
        task.after_step(model, t)
        if t + 1 in rounds:
            row["relabelled"] = refine(args, model, clouds, pseudo, t + 1)
        run.log(t, row)
    run.finish(model)


# ---------------------------------------------------------------- command line
FIXED = ("task", "backbone", "up", "target_up", "unit_sphere")  # another one is refused
INHERITED = [key for key in stage1_ssl.SETTINGS if key not in (*FIXED, "out", "device")]


def inherit(args, start):
    """Fill in from a checkpoint of stage 1 what was not given; UserError where it cannot be stage 2 of it."""
    first = start["config"]["args"]
    way = data.direction(first["task"])
    if "last_student" not in start:
        raise UserError(f"--init {args.init}: a stage that is not finished; give RUN/stage1.pt")
    if way.oracle:
        raise UserError(f"--init {args.init}: {first['task']} is an oracle, which has no stage 2; give another run")
    if way.per_point:
        args.backbone, args.gcn_iters = None, 0  # one backbone; refinement is for classes, so all labels stay unsure
    for name in FIXED:
        if getattr(args, name) not in (None, first[name]):
            flag = name.replace("_", "-")
            raise UserError(f"--{flag} {getattr(args, name)}: {args.init} has {first[name]}; drop the flag")
    follows = {"eval_every"} if args.steps else set()  # from --steps
    if args.select in ("random", "all", "freeze"):
        follows.add("measure")  # whether to measure goes with whom to select
    for name in (*FIXED, *INHERITED):
        if getattr(args, name) is None and name not in follows:
            setattr(args, name, first[name])
    args.device = args.device or "auto"
    if args.device == "mps" and args.gcn_iters:
        raise UserError("--device mps: torch has no sparse product there, which the GCN needs; give --gcn-iters 0")
    return settle(args)


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("--init", type=Path, required=True, help="RUN/stage1.pt")
    parser.add_argument("--scratch", action="store_true", help="keep the pseudo-labels, start from fresh weights")
    parser.add_argument("--filter-stream", action="store_true", help="mask the unlabelled stream by the scores, too")
    mean_std = dict(nargs=2, metavar=("MEAN", "STD"), help="of what is added to the scores of pseudo-labels")
    parser.add_argument("--perturb", type=number(float, -100, 100), **mean_std)
    parser.add_argument("--gcn-iters", type=number(int, 0), help="a refinement; 0 = off, as on PointSegDA")
    parser.set_defaults(**SETTINGS)
    add_flags(parser, *CHOICES)
    args = parser.parse_args()
    start = load_checkpoint(args.init, choices=CHOICES)
    inherit(args, start)
    args.out = args.out or args.init.parent
    args.init_hash = file_hash(args.init)  # another stage 1 is another run
    with Run(args.out, 2, args) as run:
        if not run.finished:
            train(args, run, *load(args, run, start["config"]["data"]["fingerprint"]), start)


if __name__ == "__main__":
    cli(main)
