"""Stage 1 of SM-DSB (Sec. III-B, Alg. 1): source classification and a self-supervised task on both domains, together.

    python stage1_ssl.py --task M_S --data data --out runs/mine                    # the paper's settings
    python stage1_ssl.py --task M_SC --data shapes --backbone pointnet --steps 300 --out runs/toy
    python stage1_ssl.py ... --select all                                          # the base, without SM-DSB

Each step masks the self-supervised loss of the *source* samples whose saliency map is most skewed; the target is never
filtered here and no target label is opened. Stopped? Run the same command again and it goes on, bit for bit on a CPU.
"""

import argparse

import torch
import torch.nn.functional as F

import comparators
import data
import ssl_tasks
from common import Parser, Run, UserError, add_flags, cli, generator, seed_of, settle
from models import build
from saliency import measure, saliency_map, select, skewness

# ---------------------------------------------------------------- settings: the paper's, one line each
DEFAULTS = dict(
    task="M_S",  # direction
    data="data",  # holds PointDA_data/
    backbone="dgcnn",  # Table I
    ssl="selfdist",  # the strongest base of Table I
    pcm=False,  # DefRec's mixup of source clouds
    select="low",  # Eq. (7); `high` is the other reading of the text
    beta=0.7,  # kept share; .8 in Table III
    alpha=1.0,  # Eq. (4)
    mtl="sum",  # pcgrad, cagrad and cgdm are comparators
    up="z",  # PointSegDA: bodies are used as they are,
    unit_sphere=False,  # unless their files need it
    oracle=False,  # a bound
    points=None,  # 1024 in PointDA-10's protocol, 2048 in PointSegDA's
    seed=0,
    device="auto",
)
LR, WEIGHT_DECAY, WARM_UP = 1e-3, 1e-4, 0.3  # AdamW and OneCycle, one setting for all tasks


# ---------------------------------------------------------------- pieces of a step, used by both stages
def labelled_loss(model, view, args, g, w=1.0):
    """Cross-entropy of each labelled sample (B,), weighted by w (B,), and the encoder's features of that pass."""
    view.x.requires_grad_(args.measure == "train" and not args.pcm)
    x, partner, mu = ssl_tasks.pcm(view.x, g) if args.pcm else (view.x, None, 1.0)
    features = model.encoder(x)
    logits = model.predict(features)
    # L_i; of per-point labels the mean over the cloud's points
    ce = lambda y: F.cross_entropy(logits.movedim(-1, 1), y, reduction="none").view(len(y), -1).mean(1)
    loss = w * ce(view.y)
    if args.pcm:
        w_b = w[partner] if isinstance(w, torch.Tensor) else w
        loss = mu * loss + (1 - mu) * w_b * ce(view.y[partner])
    return loss, features


def score(model, view, ce, args):
    """Skewness of each labelled sample (B,), or None where nobody asks for it."""
    if args.measure == "train" and view.x.grad is not None:  # L_c's backward went down to the points
        return skewness(saliency_map(view.x, view.x.grad, args.alpha))
    if args.measure == "train" and not args.pcm:
        return measure(model, view.x, loss=ce, alpha=args.alpha)
    if args.measure:  # with PCM the clean clouds are scored, not their mixtures
        return measure(model, view.x, view.y, alpha=args.alpha, mode=args.measure)
    return None


def masks(sk, args, B_s, B_t, g):
    """Whose self-supervised loss stays: lambda of labelled and unlabelled samples, (B_s,) and (B_t,) bool."""
    flat = torch.zeros(max(B_s, B_t), device=g.device)
    if args.select == "freeze":  # the paper's pilot, Random Gradient Freezing: half of both domains
        return tuple(select(flat[:B], 0.5, "random", g) for B in (B_s, B_t))
    lam = select(flat[:B_s] if sk is None else sk, args.beta, args.select, g)
    return lam, select(flat[:B_t], keep="all")  # the target is never filtered


def descend(args, model, task, L_c, L_ssl, x_t):
    """What is left of the backward pass: the sum of the losses, or a comparator's way of joining them."""
    if args.mtl != "sum":
        return comparators.descend(args.mtl, model, task, L_c, L_ssl, x_t)
    rest = L_ssl if task.own_pass else L_c + L_ssl
    if rest.requires_grad:
        rest.backward(inputs=[*model.parameters(), *task.parameters()])  # not down to the points again


def log_row(ce, ssl_s, ssl_t, loss, w, lam, sk):
    """The step in numbers; `flat` counts maps without a skewness (no spread, or not finite)."""
    names = ["cls", "ssl_src", "ssl_tgt", "loss", "kept"]
    values = [ce.mean(), ssl_s.mean(), ssl_t.mean(), loss, lam.sum()]
    if sk is not None:
        names += ["skew", "flat"]
        values += [sk.mean(), (sk == 0).sum()]
    return dict(zip(names, torch.stack([v.detach().float() for v in values]).tolist()), weight=w)


