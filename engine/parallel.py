"""One run by several processes: torchrun --nproc_per_node=2 stage1_ssl.py ... (docs/cluster.md).

Each process encodes its share of every batch; what the encoders return is gathered, and all do the rest of the step
alike. So draws, losses and the threshold of Eq. (7) are those of the whole batch, batch norm has its statistics, and
the result is that of one process but for the rounding of sums. The first process alone keeps files and speaks.
"""

import io
import os
import sys
import tempfile

import torch
import torch.distributed as dist
from torch import nn

from engine import fast
from engine.base import UserError


def size():
    return dist.get_world_size() if dist.is_initialized() else 1


def rank():
    return dist.get_rank() if dist.is_initialized() else 0


# ---------------------------------------------------------------- joining
def begin(args):
    """Join the processes that torchrun has started, if it has; a folder for what this one need not keep, else None.

    UserError where they cannot share each half of a batch evenly, or are more than there are GPUs.
    """
    processes = int(os.environ["WORLD_SIZE"]) if dist.is_torchelastic_launched() else 1
    if processes == 1:
        return None
    if args.device == "mps":
        raise UserError("--device mps: one machine has one such GPU; run the script without torchrun")
    if args.batch_size % (2 * processes):
        raise UserError(
            f"--batch-size {args.batch_size}: {processes} processes share each half of a batch evenly; "
            f"give a multiple of {2 * processes}"
        )
    if args.device == "cuda":
        here, own = torch.cuda.device_count(), int(os.environ["LOCAL_RANK"])
        if own >= here:
            raise UserError(f"--nproc_per_node: more processes than GPUs here; give {here}")
        torch.cuda.set_device(own)
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if args.device == "cuda" else "gloo")
    if rank() == 0:
        return None
    sys.stdout = open(os.devnull, "w")
    return tempfile.TemporaryDirectory()


def end():
    if dist.is_initialized():
        dist.destroy_process_group()


def told(value):
    """A plain value as the first process has it."""
    shared = [value]
    if size() > 1:
        dist.broadcast_object_list(shared)
    return shared[0]


