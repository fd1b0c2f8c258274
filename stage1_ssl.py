"""Stage 1 of SM-DSB (Sec. III-B, Alg. 1): source classification and a self-supervised task on both domains, together.

    python stage1_ssl.py --task M_S --data data --out runs/mine                    # the paper's settings
    python stage1_ssl.py --task M_SC --data shapes --backbone pointnet --steps 300 --out runs/toy
    python stage1_ssl.py ... --select all                                          # the base, without SM-DSB

Each step masks the self-supervised loss of the *source* samples whose saliency map is most skewed; the target is never
filtered here and no target label is opened. Stopped? Run the same command again and it goes on, bit for bit on a CPU.
"""

import argparse
import time

import torch
import torch.nn.functional as F
from tqdm import tqdm

import data
import ssl_tasks
from common import Parser, Run, UserError, add_flags, announce, cli, generator, seed_of, settle
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
    points=1024,  # PointDA-10's protocol
    seed=0,
    device="auto",
)
LR, WEIGHT_DECAY, WARM_UP = 1e-3, 1e-4, 0.3  # AdamW and OneCycle, one setting for all tasks


# ---------------------------------------------------------------- one step (Alg. 1)
def backward(t, args, model, task, x_s, y_s, x_t):
    """Losses and gradients of step t on a source batch (B, P, 3), (B,) and a target batch (B, P, 3); returns its log row."""
    g = generator(x_s.device, args.seed, "stage1", t)  # augmentation, deformation, random selection
    torch.manual_seed(seed_of(args.seed, "stage1 dropout", t))
    src, tgt = args.task_keys
    s = task.views(x_s, y_s, src, True, g)
    v = task.views(x_t, None, tgt, False, g)

    # L_c on the labelled view (with PCM: on its mixture, and the clean view gives the scores)
    own_backward = task.own_pass
    s.x.requires_grad_(args.measure == "train" and not args.pcm)
    x, y_b, mu = ssl_tasks.pcm(s.x, s.y, g) if args.pcm else (s.x, s.y, 1.0)
    features = model.encoder(x)
    logits = model.predict(features)
    ce = mu * cross_entropy(logits, s.y) + (1 - mu) * cross_entropy(logits, y_b)  # (B,)
    L_c = task.cls_weight * ce.mean()
    if own_backward:
        L_c.backward()  # frees the graph before L_ssl builds its own, and reaches the points for nothing

    # skewness of each labelled sample's saliency map, and whom it keeps
    sk = None
    if args.measure == "train" and not args.pcm and own_backward:
        sk = skewness(saliency_map(s.x, s.x.grad, args.alpha))
    elif args.measure == "train" and not args.pcm:
        sk = measure(model, s.x, loss=ce, alpha=args.alpha)
    elif args.measure:
        sk = measure(model, s.x, s.y, alpha=args.alpha, mode=args.measure)
    lam_s, lam_t = masks(sk, args, len(x_s), g)

    # L_ssl of every sample, masked
    ssl_s = task(model, s, None if own_backward or args.pcm else features, g)  # (B,)
    ssl_t = task(model, v, None, g)  # (B,)
    w = task.weight(t / args.steps)
    L_ssl = w * ssl_tasks.combine(ssl_s, lam_s, ssl_t, lam_t, task.pooled)  # Eq. (6)
    rest = L_ssl if own_backward else L_c + L_ssl
    if rest.requires_grad:
        rest.backward()
    return row(ce, ssl_s, ssl_t, L_c + L_ssl, w, lam_s, sk)
