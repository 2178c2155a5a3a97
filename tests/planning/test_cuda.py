"""Functions act as on a card: the precision of autocast, and attention without maps."""

import re
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from atomtune.planning.cuda import FLOAT32, LOWER, WIDEST, CudaFunctions
from atomtune.planning.storages import Storages

HEADER = Path(torch.__file__).parent / "include" / "ATen" / "autocast_mode.h"
SECTIONS = {"LOWER_PRECISION_FP": LOWER, "FP32": FLOAT32, "FP32_SET_OPT_DTYPE": FLOAT32, "PROMOTE": WIDEST}


@pytest.mark.parametrize("section", SECTIONS)
def test_the_lists_are_those_of_the_installed_torch(section):
    """What begins with an underscore is not called from Python; torch's grid_sampler is too, by another name."""
    text = HEADER.read_text()
    listed = re.search(rf"define AT_FORALL_{section}\(_\)(.*?)\n\n", text, re.DOTALL)
    assert listed is not None
    names = {name for name in re.findall(r"\b_\((\w+)", listed[1]) if not name.startswith("_")}
    assert len(names) > 5
    assert names <= SECTIONS[section] | {"lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"}


def test_precision_is_that_of_autocast():
    half, full = torch.zeros(2, 8, dtype=torch.bfloat16), torch.zeros(2, 8)
    with CudaFunctions(torch.bfloat16):
        assert F.linear(full, full).dtype == torch.bfloat16
        assert F.layer_norm(half, (8,)).dtype == torch.float32
        assert half.softmax(-1).dtype == half.pow(2).dtype == torch.float32
        assert (half @ full.T).dtype == torch.bfloat16
        assert (half + half).dtype == F.silu(half).dtype == torch.bfloat16
        assert F.linear(full.double(), full.double()).dtype == torch.float64
    with CudaFunctions():
        assert F.layer_norm(half, (8,)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "width, mask, dtype, has_map",
    [
        (64, None, torch.bfloat16, False),
        (72, None, torch.float32, False),
        (64, torch.float32, torch.bfloat16, False),
        (64, torch.bool, torch.bfloat16, False),
        (70, torch.bool, torch.bfloat16, True),  # no kernel takes this width with a mask
    ],
)
def test_attention_stores_a_map_only_where_a_card_does(width, mask, dtype, has_map):
    tokens = 512
    query, key, value = (torch.zeros(1, 2, tokens, width, dtype=dtype, device="meta") for _ in range(3))
    given = None if mask is None else torch.zeros(1, 1, 1, tokens, dtype=mask, device="meta")
    with torch.no_grad(), Storages() as seen, CudaFunctions():
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=given)
    assert mixed.shape == value.shape and mixed.dtype == dtype
    assert (seen.peak > 2 * tokens * tokens) == has_map


def test_storages_count_what_is_alive():
    with Storages("cpu") as seen:
        a = torch.zeros(1000)
        b = a[10:]  # shares the storage
        c = a + 1
        assert (seen.live, seen.peak) == (8000, 8000)
        del a, c
        assert (seen.live, seen.peak) == (4000, 8000)
        del b
        assert seen.live == 0
