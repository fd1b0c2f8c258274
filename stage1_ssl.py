"""Stage 1 of SM-DSB (Sec. III-C, Alg. 1): source classification and a self-supervised task on both domains, together.

    python stage1_ssl.py --task M_S --data data                                    # the paper's settings
    python stage1_ssl.py --task M_SC --data shapes --backbone pointnet --steps 300 --points 256 --batch-size 32
    python stage1_ssl.py ... --select all                                          # the base, without SM-DSB

Each step masks the self-supervised loss of the *source* samples whose saliency map is most skewed. The target is not
filtered here (but for the pilot, --select freeze) and no target label is opened (but for an oracle). Stopped? The same
command goes on, bit for bit on a CPU.
"""

import engine  # noqa: F401, I001 - first: how torch's threads wait
import argparse
import importlib
from pathlib import Path

import torch
import torch.nn.functional as F

import data
import models
import ssl_tasks
from engine import fast, upright
from engine.base import UserError, cli, generator, seed_of
from engine.flags import Parser, add_flags, folder_name, own_clouds
from engine.metrics import classes_of, describe, quality
from engine.run import Run
from engine.validators import described
from saliency import SCORES, measure, saliency_map, select

# ---------------------------------------------------------------- settings of the common step, one line each
SETTINGS = dict(
    task="M_S",  # direction
    data="data",  # holds PointDA_data/
    backbone="dgcnn",  # Table I
    ssl="selfdist",  # the strongest base of Table I
    select="low",  # Eq. (7); `high` is the other reading of the text
    beta=0.7,  # kept share; .8 in Table III
    steps=None,  # of a stage, see PAPER
    seed=0,
    out=None,  # a folder in runs/ that is named after the settings
    score="skewness",  # Eq. (5)
    alpha=1.0,  # Eq. (4)
    measure=None,  # low and high: the training pass, the paper's "additional gradient backpropagation"
    mtl="sum",  # L_c + L_ssl; others are comparators, docs/comparators.md
    points=None,  # a cloud: 1024 in PointDA-10's protocol, 2048 in PointSegDA's
    batch_size=None,  # both domains together, see PAPER
    eval_every=None,  # max(steps // 20, 100)
    up="z",  # bodies and own clouds are used as they are,
    target_up=None,  # those of the target as the source's,
    unit_sphere=False,  # unless their files need it
    precision="fp32",  # of products on points; tf32 and bf16 are faster on a GPU
    device="auto",
)
PAPER = {  # Self-dist's, which the paper keeps; DefRec's for PointSegDA, in epochs of the smaller domain
    "dgcnn": dict(steps=40_000, batch_size=64),
    "pointnet": dict(steps=10_000, batch_size=128),
    "dgcnn-seg": dict(epochs=200, batch_size=32),
}
LR, WEIGHT_DECAY, WARM_UP = 1e-3, 1e-4, 0.3  # AdamW and OneCycle for classification, whatever the task
SEG_WEIGHT_DECAY = 5e-5  # Adam and a cosine for PointSegDA, as in DefRec


# ---------------------------------------------------------------- one step, of both stages (Alg. 1)
def add(model, task, L_c, L_ssl, u):
    """The paper's way to join the losses: their sum."""
    loss = L_c + L_ssl
    if loss.requires_grad:
        loss.backward(inputs=[*model.parameters(), *task.parameters()])  # not down to the points again


def step(t, args, model, task, s, u, g, w_y=None, shift=0.0, lam_t=None, descend=add):
    """Losses and gradients of step t on a labelled View s and an unlabelled View u -> log row, lam_s (B,) bool.

    g draws what the task leaves to chance. Stage 2 gives w_y (B,), the weights of the labels, and shift (B,), which
    is added to the scores. lam_t (B,) bool masks unlabelled samples; Alg. 1 keeps all, which is None.
    """
    x, mixture = task.labelled(s, g)  # the clouds themselves, but for PCM
    x.requires_grad_(args.measure == "train" and x is s.x)
    w_y = x.new_ones(len(x)) if w_y is None else w_y

    logits = model.predict(features := model.encoder(x))  # (B, C), of parts (B, N, C)
    ce = sum(mu * (w_y[i] * cross_entropy(logits, y)) for mu, y, i in mixture)  # (B,)  Eq. (2)
    L_c = task.cls_weight * ce.mean()
    if task.reuses or descend is not add:  # whoever needs this graph again goes back through it for both losses
        s.x.grad = torch.autograd.grad(L_c, s.x, retain_graph=True)[0] if s.x.requires_grad else None
    else:
        L_c.backward()  # reaches the points too
        L_c = L_c.detach()

    own = generator(x.device, args.seed, "select", t)  # whom to select must not shift the task's draws
    sk = score(model, s, (ce / w_y).detach(), args, own)  # (B,)  Eq. (4), (5)
    lam_s = select(sk + shift, *selection(args), own)  # (B,) bool  Eq. (7)
    lam_t = lam_s.new_ones(len(u.x)) if lam_t is None else lam_t  # (B,) bool

    s.x = s.x.detach()
    ssl_s = task(model, s, features if task.reuses else None, g)  # (B,)
    ssl_t = task(model, u, None, g)  # (B,)
    w = task.weight(t / args.steps)
    L_ssl = w * ssl_tasks.combine(ssl_s, lam_s, ssl_t, lam_t, task.pooled)  # Eq. (6)
    descend(model, task, L_c, L_ssl, u)

    row = dict(cls=ce.mean(), ssl_src=ssl_s.mean(), ssl_tgt=ssl_t.mean(), loss=L_c + L_ssl, kept=lam_s.sum())
    if args.measure:
        row |= dict(skew=sk.mean(), flat=(sk == 0).sum())  # flat: maps without a score, no spread or not finite
        row |= {} if x.grad is None else {"bad": (~x.grad.isfinite()).flatten(1).any(1).sum()}  # maps not finite
    return {name: value.detach() for name, value in row.items()} | {"weight": w}, lam_s


