"""Gradients over the shared encoder, with batch norm frozen: where they conflict in a step, and for which samples.

    G_cls, G_ssl, G_oracle = gradients(model, task, s, u, y_t, generator)     # one step, (P,) each
    cosines = own_cosines(model, task, view, G_oracle, seed, "words")         # of each sample's own G_ssl

G_oracle is the gradient of the target's classification loss with its true labels, which are handed in (figures.py
opens them), G_cls of the source's, G_ssl of the self-supervised loss. Every gradient has batch norm on its running
statistics and no dropout, and measuring leaves weights, buffers, .grad and random numbers of the run as they were.
"""

import copy
import math
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F

import data
import ssl_tasks
import stage1_ssl
from engine.base import generator, seed_of
from engine.metrics import cosine, describe, flat_gradient
from paper import evidence
from saliency import SCORES, measure, saliency_map, select

KNOWN = 0.5  # least cosine of the halves of G_oracle for which a sample's sign against it means something
MOMENTS = (0.05, 0.2, 0.4, 0.6, 0.8, 1.0)  # of training, at which samples are looked at one by one


# ---------------------------------------------------------------- looking without touching
@contextmanager
def frozen(*modules):
    """Running statistics in every batch norm and no dropout for a while; then each module as it was."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def own_rng(device, *words):
    """The global random numbers, which dropout draws from, as the words have it; afterwards as they were."""
    with torch.random.fork_rng([device] if str(device).startswith("cuda") else []):
        torch.manual_seed(seed_of(*words))
        yield


def skewness_of(model, x, y, args, mode, *words):
    """Skewness of a batch (B, N, 3) for labels (B,) -> (B,); the words seed the dropout of train mode."""
    with own_rng(args.device, args.seed, *words):
        return measure(model, x, y, alpha=args.alpha, mode=mode)


# ---------------------------------------------------------------- one step
def batch_of(t, args, task, src, tgt):
    """The very views of step t: source View, target View, the target's true labels (B,), the generator that goes on."""
    s, u, g = stage1_ssl.views(t, args, task, src, tgt)
    i_t = data.stream(len(tgt.train), args.batch_size // 2, t, args.seed, "target").to(args.device)  # the clouds of u
    return s, u, tgt.train_labels[i_t], g


def masks(t, args, model, s, u):
    """The very masks of step t: lambda of labelled and unlabelled samples, (B,) bool each."""
    own = generator(args.device, args.seed, "select", t)
    with own_rng(args.device, args.seed, "dropout 1", t):
        sk = stage1_ssl.score(model, s, s.x.new_zeros(len(s.x)), args, own)  # makes a pass of its own
    lam_s = select(sk, *stage1_ssl.selection(args), own)  # Eq. (7)
    lam_t = stage1_ssl.unlabelled_mask(t, args, u)
    return lam_s, lam_s.new_ones(len(u.x)) if lam_t is None else lam_t


def encoder_gradient(loss, model):
    """Gradient of a scalar over the encoder's parameters (P,)."""
    return flat_gradient(loss, list(model.encoder.parameters()))


def gradients(model, task, s, u, y_t, g, lam=None):
    """G_cls, G_ssl, G_oracle of one step, (P,) each; lam, the masks (B_s,) and (B_t,) of G_ssl, None is all of it."""
    with frozen(model, task):
        ce = lambda x, y: encoder_gradient(F.cross_entropy(model(x), y), model)
        ssl_s, ssl_t = task(model, s, None, g), task(model, u, None, g)
        lam_s, lam_t = lam or (torch.ones_like(loss, dtype=torch.bool) for loss in (ssl_s, ssl_t))
        L_ssl = ssl_tasks.combine(ssl_s, lam_s, ssl_t, lam_t, task.pooled)  # Eq. (6)
        return ce(s.x, s.y), encoder_gradient(L_ssl, model), ce(u.x, y_t)


def scored(args, task, src):
    """One fixed set of about args.scored source clouds in one fixed view, in batches as in training: [View, ...]."""
    i = torch.randperm(len(src.train), generator=generator("cpu", args.seed, "scored"))[: args.scored]
    g = generator(args.device, args.seed, "scored views")
    parts = [part for part in i.to(args.device).split(args.batch_size // 2) if len(part) > 1]  # batch norm needs two
    return [task.views(src.train[part], src.train_labels[part], True, g) for part in parts]


def step_conflict(t, args, model, task, src, tgt):
    """One point of Fig. 1: mean skewness in both modes, and the cosines of the step's G_ssl, unmasked.

    The skewness is that of the same source clouds at every step: a batch's own mean is sampling noise.
    """
    s, u, y_t, g = batch_of(t, args, task, src, tgt)
    row, fixed = {"step": t}, scored(args, task, src)
    for mode in ("train", "eval"):
        found = [skewness_of(model, v.x, v.y, args, mode, "scored", b) for b, v in enumerate(fixed)]
        row[f"skewness_{mode}"] = torch.cat(found).mean().item()
    G_cls, G_ssl, G_oracle = gradients(model, task, s, u, y_t, g)
    return [row | {"cos": cosine(G_ssl, G_oracle), "cos_cls": cosine(G_ssl, G_cls)}]  # Fig. 1


def directions(t, args, model, task, src, tgt):
    """cos(G_sum, G_oracle) and cos(G_ssl, G_cls) at step t, under the very mask that the step will have."""
    s, u, y_t, g = batch_of(t, args, task, src, tgt)
    G_cls, G_ssl, G_oracle = gradients(model, task, s, u, y_t, g, masks(t, args, model, s, u))
    G_sum = task.cls_weight * G_cls + task.weight(t / args.steps) * G_ssl
    return [{"beta": args.beta, "step": t, "cos_sum": cosine(G_sum, G_oracle), "cos_ssl": cosine(G_ssl, G_cls)}]


def group_losses(t, args, model, task, src, tgt):
    """Loss of each source sample in step t, by whether its skewness is among the beta lowest of the batch: rows.

    These are the losses that the step itself will have, batch statistics and dropout included.
    """
    s, _, _, g = batch_of(t, args, task, src, tgt)
    low = select(skewness_of(model, s.x, s.y, args, args.measure or "train", "dropout 1", t), args.beta)
    model, task = copy.deepcopy(model), copy.deepcopy(task)  # train mode moves the statistics
    with own_rng(args.device, args.seed, "dropout 1", t), torch.no_grad():
        features = model.encoder(s.x)
        cls = stage1_ssl.cross_entropy(model.predict(features), s.y)
        ssl = task(model, s, features if task.reuses else None, g)
    values = zip(low.tolist(), ssl.tolist(), cls.tolist())
    return [{"step": t, "group": "low" if kept else "high", "ssl": a, "cls": b} for kept, a, b in values]


def label_gaps(t, args, model, task, pseudo, tgt):
    """Skewness with the pseudo-label minus skewness with the true label of the same views, cloud by cloud: rows."""
    chosen = torch.randperm(len(tgt.train), generator=generator("cpu", args.seed, "gaps"))[: args.samples]
    rows = []
    for b, i in enumerate(chosen.to(args.device).split(args.batch_size // 2)):  # batches as in training
        if len(i) < 2:
            continue  # batch norm in train mode needs two
        g = generator(args.device, args.seed, "analysis gaps", t, b)
        view, true = task.views(tgt.train[i], pseudo.label[i], True, g), tgt.train_labels[i]
        columns = {"cloud": i, "wrong": (view.y != true).int()}
        for mode in ("train", "eval"):  # the same dropout for both labels
            sk = [skewness_of(model, view.x, y, args, mode, "analysis dropout", t, b) for y in (view.y, true)]
            columns[f"gap_{mode}"] = sk[0] - sk[1]
        rows += [{"step": t} | dict(zip(columns, row)) for row in zip(*(v.tolist() for v in columns.values()))]
    return rows


# ---------------------------------------------------------------- per sample: what the selector really asks
OF_MAP = [name for name in SCORES if name not in ("loss", "random")]  # these two do not look at the map
TEXTS = {"entropy": "- entropy of the map", "gini": "Gini of the map", "top5": "share of top 5 %"}
PREDICTORS = {  # name -> text; all turned so that high predicts conflict: the paper's claim, or what one would expect
    **{f"{name}_{mode}": f"{TEXTS.get(name, name)}, {mode}" for name in OF_MAP for mode in ("train", "eval")},
    "loss": "loss",
    "prediction_entropy": "entropy of p",
    "minus_confidence": "- confidence",
    "random": "random",
    "minus_cos_cls": "- cosine with G_cls of the source",
    "minus_cos_pseudo": "- cosine with G of the target's pseudo-labels",
    "minus_cos_entropy": "- cosine with G of the target's entropy",
}
OF_GRADIENT = [name for name in PREDICTORS if name.startswith("minus_cos")]  # as LESS and TRAK: no label of the target


def maps(model, x, y, alpha):
    """Saliency maps (B, N) and logits (B, C) of clouds x (B, N, 3) for labels y (B,), in the mode the model is in."""
    x = x.detach().requires_grad_()
    logits = model(x)
    (grad,) = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), x)
    return saliency_map(x, grad, alpha), logits.detach()


def predictors(args, model, view, draw):
    """Every score of one labelled batch, name -> (B,); `draw` seeds the dropout of train mode and the random score."""
    noisy = copy.deepcopy(model).train()  # its batch norm moves; the run's does not
    with own_rng(args.device, args.seed, "analysis dropout", draw):
        S_train, _ = maps(noisy, view.x, view.y, args.alpha)
    with frozen(model):
        S_eval, logits = maps(model, view.x, view.y, args.alpha)
    p, loss = logits.softmax(-1), F.cross_entropy(logits, view.y, reduction="none")
    g = generator(args.device, args.seed, "analysis random", draw)
    pairs = [(mode, S, name) for mode, S in (("train", S_train), ("eval", S_eval)) for name in OF_MAP]
    found = {f"{name}_{mode}": SCORES[name](S, loss, g) for mode, S, name in pairs}
    found |= {"loss": loss, "random": torch.rand(len(p), generator=g, device=p.device)}
    return found | {"prediction_entropy": torch.special.entr(p).sum(-1), "minus_confidence": -p.amax(-1)}


def own_cosines(model, task, view, against, *words):
    """Cosines of one sample's own G_ssl with each gradient of `against` (P,), for each sample of a View -> (B, len).

    Statistics are frozen, so that a sample's gradient is exactly its own; nan where a gradient vanished.
    """
    found, against = [], torch.stack(list(against))
    against = against / against.norm(dim=1, keepdim=True)  # nan where it vanished
    with frozen(model, task):
        for i in range(len(view.x)):
            one = ssl_tasks.View(**{name: v if v is None else v[i : i + 1] for name, v in vars(view).items()})
            L = task(model, one, None, generator(view.x.device, *words, i)).sum()
            G_ssl = encoder_gradient(L, model)
            found.append((against @ G_ssl / G_ssl.norm()).tolist())
    return found


def mean_gradient(model, points, labels=None, batch=64):
    """Gradient of the mean cross-entropy of many clouds (n, N, 3), labels (n,) -> (P,), and those of its halves.

    Without labels that of the mean entropy of the predictions (Grandvalet & Bengio, 2004). The halves tell how well it
    is known: a direction that n / 2 clouds do not agree on predicts nothing.
    """
    total = [0.0, 0.0]
    with frozen(model):
        for half in (0, 1):
            for i in torch.arange(half, len(points), 2, device=points.device).split(batch):
                logits = model(points[i])
                if labels is None:
                    loss = torch.special.entr(logits.softmax(-1)).sum()
                else:
                    loss = F.cross_entropy(logits, labels[i], reduction="sum")
                total[half] = total[half] + encoder_gradient(loss, model)
    return (total[0] + total[1]) / len(points), total


def look_at_samples(t, args, model, task, src, tgt):
    """The samples of one moment, the same clouds in the same views at each: rows, and what is known of G_oracle.

    Beside cos, with G_oracle, a row has cos_cls, with G_cls of the same source clouds, cos_half_0 and cos_half_1, with
    G_oracle of every other target cloud, and cos_again, with G_oracle for a second draw of the task and its views.
    Known: the cosines of G_oracle's halves, and of G_oracle with the gradients that need no target label, those of the
    pseudo-labels (the model's own, of the same clouds) and of the entropy; and the share of these labels that is right.
    """
    pick = lambda domain, n: torch.randperm(len(domain.train), generator=generator("cpu", args.seed, domain.key))[:n]
    i_t = pick(tgt, args.oracle_clouds).to(args.device)
    clouds = data.evaluation_subset(tgt.train[i_t], args.points)  # un-augmented, as it is tested
    truth = tgt.train_labels[i_t]
    pseudo = describe(model, clouds)[0].argmax(-1)
    G_oracle, halves = mean_gradient(model, clouds, truth)
    G_pseudo, G_entropy = mean_gradient(model, clouds, pseudo)[0], mean_gradient(model, clouds)[0]
    known = {"oracle_halves_cos": cosine(*halves), "pseudo_right": (pseudo == truth).double().mean().item()}
    known |= {"oracle_pseudo_cos": cosine(G_oracle, G_pseudo), "oracle_entropy_cos": cosine(G_oracle, G_entropy)}
    i_s = pick(src, args.samples).to(args.device)
    G_cls, _ = mean_gradient(model, data.evaluation_subset(src.train[i_s], args.points), src.train_labels[i_s])
    rows, half = [], args.batch_size // 2
    for b, i in enumerate(i_s.split(half)):  # batches as in training
        if len(i) < 2:
            continue  # batch norm in train mode needs two
        words = args.seed, "analysis sample", b
        g = generator(args.device, *words)
        view = task.views(src.train[i], src.train_labels[i], True, g)
        scores = predictors(args, model, view, b)
        cosines = own_cosines(model, task, view, (G_oracle, G_cls, *halves, G_pseudo, G_entropy), *words)
        g = generator(args.device, *words, "again")  # self-distillation draws nothing but its views
        other = task.views(src.train[i], src.train_labels[i], True, g)
        again = own_cosines(model, task, other, (G_oracle,), *words, "again")
        for k, cloud in enumerate(i.tolist()):
            rows.append({"step": t, "cloud": cloud, "class": int(view.y[k])})
            rows[-1] |= dict(zip(("cos", "cos_cls", "cos_half_0", "cos_half_1"), cosines[k]))
            rows[-1] |= {"cos_again": again[k][0]} | {name: v[k].item() for name, v in scores.items()}
            rows[-1] |= {name: -cosines[k][place] for name, place in zip(OF_GRADIENT, (1, 4, 5))}
    return rows, known


def moments_of(args, shares=MOMENTS):
    """The steps before which samples are looked at, ascending."""
    return sorted({min(round(share * args.steps), args.steps - 1) for share in shares})


def predict_conflict(rows, agree, seed):
    """One dict for each score and moment (and the mean, step ""): AUC, within classes, too, and Spearman.

    Not computed (nan) at a moment where the halves of G_oracle, of which agree[step] tells, are apart: below KNOWN.
    """
    steps, table = sorted({row["step"] for row in rows}), []
    grid = lambda name: np.array([[row[name] for row in rows if row["step"] == step] for step in steps])  # (M, n)
    known = np.array([agree[step]["oracle_halves_cos"] >= KNOWN for step in steps])
    cos = np.where(known[:, None], grid("cos"), np.nan)
    for name in PREDICTORS:
        found = evidence.prediction(grid(name), cos, grid("class")[0], seed)
        table += [{"score": name, "step": step, **f} for step, f in zip([*steps, ""], found)]
    return table


def same_sign(a, b):
    """How often two cosines (n,) x2 of a sample have one sign, among those that have both."""
    sound = np.isfinite(a) & np.isfinite(b)
    return float(((a < 0) == (b < 0))[sound].mean()) if sound.any() else math.nan


def conflict_shares(rows, agree):
    """How many samples conflict at each moment, their median cosine, and what an AUC could have reached at best.

    agree[step]: what look_at_samples knows of G_oracle. same_sign_halves, same_sign_draws: how often a sample's cosine
    has the same sign with either half of it, and for two draws of the task and its views; .5 is chance.
    """
    table = []
    for step, known in agree.items():
        of = lambda name: np.array([row[name] for row in rows if row["step"] == step])
        cos = of("cos")
        row = {"step": step, "n": len(cos), "conflict": float((cos < 0).mean())}
        row |= {"median_cos": float(np.nanmedian(cos))} | known
        row["same_sign_halves"] = same_sign(of("cos_half_0"), of("cos_half_1"))
        table.append(row | {"same_sign_draws": same_sign(cos, of("cos_again"))})
    return table
