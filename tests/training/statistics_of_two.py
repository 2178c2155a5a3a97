"""Run by test_statistics.py in each of two processes, which see half of every batch and follow the whole of it."""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.testing import assert_close

sys.path.insert(0, str(Path(__file__).parents[2]))

from atomtune.adapters import adapted_layers
from tests.adapters.tiny import inputs
from tests.training.test_statistics import OPTIONS, adapted, half, statistics, trained

accelerator = Accelerator(cpu=True)
for options in OPTIONS:
    batches = [half(inputs(), 0), half(inputs(), 1)]
    wanted = trained(adapted(options), options, batches=batches)  # one process that sees both
    model = adapted(options)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    for _ in range(3):
        batch = batches[accelerator.process_index]
        accelerator.backward(wrapped(**batch, return_dict=False)[0].square().mean())
        for layer in adapted_layers(model):
            layer.dictionary("default").sigma.average_observations(lambda tensor: accelerator.reduce(tensor, "mean"))  # pyright: ignore
        optimizer.step()
        optimizer.zero_grad()
    for own, plain in zip(statistics(model), wanted, strict=True):
        # batch_topk takes λ of what one process sees, as it does of a micro batch; float32, summed in another order
        assert_close(own, plain)
        for other in accelerator.gather(own[None]):  # pyright: ignore[reportGeneralTypeIssues]
            assert torch.equal(own, other)
accelerator.end_training()
