"""A transformer VAE of digits, its pretraining, and atoms or LoRA on the attention layers of its decoder.

    encoder   noisy picture → 16 patches of 7×7 → blocks → mean → μ, log σ²      z = μ + σ ε, 16 numbers
    decoder   z → 16 tokens → blocks → 16 patches (logits)                       block: x + Attn(LN x); x + MLP(LN x)
    loss      cross-entropy to the clean picture + β KL(q(z|x) ‖ N(0, 1)), per pixel

The attention layers are diffusers' own, so atoms and LoRA are put there by PEFT as in any other model.
"""

import copy
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from jaxtyping import Float
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.nn import functional as F

from atomtune import AtomConfig, adapted_layers
from atomtune.files import atomic_file
from atomtune.method.dictionary import SparseDictionary
from experiments.common.digits import CACHE, digits

PATCH, SIDE = 7, 4
TOKENS = SIDE * SIDE


@dataclass(frozen=True)
class VAEConfig:
    """The autoencoder and its pretraining on digits 5 to 9."""

    width: int = 64
    heads: int = 4
    encoder_layers: int = 2
    decoder_layers: int = 2
    latents: int = 16
    noise: float = 0.5
    beta: float = 0.1
    epochs: int = 20
    batch: int = 32
    lr: float = 2e-3


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, heads=heads, dim_head=width // heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Encoder(nn.Module):
    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.embed = nn.Linear(PATCH * PATCH, config.width)
        self.positions = nn.Parameter(0.1 * torch.randn(TOKENS, config.width))
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.encoder_layers))
        self.norm = nn.LayerNorm(config.width)
        self.to_latent = nn.Linear(config.width, 2 * config.latents)

    def forward(self, pictures: Float[Tensor, "batch 28 28"]) -> tuple[Tensor, Tensor]:
        """μ and log σ² of the latents."""
        patches = pictures.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH).flatten(3).flatten(1, 2)
        x = self.embed(patches) + self.positions
        for block in self.blocks:
            x = block(x)
        mean, log_variance = self.to_latent(self.norm(x).mean(1)).chunk(2, dim=-1)
        return mean, log_variance


class Decoder(nn.Module):
    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.embed = nn.Linear(config.latents, TOKENS * config.width)
        self.positions = nn.Parameter(0.1 * torch.randn(TOKENS, config.width))
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(config.width)
        self.to_pixels = nn.Linear(config.width, PATCH * PATCH)

    def forward(self, latents: Float[Tensor, "batch latents"]) -> Float[Tensor, "batch 28 28"]:
        """Logits of the pixels."""
        x = self.embed(latents).unflatten(-1, (TOKENS, -1)) + self.positions
        for block in self.blocks:
            x = block(x)
        patches = self.to_pixels(self.norm(x)).unflatten(-1, (PATCH, PATCH)).unflatten(1, (SIDE, SIDE))
        return patches.transpose(2, 3).flatten(3).flatten(1, 2)


class VAE(nn.Module):
    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(config), Decoder(config)