def join(parts, device, known):
    """All processes go on from the first one's `parts` and plain values `known`, which are returned; encoders spread.

    parts: see engine.run.Run.loop.
    """
    if size() == 1:
        return known
    buffer = io.BytesIO()
    if rank() == 0:
        torch.save({"known": known, "parts": {name: part.state_dict() for name, part in parts.items()}}, buffer)
    payload = torch.load(io.BytesIO(told(buffer.getvalue())), map_location=device, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(payload["parts"][name])
    for name in {"student", "teacher"} & parts.keys():
        spread(parts[name].encoder)
    parts["optimizer"].register_step_pre_hook(average)
    return payload["known"]


def agree(stopping, pseudo):
    """After a step: the signal that any process was sent by now, or 0; pseudo-labels become the first one's.

    On the host, so that no process waits for its GPU but where stage 2 has pseudo-labels.
    """
    if size() == 1:
        return stopping[0] if stopping else 0
    asked = torch.tensor(stopping[0] if stopping else 0)
    dist.all_reduce(asked, dist.ReduceOp.MAX)
    for tensor in vars(pseudo).values() if pseudo else ():
        dist.broadcast(tensor, 0)
    return int(asked)


def wait():
    """Until all processes are here: torchrun ends the others once one has ended."""
    if size() > 1:
        dist.barrier()


def average(optimizer, *_):
    """Before a step of the optimiser: what all compute alike is made so to the last bit, as a GPU's sums vary."""
    grads = [p.grad for group in optimizer.param_groups for p in group["params"]]
    add_over_processes([grad for grad in grads if grad is not None], 1 / size())


def add_over_processes(tensors, factor=1.0):
    """Tensors <- factor times their sum over all processes, in place and in one message."""
    if tensors:
        flat = torch.cat([tensor.flatten() for tensor in tensors]) * factor
        dist.all_reduce(flat)
        for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
            tensor.copy_(total.view_as(tensor))


# ---------------------------------------------------------------- an encoder spread over processes
def spread(encoder):
    """Give an encoder the forward below, in place; its parameters, buffers and their names stay."""
    for module in encoder.modules():
        if type(module) is nn.BatchNorm1d:
            module.__class__ = PooledNorm
    encoder.__class__ = type(type(encoder).__name__, (Spread, type(encoder)), {})


class Spread:
    """An encoder (B, N, 3) -> tensors (B, ...), of which each process computes B / size() rows."""

    def forward(self, points):
        return Shares.apply(self, super().forward, torch.is_grad_enabled(), points, *self.parameters())


class Shares(torch.autograd.Function):
    """This process's share of an encoder forwards and backwards, its parameters' gradients those of the whole batch."""

    @staticmethod
    def forward(ctx, encoder, compute, grad, points, *parameters):
        ctx.set_materialize_grads(False)  # what nobody uses has no gradient, as in one process
        ctx.count, ctx.spare = count, spare = len(points), -len(points) % size()
        if spare:
            if encoder.training:
                raise ValueError(f"{count} clouds cannot be shared by {size()} processes in training mode")
            points = torch.cat([points, points[-1:].expand(spare, -1, -1)])  # in eval mode each cloud is on its own
        ctx.points = points.chunk(size())[rank()].detach().requires_grad_(grad and points.requires_grad)
        fast.pool = pool
        try:
            with torch.set_grad_enabled(grad):
                ctx.out = compute(ctx.points)
        finally:
            fast.pool = None
        ctx.parameters = parameters
        return tuple(gather(out.detach())[:count] for out in ctx.out)

    @staticmethod
    def backward(ctx, *grads):
        # all processes have computed one and the same loss, so each has the whole gradient of what was gathered
        padded = lambda grad: torch.cat([grad, grad.new_zeros(ctx.spare, *grad.shape[1:])])
        used = [(out, padded(grad).chunk(size())[rank()]) for out, grad in zip(ctx.out, grads) if grad is not None]
        needed = ctx.needs_input_grad[3:]
        wanted = [tensor for tensor, need in zip((ctx.points, *ctx.parameters), needed) if need]
        outs, own = zip(*used)
        found = torch.autograd.grad(outs, wanted, own, retain_graph=True, allow_unused=True)
        by_tensor = {id(t): None if grad is None else grad.clone() for t, grad in zip(wanted, found)}
        add_over_processes([by_tensor[id(t)] for t in ctx.parameters if by_tensor.get(id(t)) is not None])
        points = gather(by_tensor[id(ctx.points)])[: ctx.count] if needed[0] else None
        return None, None, None, points, *(by_tensor.get(id(t)) for t in ctx.parameters)


def gather(x):
    """The rows of all processes, in their order: (b, ...) -> (b * size(), ...)."""
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


# ---------------------------------------------------------------- batch norm of the whole batch
class Total(torch.autograd.Function):
    """The sum over all processes: what follows from it here has a share in the loss, so gradients add up, too."""

    @staticmethod
    def forward(ctx, x):
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, grad):
        return Total.forward(ctx, grad)


def pool(moments, count):
    """Mean (C,) and covariance (C, C) of `count` rows here -> those of the rows of all processes, and their number."""
    mean = Total.apply(moments[0]) / size()
    apart = moments[0] - mean  # about the common mean, so that no digits cancel
    return (mean, Total.apply(moments[1] + apart.outer(apart)) / size()), count * size()


class PooledNorm(nn.BatchNorm1d):
    """Batch norm of the rows (B, C) of all processes, as of one. (torch's SyncBatchNorm needs a GPU.)"""

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        others = size() if fast.pool else 1  # 1: all processes have all rows
        total = (lambda each: Total.apply(each) / others) if fast.pool else (lambda each: each)
        mean, count = total(x.mean(0)), len(x) * others
        var = total(((x - mean) ** 2).mean(0))
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (count / (count - 1)), self.momentum)
        return (x - mean) * torch.rsqrt(var + self.eps) * self.weight + self.bias
