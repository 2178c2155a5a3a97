"""A training step as one CUDA graph.

A step of moji is some thousand small kernels, and launching them one by one takes a card's host several times as long
as the card needs to run them.
"""

from collections.abc import Callable

import torch
from torch import Tensor


class Captured:
    """A function without arguments, run as it is three times, then captured, and replayed from there on.

    It must read its inputs from tensors that stay where they are, draw from `generator` alone, and never wait for the
    card. What it returns is written anew by each call. Where `generator` is not on a CUDA card it just runs.
    """

    def __init__(self, function: Callable[[], Tensor], generator: torch.Generator) -> None:
        self.function, self.generator, self.calls = function, generator, 0
        self.on_card = generator.device.type == "cuda"
        self.result = torch.empty(0)

    def __call__(self) -> Tensor:
        self.calls += 1
        if not self.on_card:
            return self.function()
        if self.calls <= 3:  # on a stream of its own, as capturing wants it
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self.result = self.function()
            torch.cuda.current_stream().wait_stream(stream)
            return self.result
        if self.calls == 4:
            self.graph = torch.cuda.CUDAGraph()
            self.graph.register_generator_state(self.generator)
            with torch.cuda.graph(self.graph):
                self.result = self.function()
        self.graph.replay()
        return self.result