def cross_entropy(logits, y):
    """L_i of each cloud (B,); of per-point labels the mean over its points."""
    return F.cross_entropy(logits.movedim(-1, 1), y, reduction="none").view(len(y), -1).mean(1)


def score(model, s, loss, args, g):
    """Score of each labelled sample (B,), from the gradient of L_c at the points; 0 if unmeasured."""
    if not args.measure:
        return torch.zeros_like(loss)
    if s.x.grad is not None:
        return SCORES[args.score](saliency_map(s.x, s.x.grad, args.alpha), loss, g)
    # a pass of its own: in eval mode, or of the clean clouds where PCM classifies mixed ones
    return measure(model, s.x, s.y, alpha=args.alpha, mode=args.measure, score=args.score, generator=g)


def selection(args):
    """The share of samples that `select` keeps, and which; freeze is the pilot, Random Gradient Freezing (Sec. I)."""
    keep = importlib.import_module("extras.beta").rule(args.select)  # its name, but for gap
    return (0.5, "random") if args.select == "freeze" else (args.beta, keep)


# ---------------------------------------------------------------- the loop
def views(t, args, task, src, tgt):
    """Step t's labelled View, its unlabelled View, and the generator that goes on: a function of (seed, t) alone."""
    g = generator(args.device, args.seed, "stage 1", t)
    half = args.batch_size // 2
    i_s = data.stream(len(src.train), half, t, args.seed, "source").to(args.device, non_blocking=True)
    i_t = data.stream(len(tgt.train), half, t, args.seed, "target").to(args.device, non_blocking=True)
    s = task.views(src.train[i_s], src.train_labels[i_s], True, g)
    return s, task.views(tgt.train[i_t], None, False, g), g


def unlabelled_mask(t, args, u):
    """Under freeze a random half of the unlabelled samples, (B,) bool; else None, which keeps them all."""
    g = generator(args.device, args.seed, "freeze", t)
    return select(torch.zeros(len(u.x), device=args.device), *selection(args), g) if args.select == "freeze" else None


def optimisation(args, parameters):
    """AdamW and OneCycle for classification (Self-dist's), Adam and a cosine for PointSegDA (DefRec's)."""
    if data.direction(args.task).per_point:
        optimizer = torch.optim.Adam(parameters, lr=LR, weight_decay=SEG_WEIGHT_DECAY, fused=True)
        return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.steps)
    optimizer = torch.optim.AdamW(parameters, lr=LR, weight_decay=WEIGHT_DECAY, fused=True)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=args.steps, pct_start=WARM_UP)


def evaluator(args, run, model, task, src, tgt, pseudo=None):
    """evaluate(step) -> text for the bar: predictions on source validation and target test; no target label is read."""
    points, labels = src.validation
    source, truth = data.evaluation_subset(points, args.points, labels)
    target = data.evaluation_subset(tgt.test, args.points)
    live = {"student": model, "task": task} | ({"teacher": task.teacher.model} if task.teacher else {})

    def evaluate(step):
        kept = {"source": classes_of(describe(model, source)[0])} | described(*describe(model, target), args.seed)
        kept |= {"pseudo": pseudo.label.to(torch.uint8).cpu().numpy()} if pseudo else {}
        found = quality(truth.cpu().numpy(), kept["source"], len(src.classes))
        run.moment(step, found, kept, **live)
        return f" source {found:.1%}"

    return evaluate