def optimisation(args, parameters):
    """AdamW and OneCycle for classification (Self-dist's), Adam and a cosine for PointSegDA (DefRec's)."""
    if args.task.startswith("seg_"):
        optimizer = torch.optim.Adam(parameters, lr=LR, weight_decay=5e-5, fused=True)
        return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.steps)
    optimizer = torch.optim.AdamW(parameters, lr=LR, weight_decay=WEIGHT_DECAY, fused=True)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=args.steps, pct_start=WARM_UP)


def validation(args, src, tgt):
    """What a run is evaluated on: source validation points and labels, target test points."""
    points, labels = src.validation
    return *data.evaluation_subset(points, args.points, labels), data.evaluation_subset(tgt.test, args.points)


# ---------------------------------------------------------------- one step (Alg. 1)
def backward(t, args, model, task, x_s, y_s, x_t):
    """Losses and gradients of step t on a source batch (B, P, 3), (B,) and a target batch (B, P, 3) -> log row."""
    g = generator(x_s.device, args.seed, "stage 1", t)  # every draw of a step is a function of (seed, t)
    torch.manual_seed(seed_of(args.seed, "dropout 1", t))
    src, tgt = data.split_task(args.task, args.oracle)
    s = task.views(x_s, y_s, src, True, g)
    u = task.views(x_t, None, tgt, False, g)

    ce, features = labelled_loss(model, s, args, g)  # (B,)
    L_c = task.cls_weight * ce.mean()
    if task.own_pass and args.mtl == "sum":
        L_c.backward()  # before L_ssl makes its own graph; the gradient of the points comes for nothing
    sk = score(model, s, ce, args)  # Eq. (4), (5)
    lam_s, lam_t = masks(sk, args, len(x_s), len(x_t), g)  # Eq. (6), (7)

    s.x = s.x.detach()
    ssl_s = task(model, s, None if task.own_pass or args.pcm else features, g)  # (B,)
    ssl_t = task(model, u, None, g)  # (B,)
    w = task.weight(t / args.steps)
    L_ssl = w * ssl_tasks.combine(ssl_s, lam_s, ssl_t, lam_t, task.pooled)
    descend(args, model, task, L_c, L_ssl, u.x)
    return log_row(ce, ssl_s, ssl_t, L_c + L_ssl, w, lam_s, sk)


# ---------------------------------------------------------------- the loop
def train(args, run, src, tgt, observe=None):
    """Stage 1 on two domains; writes RUN/stage1.pt. observe(t, model, task) looks on before each step."""
    torch.manual_seed(seed_of(args.seed, "weights"))
    model = build(args.backbone).to(args.device)
    task = ssl_tasks.build(args.ssl, model, args.points, src.key, tgt.key).to(args.device)
    parameters = [*model.parameters(), *task.parameters()]
    optimizer, schedule = optimisation(args, parameters)
    parts = {"student": model, "task": task, "optimizer": optimizer, "schedule": schedule}
    if task.teacher:
        parts["teacher"] = task.teacher.model

    sets = validation(args, src, tgt)
    evaluate = lambda step: run.evaluate(step, model, task, *sets)
    half = args.batch_size // 2
    for t in run.loop(parts, evaluate):
        if observe:
            observe(t, model, task)
        i_s = data.stream(len(src.train), half, t, args.seed, "source").to(args.device)
        i_t = data.stream(len(tgt.train), half, t, args.seed, "target").to(args.device)
        optimizer.zero_grad()
        row = backward(t, args, model, task, src.train[i_s], src.train_labels[i_s], tgt.train[i_t])
        run.check(t, row)
        optimizer.step()
        schedule.step()
        task.after_step(model, t)
        run.log(t, row)
    run.finish(model)


def load(args, run, expected=None):
    """Both domains on the device, announced and recorded. Only under --oracle are labels of the target opened.

    UserError when their fingerprint is not the one expected.
    """
    src, tgt = data.split_task(args.task, args.oracle)
    src, tgt = data.load_domain(args.data, src), data.load_domain(args.data, tgt, labels=False)
    src, tgt = (domain.framed(args.up, args.unit_sphere) for domain in (src, tgt))
    fingerprint = data.fingerprint(src, tgt)
    if expected and fingerprint != expected:
        raise UserError(f"--data {args.data}: not the clouds that --init was trained on; give the same data")
    run.begin(name=data.data_name(args.data, src, tgt), fingerprint=fingerprint)
    print(f"{run.config['data']['name']} | source {data.counts_text(src)} | target {data.counts_text(tgt)}")
    if args.oracle:
        print("ORACLE: supervised with target labels; a bound, never a result of adaptation")
    return src.to(args.device), tgt.to(args.device)


def main():
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser, **DEFAULTS)
    parser.add_argument("--oracle", action="store_true", help="train on the target WITH its labels (a bound)")
    args = parser.parse_args()
    settle(args)
    data.split_task(args.task)
    if args.out is None:
        raise UserError("--out: say which folder the run goes to, e.g. --out runs/mine")
    with Run(args.out, 1, args) as run:
        if not run.finished:
            train(args, run, *load(args, run))


if __name__ == "__main__":
    cli(main)
