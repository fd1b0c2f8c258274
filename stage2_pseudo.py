"""Stage 2 of SM-DSB (Sec. III-C): pseudo-labels on the target, selection among the labelled samples of both domains.

    python stage2_pseudo.py --init runs/mine/stage1.pt --out runs/mine             # fine-tune, all else as in stage 1
    python stage2_pseudo.py --init runs/mine/stage1.pt --out runs/other --scratch  # fresh weights, as Self-dist does

The labelled batch is drawn from source and pseudo-labelled target together, with one threshold for both; the scores of
pseudo-labelled samples are slightly perturbed first. A GCN on the target's features makes pseudo-labels confident
little by little (Self-dist-GCN). No target label is opened. Run the same command again to resume.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import data
import ssl_tasks
from common import Parser, Run, UserError, add_flags, cli, file_hash
from common import generator, load_checkpoint, number, seed_of, settle
from models import build
from stage1_ssl import descend, labelled_loss, load, log_row, masks, optimisation, score, validation

# ---------------------------------------------------------------- settings: what is not here comes from the checkpoint
PERTURB = (0.1, 0.05)  # mean and std added to the scores of pseudo-labelled samples; the paper gives the mean
GCN_ITERS = 1000  # a refinement; 0 = off
UNSURE = 0.2  # weight of a pseudo-label that is not yet confident
NEIGHBOURS, CORRELATION, HIDDEN_P = 10, 0.95, 0.2  # the graph of Self-dist-GCN, and how many p are hidden


# ---------------------------------------------------------------- pseudo-labels
class PseudoLabels:
    """Label and confidence, (n,) or (n, N) of parts, and `confident` (n,) bool of every target training cloud."""

    def __init__(self, p):
        self.confidence, self.label = p.max(-1)
        self.confident = torch.zeros(len(p), dtype=torch.bool, device=p.device)  # none before the first refinement

    def state_dict(self):
        return vars(self).copy()

    def load_state_dict(self, state):
        vars(self).update(state)

    def weight(self, i):
        return torch.where(self.confident[i], 1.0, UNSURE)


@torch.no_grad()
def describe(model, clouds):
    """Feature (n, 1024) and probabilities, (n, C) or (n, N, C) of parts, of un-augmented clouds in eval mode."""
    model.eval()
    parts = [(f[1], model.predict(f).softmax(-1)) for f in map(model.encoder, clouds.split(64))]
    model.train()
    return tuple(map(torch.cat, zip(*parts)))


# ---------------------------------------------------------------- GCN refinement (Cardace et al., WACV 2023)
def adjacency(f):
    """D^-1/2 A D^-1/2, edges to the <= 10 nodes most correlated with each, (n, 1024) -> sparse (n, n)."""
    z = F.normalize(f - f.mean(1, keepdim=True))  # the cosine of centred rows is Pearson's correlation
    rows, cols = [], []
    for i in torch.arange(len(z), device=z.device).split(1024):  # n x n never exists whole
        r = z[i] @ z.T
        r.scatter_(1, i[:, None], 2.0)  # a node is its own neighbour, whatever the rounding
        value, j = r.topk(min(NEIGHBOURS, len(z)))
        keep = value > CORRELATION
        rows.append(i[:, None].expand_as(j)[keep])
        cols.append(j[keep])
    index = torch.stack([torch.cat(rows), torch.cat(cols)])  # (2, edges)
    d = torch.bincount(index[0], minlength=len(z)).float().rsqrt()
    weight = d[index[0]] * d[index[1]]
    return torch.sparse_coo_tensor(index, weight, (len(z), len(z)), check_invariants=False).coalesce()


class GCN(nn.Module):
    """Three graph convolutions on f + Linear(p): (n, 1024), (n, C), sparse (n, n) -> logits (n, C)."""

    def __init__(self, width, classes):
        super().__init__()
        self.embed = nn.Linear(classes, width)
        self.layers = nn.ModuleList([nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, classes)])

    def forward(self, f, p, A):
        h = f + self.embed(p)
        for layer in self.layers[:-1]:
            h = F.dropout(F.relu(torch.sparse.mm(A, layer(h))), 0.5, self.training)
        return torch.sparse.mm(A, self.layers[-1](h))


def refine(args, model, clouds, pseudo, done):
    """Make the floor(n_c t/T) surest clouds of each class confident, with the GCN's label -> how many changed."""
    f, p = describe(model, clouds)
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