def train(args, run, src, tgt, observe=None):
    """Stage 1 on two domains; writes RUN/stage1.pt. observe(t, model, task) looks on before each step."""
    torch.manual_seed(seed_of(args.seed, "weights"))
    model = models.build(args.backbone, len(src.classes)).to(args.device)
    task = ssl_tasks.build(args.ssl, model, args.points, data.direction(args.task)).to(args.device)
    optimizer, schedule = optimisation(args, [*model.parameters(), *task.parameters()])
    parts = {"student": model, "task": task, "optimizer": optimizer, "schedule": schedule}
    if task.teacher:
        parts["teacher"] = task.teacher.model
    descend = joining(args.mtl)

    for t in run.loop(parts, evaluator(args, run, model, task, src, tgt)):
        if observe:
            observe(t, model, task)
        s, u, g = views(t, args, task, src, tgt)
        torch.manual_seed(seed_of(args.seed, "dropout 1", t))
        optimizer.zero_grad()
        row, _ = step(t, args, model, task, s, u, g, lam_t=unlabelled_mask(t, args, u), descend=descend)
        optimizer.step()
        schedule.step()
        task.after_step(model, t)
        run.log(t, row)
    run.finish(model)


def load(args, run, expected=None):
    """Both domains on the device, announced and recorded, the target without labels; UserError: other clouds."""
    fast.set_precision(args.precision)
    way = data.direction(args.task)
    src, tgt = data.load_domain(args.data, way.source), data.load_domain(args.data, way.target, labels=False)
    src, tgt = data.framed(src, tgt, vars(args))
    fingerprint = data.fingerprint(src, tgt)
    if expected and fingerprint != expected:
        raise UserError(f"--data {args.data}: not the clouds that --init was trained on; give the same data")
    height = upright.learn(src.train)
    run.begin(src.classes, name=data.data_name(args.data, src, tgt), fingerprint=fingerprint, upright=height)
    print(f"{run.config['data']['name']} | source {src} | target {tgt}")
    upright.warn("the target's clouds", [upright.profiles(tgt.train)], height)
    if way.oracle:
        print("ORACLE: supervised with target labels; a bound, never a result of adaptation")
    return src.to(args.device), tgt.to(args.device)


# ---------------------------------------------------------------- command line
CHOICES = ssl_tasks.TASKS, models.BACKBONES, SCORES  # of --ssl, --backbone, --score


def joining(mtl):
    """The way to join the losses that --mtl names; all but the paper's are looked up in extras/surgery.py."""
    return add if mtl == "sum" else importlib.import_module("extras.surgery").method(mtl)


def settle(args):
    """Fill in what follows from other flags, and refuse what cannot go together; returns args."""
    own_clouds(args)
    way = data.direction(args.task)
    base = args.ssl.partition("+")[0]
    if way.per_point and not ssl_tasks.TASKS[base].bodies:
        bodies = ", ".join(name for name, task in ssl_tasks.TASKS.items() if task.bodies)
        raise UserError(f"--ssl {args.ssl} with {args.task}: not for segmentation; choose one of {bodies}")
    if way.dataset.FRAMED and (args.up, args.target_up, args.unit_sphere) != ("z", None, False):
        raise UserError(f"--up or --unit-sphere with {args.task}: its clouds get their frame as they are read; drop it")
    if way.per_point:
        args.backbone = "dgcnn-seg"  # the only one PointSegDA is reported with
    paper = PAPER.get(args.backbone, PAPER["dgcnn"])
    args.batch_size = args.batch_size or paper["batch_size"]
    args.points = args.points or way.dataset.POINTS
    args.steps = args.steps or paper.get("steps")
    if args.steps is None:
        shorter = min(way.dataset.size(args.data, key, "train") for key in (way.source, way.target))
        args.steps = paper["epochs"] * max(1, shorter // (args.batch_size // 2))
    args.eval_every = args.eval_every or max(args.steps // 20, 100)
    joining(args.mtl)  # absent? say so before a folder is made
    if args.select in ("low", "high", "gap"):
        args.measure = args.measure or "train"  # these two always measure
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if args.device == "auto":
        args.device = "cuda" if here["cuda"] else "cpu"
    if not here[args.device]:
        raise UserError(f"--device {args.device}: torch sees no such GPU here; use --device cpu or auto")
    return args


def folder_of(args, more=""):
    """The folder that a settled run names itself, so that no setting takes another's; `more` are flags of stage 2."""
    follows = {key: getattr(args, key) for key in ("task", "data", "backbone", "ssl", "select")}
    default = settle(argparse.Namespace(**SETTINGS | follows))
    default.data, default.eval_every = SETTINGS["data"], max(args.steps // 20, 100)
    return Path("runs") / folder_name(args, default, more)


def main():
    parser = Parser(description=__doc__)
    add_flags(parser, *CHOICES, **SETTINGS)
    parser.add_argument("--print-out", nargs="?", const="", metavar="STAGE2_FLAGS", help="print the run's folder, stop")
    args = parser.parse_args()
    more = args.__dict__.pop("print_out")
    settle(args)
    args.out = args.out or folder_of(args, more or "")
    if more is not None:
        print(args.out)
        return
    with Run(args.out, 1, args) as run:
        if not run.finished:
            train(args, run, *load(args, run))


if __name__ == "__main__":
    cli(main)
