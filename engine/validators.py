"""Label-free validators: how good is a moment, judged from what it makes of the target clouds, without their labels?

    scores = {name: f(p, cluster) for name, f in VALIDATORS.items()}     # of one moment; higher is better for each

p (n, C): probabilities of the target test clouds; cluster (n,): the k-means cluster of each cloud's feature. Musgrave
et al. (arXiv 2208.07360) compare these and others over 31 tasks.
"""

import numpy as np
from scipy.special import entr, logsumexp, softmax

from engine.metrics import classes_of

TEMPERATURE = 0.05  # of SND's neighbourhoods


def entropy(p, cluster):
    """Minus the mean entropy of a prediction, in nats: sure is good (Morerio et al., ICLR 2018)."""
    return -entr(p).sum(1).mean()


def infomax(p, cluster):
    """Entropy of the mean prediction minus mean entropy: sure, and of all classes (Shi & Sha, ICML 2012)."""
    return entr(p.mean(0)).sum() + entropy(p, cluster)


def bnm(p, cluster):
    """Nuclear norm of the predictions, 1 at most: sure, and of many classes (Cui et al., CVPR 2020)."""
    n, C = p.shape
    return np.linalg.norm(p, "nuc") / np.sqrt(n * min(n, C))


def snd(p, cluster):
    """Soft neighbourhood density, in nats: predictions lie in dense groups (Saito et al., ICCV 2021).

    The mean entropy of each cloud's softmax over its similarities to the others, at TEMPERATURE.
    """
    z = p / np.linalg.norm(p, axis=1, keepdims=True)
    similarity = z @ z.T / TEMPERATURE
    np.fill_diagonal(similarity, -1 / TEMPERATURE)
    log_q = similarity - logsumexp(similarity, 1, keepdims=True)
    return -(np.exp(log_q) * log_q).sum(1).mean()


def class_ami(p, cluster):
    """Adjusted mutual information of predicted classes and clusters of features (Musgrave et al., 2022)."""
    from sklearn.metrics import adjusted_mutual_info_score

    return adjusted_mutual_info_score(p.argmax(1), cluster)


VALIDATORS = {"entropy": entropy, "infomax": infomax, "bnm": bnm, "snd": snd, "class_ami": class_ami}


def judge(logits, cluster):
    """Every validator of one moment, name -> float, from logits (n, C) and clusters (n,)."""
    p = softmax(np.asarray(logits, np.float64), 1)
    return {name: float(validator(p, cluster)) for name, validator in VALIDATORS.items()}


def clusters(features, k, seed):
    """k-means with k centres, or as many as differ, of unit-length features, (n, F) -> (n,) uint8."""
    from sklearn.cluster import KMeans

    unit = features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
    k = min(k, len(np.unique(unit, axis=0)))
    return KMeans(k, n_init=10, random_state=seed).fit_predict(unit).astype(np.uint8)


def described(logits, features, seed):
    """What is kept of the target test clouds at a moment: classes and, of whole clouds, logits (n, C) and clusters."""
    kept = {"target": classes_of(logits)}
    if logits.ndim == 2:
        kept |= {"logits": logits.cpu().numpy(), "cluster": clusters(features.cpu().numpy(), logits.shape[1], seed)}
    return kept
