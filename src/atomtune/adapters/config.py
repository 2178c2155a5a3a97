"""AtomConfig: all options of an atom adapter. Saved as `adapter_config.json` by PEFT."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig, PeftType
from torch import nn

from atomtune.adapters.targets import preset_targets
from atomtune.errors import UserError
from atomtune.method.floor import check_share
from atomtune.method.sigma import SIGMAS, SigmaConfig


@dataclass
class AtomConfig(PeftConfig):
    """ΔO = σ(A X W_s) D on chosen layers of a frozen model.

        model = get_peft_model(transformer, AtomConfig(target_modules=["attn1"], num_atoms=256, k=10))

    Raises `UserError` when a value is out of range or two values contradict each other.

    Args:
        target_modules: Names (or one regular expression) of the modules to adapt. An attention module ("attn1") gets
            attention atoms, an `nn.Linear` ("to_v", "v_proj") gets linear atoms. Default: the targets that `for_model`
            picks for the model.
        num_atoms: M, the number of atoms in each adapted layer.
        num_atoms_pattern: M of layers that differ, by name or regular expression, as LoRA's `rank_pattern`. Pruning
            writes it.
        activation: σ: "topk" (signed, by magnitude), "batch_topk" (in training, k a token on average over the batch;
            later, the estimated threshold of training), "soft" (soft threshold), "relu" (ReLU(x − λ)) or "jumprelu" (x
            where x > λ, λ learned).
        density: ρ, the share of a layer's atoms that one token may use, above 0 and at most 1: k = max(1, round(ρM)).
            For "topk" and "batch_topk". Default: 0.04, or k / num_atoms. A list after concatenation: one value for each
            concatenated adapter.
        k: The number of atoms that one token may use in each layer, from 1 to num_atoms, instead of `density`. A layer
            of fewer atoms, by `num_atoms_pattern`, may use all of them.
        threshold: λ, for "soft" and "relu"; for "jumprelu" its first value.
        threshold_units: Units of λ: those of the coefficients ("absolute"), or the running root mean square of the
            layer's coefficients ("scale"), which is estimated in training and then fixed.
        unit_encoder: Scale the columns of W_s to norm 1 when they are used, so that coefficients cannot outgrow a fixed
            λ.
        floor: q, from 0 to 1: an atom fires only where |s_m| is above the q-quantile of its |s_m| on other inputs,
            those that the adapter should leave alone (`board.measure_floor`). 0: no floor; 1: above all that was seen.
        mix_first: Attention atoms only. True: σ(A X W_s), exactly k atoms a token (eq. 8). False: A σ(X W_s), the
            shortcut of the paper's experiments, in which mixing makes the codes denser.
        exclude_modules: Names (or one regular expression) of modules that are not adapted although `target_modules`
            matches them.
        layers_to_transform: Adapt only these blocks, counted from 0. Needs `target_modules` to be a list of names.
        layers_pattern: Name of the module list whose blocks `layers_to_transform` counts, such as
            "transformer_blocks". Default: the first one.
        init_weights: True: D = 0, so that the adapted model starts as the base. False: D is random, for tests.
        modules_to_save: Modules outside the adapter that are trained in full and saved with it.
    """

    target_modules: list[str] | str | None = field(
        default=None,
        metadata={
            "help": "Names, or one regular expression, of the modules to adapt. Default: those of the model's family."
        },
    )
    num_atoms: int = field(default=256, metadata={"help": "M, the number of atoms in each adapted layer."})
    num_atoms_pattern: dict[str, int] = field(
        default_factory=dict, metadata={"help": "M of layers that differ, by name or regular expression."}
    )
    activation: str = field(default="topk", metadata={"help": 'σ: "topk", "batch_topk", "soft", "relu" or "jumprelu".'})
    density: float | list[float] = field(  # pyright: ignore[reportAssignmentType]
        default=None,
        metadata={
            "help": "ρ, the share of a layer's atoms that one token may use, for topk and batch_topk. Default: 0.04."
        },
    )
    k: int | None = field(
        default=None, metadata={"help": "The number of atoms that one token may use in each layer, instead of density."}
    )
    threshold: float = field(default=0.1, metadata={"help": "λ, for soft and relu; for jumprelu its first value."})
    threshold_units: str = field(
        default="absolute",
        metadata={
            "help": 'Units of λ: those of the coefficients ("absolute"), or their running root mean square ("scale").'
        },
    )
    unit_encoder: bool = field(
        default=False, metadata={"help": "Whether the columns of W_s are scaled to norm 1 when they are used."}
    )
    floor: float = field(
        default=0.0,
        metadata={"help": "q: an atom fires only above this quantile of its |s| on other inputs. 0: no floor."},
    )
    mix_first: bool = field(
        default=True,
        metadata={"help": "Attention atoms: True for σ(A X W_s), exactly k atoms a token; False for A σ(X W_s)."},
    )
    exclude_modules: list[str] | str | None = field(
        default=None,
        metadata={
            "help": "Names, or one regular expression, of modules that target_modules matches and that stay unadapted."
        },
    )
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Adapt only these blocks, counted from 0."}
    )
    layers_pattern: list[str] | str | None = field(
        default=None,
        metadata={"help": "Name of the module list whose blocks layers_to_transform counts. Default: the first one."},
    )
    init_weights: bool = field(
        default=True, metadata={"help": "True: D = 0, the adapted model starts as the base. False: D is random."}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules outside the adapter that are trained in full and saved with it."}
    )

    @classmethod
    def for_model(cls, model: nn.Module, **overrides: Any) -> AtomConfig:
        """A configuration with the targets that suit the family of `model`; `overrides` are any other options.

        Attention atoms on self-attention, as in the paper, if the model has diffusers' stock attention (PixArt, DiT,
        UNet). Otherwise linear atoms on the value projections, of both streams if there are two; or, if q, k and v are
        one product (GPT-2), on the output projection of attention. `get_peft_model(model, AtomConfig())` takes the same
        targets, as PEFT's own methods do for the models they know.

        Raises `UserError`, with the modules of this model that could carry atoms, if the family is not known.
        """
        if "target_modules" not in overrides:
            overrides["target_modules"] = preset_targets(model)
        return cls(**overrides)

    @classmethod
    def check_kwargs(cls, **kwargs: Any) -> dict[str, Any]:
        """The fields of a saved configuration, without the old option `density_scope`, which `activation` has
        replaced."""
        kwargs.pop("density_scope", None)
        return kwargs

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType("ATOMS")
        for num_atoms in (self.num_atoms, *self.num_atoms_pattern.values()):
            if num_atoms < 1:
                raise UserError(f"num_atoms must be at least 1, got {num_atoms}.")
        self._set_density()
        self.sigma  # noqa: B018  refuses what is out of range
        check_share(self.floor)
        if self.layers_to_transform is None:
            if self.layers_pattern is not None:
                raise UserError(
                    "layers_pattern has no effect without layers_to_transform: give layers_to_transform too."
                )
        elif isinstance(self.target_modules, str):
            raise UserError(
                "layers_to_transform needs target_modules to be a list of names; with a regular expression, write the "
                "block numbers into it."
            )
        elif self.layers_pattern is None:
            # PEFT's default expects a name before that of the list, so it never matches "transformer_blocks.0.attn1".
            self.layers_pattern = r"[^.]+"

    def _set_density(self) -> None:
        """Of `density` and `k`, one is given; a saved configuration has both, which then say the same."""
        if self.k is None:
            self.density = 0.04 if self.density is None else self.density
            return
        if self.activation in SIGMAS and SIGMAS[self.activation].dial != "density":
            raise UserError(f"k belongs to topk and batch_topk, and activation is {self.activation}: give threshold.")
        if not isinstance(self.k, int) or not 1 <= self.k <= self.num_atoms:
            raise UserError(f"k must be a whole number from 1 to num_atoms = {self.num_atoms}, got {self.k!r}.")
        density = self.k / self.num_atoms
        if self.density not in (None, density):
            raise UserError(
                f"density and k both set how many atoms a token may use, got {self.density} and {self.k}: give one."
            )
        self.density = density

    @property
    def sigma(self) -> SigmaConfig:
        """σ and its dials, for a layer of `num_atoms` atoms."""
        return self.sigma_of(self.num_atoms)

    def sigma_of(self, num_atoms: int) -> SigmaConfig:
        """σ and its dials, for a layer of so many atoms."""
        density = self.density if self.k is None else min(1.0, self.k / num_atoms)
        return SigmaConfig(self.activation, density, self.threshold, self.threshold_units)