def pretrained(config: VAEConfig, seed: int) -> VAE:
    """The autoencoder, pretrained to denoise digits 5 to 9; kept in the cache."""
    name = "-".join(f"{value:g}" for value in (*asdict(config).values(), seed))
    file = CACHE / f"vae-{name}.pt"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vae = VAE(config)
        if file.exists():
            vae.load_state_dict(torch.load(file))
            return vae.eval().requires_grad_(False)
        pictures = digits("train", 5, 6, 7, 8, 9)
        steps = config.epochs * -(-len(pictures) // config.batch)
        optimizer = torch.optim.AdamW(vae.parameters(), lr=config.lr, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, steps, pct_start=0.1)
        for batch in batches(pictures, config.batch, config.epochs):
            mean, log_variance = vae.encoder(batch + config.noise * torch.randn_like(batch))
            logits = vae.decoder(mean + (log_variance / 2).exp() * torch.randn_like(mean))
            kl = (mean.square() + log_variance.exp() - log_variance - 1).sum(-1).mean() / 2
            loss = F.binary_cross_entropy_with_logits(logits, batch) + config.beta * kl / 784
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    with atomic_file(file) as temporary:
        torch.save(vae.state_dict(), temporary)
    return vae.eval().requires_grad_(False)


def batches(pictures: Tensor, size: int, epochs: int) -> Iterator[Tensor]:
    for _ in range(epochs):
        yield from (pictures[chosen] for chosen in torch.randperm(len(pictures)).split(size))


@dataclass(frozen=True)
class Adapter:
    """Atoms, or LoRA, on every attention layer of the decoder, and their training on threes."""

    method: str = "atoms"  # or lora, on the value projections
    num_atoms: int = 100
    k: int = 2
    mix_first: bool = True
    rank: int = 6
    epochs: int = 20
    batch: int = 32
    lr: float = 3e-3


def adapt(vae: VAE, adapter: Adapter, noise: float, seed: int) -> VAE:
    """A copy of the autoencoder whose decoder learned threes; everything but the adapter is frozen."""
    adapted = copy.deepcopy(vae)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if adapter.method == "atoms":
            config: Any = AtomConfig(
                target_modules=["attn"],
                num_atoms=adapter.num_atoms,
                density=adapter.k / adapter.num_atoms,
                mix_first=adapter.mix_first,
            )
        else:
            config = LoraConfig(r=adapter.rank, lora_alpha=adapter.rank, target_modules=["to_v"])
        inject_adapter_in_model(config, adapted.decoder)
        train(adapted, adapter, noise, adapter.epochs)
    return adapted


def train(adapted: VAE, adapter: Adapter, noise: float, epochs: int) -> None:
    """Denoise threes with whatever the adapter trains."""
    weights = [weight for weight in adapted.parameters() if weight.requires_grad]
    optimizer = torch.optim.Adam(weights, lr=adapter.lr)
    threes = digits("train", 3)
    for batch in batches(threes, adapter.batch, epochs):
        with torch.no_grad():
            latents = adapted.encoder(batch + noise * torch.randn_like(batch))[0]
        loss = F.binary_cross_entropy_with_logits(adapted.decoder(latents), batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


def dictionaries(vae: VAE) -> list[SparseDictionary]:
    return [layer.dictionary("default") for layer in adapted_layers(vae)]


@torch.no_grad()
def codes(vae: VAE, latents: Tensor) -> Float[Tensor, "layers batch tokens atoms"]:
    """What multiplies D in every layer, as it does for these latents."""
    found: list[Tensor] = []
    hooks = [own.decoder.register_forward_pre_hook(lambda _, args: found.append(args[0])) for own in dictionaries(vae)]
    vae.decoder(latents)
    for hook in hooks:
        hook.remove()
    return torch.stack(found)


def energies(vae: VAE, latents: Tensor) -> Float[Tensor, "layers atoms"]:
    """mean |s_m| · ‖d_m‖ over the tokens of these latents: how much an atom does."""
    sizes = torch.stack([own.decoder.weight.norm(dim=1) for own in dictionaries(vae)])
    return codes(vae, latents).abs().mean((1, 2)) * sizes


def keep(vae: VAE, kept: Float[Tensor, "layers atoms"]) -> VAE:
    """A copy with only these atoms (1; the others 0) in its dictionaries: the others are neither chosen nor used."""
    pruned = copy.deepcopy(vae)
    with torch.no_grad():
        for own, mask in zip(dictionaries(pruned), kept):
            own.encoder.weight *= mask[:, None]
            own.decoder.weight *= mask[:, None]
    return pruned


def best(scores: Float[Tensor, "layers atoms"], count: int) -> Float[Tensor, "layers atoms"]:
    """1 for the `count` atoms of the highest scores over all layers."""
    flat = scores.flatten()
    return torch.zeros_like(flat).index_fill(0, flat.topk(count).indices, 1.0).view_as(scores)