# ---------------------------------------------------------------- one step
def labelled_batch(t, args, task, src, tgt, pseudo, g):
    """Half a batch from the union of source and pseudo-labelled target, in the source's view, and who is which.

    Returns a View, weights (B,) of Sec. III-C's cross-entropy, and is_pseudo (B,) bool; source samples come first.
    """
    i = data.stream(len(src.train) + len(tgt.train), args.batch_size // 2, t, args.seed, "union").to(args.device)
    i_s, i_t = i[i < len(src.train)], i[i >= len(src.train)] - len(src.train)
    views = []  # one a domain: their clouds may differ in size
    if len(i_s):
        views.append(task.views(src.train[i_s], src.train_labels[i_s], src.key, True, g))
    if len(i_t):
        views.append(task.views(tgt.train[i_t], pseudo.label[i_t], tgt.key, True, g))
    w = torch.cat([torch.ones(len(i_s), device=i.device), pseudo.weight(i_t)])
    return ssl_tasks.cat(views), w, torch.arange(len(i), device=i.device) >= len(i_s)


def backward(t, args, model, task, s, w_ce, is_pseudo, x_t, tgt, g):
    """Losses and gradients of step t on a labelled View, its weights (B,), and unlabelled target clouds (B, P, 3)."""
    u = task.views(x_t, None, tgt.key, False, g)

    ce, features = labelled_loss(model, s, args, g, w_ce)  # (B,)
    L_c = task.cls_weight * ce.mean()
    if task.own_pass and args.mtl == "sum":
        L_c.backward()  # before L_ssl makes its own graph; the gradient of the points comes for nothing
    raw = sk = score(model, s, ce, args)  # Eq. (4), (5)
    if sk is not None:  # Sec. III-C: pseudo-labels distort the score, so it is perturbed before the pooled threshold
        own = generator(sk.device, args.seed, "perturb", t)  # measuring must not shift the other draws
        noise = torch.randn(sk.shape, generator=own, device=sk.device)
        sk = sk + is_pseudo * (args.perturb[0] + args.perturb[1] * noise)
    lam_s, lam_t = masks(sk, args, len(ce), len(x_t), g)  # Eq. (6), (7)

    s.x = s.x.detach()
    ssl_s = task(model, s, None if task.own_pass or args.pcm else features, g)  # (B,)
    ssl_t = task(model, u, None, g)  # (B,)
    w = task.weight(t / args.steps)
    L_ssl = w * ssl_tasks.combine(ssl_s, lam_s, ssl_t, lam_t, task.pooled)
    descend(args, model, task, L_c, L_ssl, u.x)
    pseudo = {"pseudo": int(is_pseudo.sum()), "kept_pseudo": int((lam_s & is_pseudo).sum())}
    return log_row(ce, ssl_s, ssl_t, L_c + L_ssl, w, lam_s, raw) | pseudo


# ---------------------------------------------------------------- the loop
def train(args, run, src, tgt, start, observe=None):
    """Stage 2 from a checkpoint of stage 1; writes RUN/stage2.pt. observe(t, model, task, pseudo) looks on first."""
    torch.manual_seed(seed_of(args.seed, "weights 2"))
    model = build(args.backbone).to(args.device)
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    clouds = data.evaluation_subset(tgt.train, args.points)  # un-augmented, for labels and the GCN
    model.load_state_dict(start["student"])
    pseudo = PseudoLabels(describe(model, clouds)[1])
    if pseudo.label.ndim == 2:
        tgt = replace(tgt, train=clouds)  # labels of points: stage 2 sees the points that have one
    if args.scratch:
        model.load_state_dict(fresh)
    task = ssl_tasks.build(args.ssl, model, args.points, src.key, tgt.key).to(args.device)  # teacher := student
    if args.ssl == start["config"]["args"]["ssl"] and not args.scratch:
        task.load_state_dict(start["task"])
    parameters = [*model.parameters(), *task.parameters()]
    optimizer, schedule = optimisation(args, parameters)
    parts = {"student": model, "task": task, "optimizer": optimizer, "schedule": schedule, "pseudo": pseudo}
    if task.teacher:
        parts["teacher"] = task.teacher.model

    sets = validation(args, src, tgt)
    evaluate = lambda step: run.evaluate(step, model, task, *sets)
    rounds = {j * args.steps // 20 for j in range(1, 20)} - {0} if args.gcn_iters else set()
    for t in run.loop(parts, evaluate):
        if observe:
            observe(t, model, task, pseudo)
        g = generator(args.device, args.seed, "stage 2", t)  # every draw of a step is a function of (seed, t)
        torch.manual_seed(seed_of(args.seed, "dropout 2", t))
        s, w_ce, is_pseudo = labelled_batch(t, args, task, src, tgt, pseudo, g)
        i_t = data.stream(len(tgt.train), args.batch_size // 2, t, args.seed, "unlabelled").to(args.device)
        optimizer.zero_grad()
        row = backward(t, args, model, task, s, w_ce, is_pseudo, tgt.train[i_t], tgt, g)
        run.check(t, row)
        optimizer.step()
        schedule.step()
        task.after_step(model, t)
        if t + 1 in rounds:
            row["relabelled"] = refine(args, model, clouds, pseudo, t + 1)
        run.log(t, row)
    run.finish(model)


# ---------------------------------------------------------------- command line
def read_flags():
    """Flags, with what is not given taken from the checkpoint of stage 1; the checkpoint."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--init", type=Path, required=True, help="RUN/stage1.pt")
    parser.add_argument("--scratch", action="store_true", help="keep the pseudo-labels, start from fresh weights")
    parser.add_argument(
        "--perturb", type=number(float, -100, 100), nargs=2, default=list(PERTURB), metavar=("MEAN", "STD")
    )
    parser.add_argument(
        "--gcn-iters", type=number(int, 0), default=GCN_ITERS, help="a refinement; 0 = off, as on PointSegDA"
    )
    add_flags(parser)
    args = parser.parse_args()
    start = load_checkpoint(args.init)
    if "last_student" not in start:
        raise UserError(f"--init {args.init}: a stage that is not finished; give RUN/stage1.pt")
    first = start["config"]["args"]
    seg = first["task"].startswith("seg_")
    for name in ("task", "backbone", "up", "unit_sphere"):
        if getattr(args, name) not in (None, first.get(name)) and not (seg and name == "backbone"):
            flag = name.replace("_", "-")
            raise UserError(f"--{flag} {getattr(args, name)}: {args.init} has {first.get(name)}; drop the flag")
    if first["oracle"]:
        raise UserError(f"{args.init} is an oracle run, which has no stage 2; give a run without --oracle")
    if args.select in ("random", "all", "freeze") and not args.measure:
        first["measure"] = None  # whether to measure goes with whom to select
    if args.steps:
        first["eval_every"] = None
    for name, value in vars(args).items():
        if value is None and name in first and name not in ("device", "out"):
            setattr(args, name, first[name])
    args.out = Path(args.out or args.init.parent)
    args.oracle = False
    args.gcn_iters = 0 if seg else args.gcn_iters  # refinement is for classes; all pseudo-labels stay unsure
    settle(args)
    return args, start


def main():
    args, start = read_flags()
    args.init_hash = file_hash(args.init)  # another stage 1 is another run
    with Run(args.out, 2, args) as run:
        if not run.finished:
            train(args, run, *load(args, run, start["config"]["data"]["fingerprint"]), start)


if __name__ == "__main__":
    cli(main)
