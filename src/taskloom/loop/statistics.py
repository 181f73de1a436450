"""Running statistics of batch normalisation over the training data, for weights that were not trained with them.

What `torch.optim.swa_utils.update_bn` does, through `training_step`, because only the task knows how its model is
called.
"""

from __future__ import annotations

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from taskloom.data import feed
from taskloom.loop.facts import Parts
from taskloom.loop.run import Run, fit_arguments, generators_kept, modes_kept


def recompute_batch_norm(run: Run, parts: Parts, scope: str) -> None:
    """Replace the running statistics of the layers in train mode by those of one pass over the training data.

    Nothing else is left behind: no gradient, no random number drawn, no metric, and the counters of batches that layers
    with `momentum=None` average by are as before.

    Args:
        run: the parts of the fit.
        parts: whose training loader is read.
        scope: that the training step logs into; it is forgotten afterwards.
    """
    layers = [each for each in run.task.modules() if isinstance(each, _BatchNorm) and each.training]
    kept = [(each, each.momentum, each.num_batches_tracked) for each in layers if each.num_batches_tracked is not None]
    loader = parts.train
    if not kept or loader is None:
        return
    step = run.bind(fit_arguments(run.task.training_step, 2))
    counts = [count.clone() for _, _, count in kept]
    with generators_kept(run.strategy), modes_kept(run.task), torch.no_grad():
        for layer, _, _ in kept:
            layer.reset_running_stats()
            layer.momentum = None
        try:
            for batch_idx, batch in enumerate(feed(loader.loader, loader.length, run.transfer())):
                run.metrics.enter(scope, training=True)
                run.metrics.batch = batch
                step(batch, batch_idx)
        finally:
            run.metrics.batch = None
            run.metrics.forget([scope])
            for (layer, momentum, now), count in zip(kept, counts, strict=True):
                layer.momentum = momentum
                now.copy_(count)
