"""What functions do on a CUDA card, for tensors that are on none: autocast, and the kernel of attention.

Training runs the denoiser under autocast, which computes products in half precision and norms in float32, and so
decides how wide the activations are. torch applies it by device and has none for the meta device; here the same lists
act on the calls of functions. The tests compare the lists with those of the installed torch. Attention on the meta
device would be plain products with a map of N × N; a card's kernels store none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

HALF = (torch.float16, torch.bfloat16)
LOWER = set(
    "conv1d conv2d conv3d conv_tbc conv_transpose1d conv_transpose2d conv_transpose3d convolution prelu addmm addmv "
    "addr matmul einsum mm mv linalg_vecdot linear addbmm baddbmm bmm chain_matmul linalg_multi_dot "
    "scaled_dot_product_attention __matmul__ __rmatmul__".split()
)
"""Computed in half precision."""

FLOAT32 = set(
    "acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan pow softplus layer_norm "
    "native_layer_norm rms_norm group_norm frobenius_norm nuclear_norm cosine_similarity poisson_nll_loss "
    "cosine_embedding_loss nll_loss nll_loss2d hinge_embedding_loss kl_div l1_loss smooth_l1_loss huber_loss mse_loss "
    "margin_ranking_loss multilabel_margin_loss soft_margin_loss triplet_margin_loss multi_margin_loss "
    "binary_cross_entropy_with_logits dist pdist cdist renorm logsumexp upsample_nearest1d upsample_nearest2d "
    "upsample_nearest3d upsample_linear1d upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d prod softmax "
    "log_softmax cumprod cumsum linalg_vector_norm linalg_matrix_norm sum norm "
    "interpolate normalize __pow__ __rpow__ __rdiv__ __rtruediv__".split()
)
"""Computed in float32. The last line are Python's names of functions that call the others."""

WIDEST = set("addcdiv addcmul atan2 bilinear cross dot vdot grid_sampler index_put tensordot scatter_add".split())
"""Computed in the widest precision of the arguments."""


class CudaFunctions(TorchFunctionMode):
    """Inside the block, functions act as on a CUDA card; with `autocast`, as under autocast to that precision."""

    def __init__(self, autocast: torch.dtype | None = None) -> None:
        super().__init__()
        self.autocast = autocast

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if self.autocast is not None and kwargs.get("dtype") is None:
            args, kwargs = self._cast(name, args, kwargs)
        if name == "scaled_dot_product_attention" and any(each.is_meta for each in _floats((args, kwargs))):
            return attention(*args, **kwargs)
        return func(*args, **kwargs)

    def _cast(self, name: str, args: Any, kwargs: Any) -> Any:
        chosen = self.autocast if name in LOWER else torch.float32 if name in FLOAT32 else None
        if name in WIDEST and any(each.dtype == torch.float32 for each in _floats((args, kwargs))):
            chosen = torch.float32
        if chosen is None:
            return args, kwargs
        return tree_map_only(Tensor, lambda each: _to(each, chosen), (args, kwargs))


def kernel(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> SDPBackend:
    """The kernel that `scaled_dot_product_attention` takes on a CUDA card of compute capability 8.0 or above.

    Flash attention needs half precision, equal widths up to 256 and no mask; the memory-efficient kernel, widths that
    are a multiple of 16 bytes. Both store no attention map. All else is done by plain products, with a map.
    """
    width = query.shape[-1]
    equal = width == key.shape[-1] == value.shape[-1]
    if mask is None and query.dtype in HALF and width <= 256 and equal:
        return SDPBackend.FLASH_ATTENTION
    aligned = all(tensor.shape[-1] * tensor.element_size() % 16 == 0 for tensor in (query, key, value))
    if aligned and query.dtype in (*HALF, torch.float32):
        return SDPBackend.EFFICIENT_ATTENTION
    return SDPBackend.MATH


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`scaled_dot_product_attention` on the meta device, by the operations that a CUDA card would run."""
    chosen, width = kernel(query, key, value, attn_mask), query.shape[-1]
    aten: Any = torch.ops.aten
    scale = width**-0.5 if scale is None else scale
    if chosen == SDPBackend.FLASH_ATTENTION:
        query, key, value = (F.pad(each, (0, -width % 8)) if width % 8 else each for each in (query, key, value))
        mixed = aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, False, scale=scale)
        return mixed[0][..., :width]
    if enable_gqa:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = (each.repeat_interleave(repeats, dim=-3) for each in (key, value))
    if chosen == SDPBackend.MATH:
        return F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale)
    bias = attn_mask
    if bias is not None:
        bias = torch.zeros_like(bias, dtype=query.dtype) if bias.dtype == torch.bool else bias.to(query.dtype)
        bias = F.pad(bias, (0, -bias.shape[-1] % 8))[..., : bias.shape[-1]]
        bias = bias.expand(*query.shape[:-1], key.shape[-2])
    trained = torch.is_grad_enabled() and any(each.requires_grad for each in (query, key, value))
    mixed = aten._scaled_dot_product_efficient_attention(
        query, key, value, bias, trained, dropout_p, is_causal, scale=scale
    )
    return mixed[0]


def _floats(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _to(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    wide = tensor.dtype == torch.float64  # autocast leaves these alone
    return tensor.to(dtype) if tensor.is_floating_point() and not wide else tensor
