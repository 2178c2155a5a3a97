"""`--dtype` and `--device`: the same two options in every command that opens a base."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@Parameter(name="*")
@dataclass(frozen=True)
class Hardware:
    """Where the base runs, and in which precision."""

    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Precision of the base. auto: bfloat16 on an accelerator (float16 where it has no bfloat16), float32 on a CPU."""
    device: str = "auto"
    """Where the base runs: auto (the accelerator where there is one), cpu, cuda, cuda:1, mps, xpu."""

    def load_base(self, name: str) -> "DiffusionPipeline":
        """Open a base there. Raises `UserError`."""
        from atomtune import bases

        return bases.load_base(name, self.dtype, self.device)

    def for_training(self) -> dict[str, Any]:
        """The same as options of `customize`; what was not said is left to the run."""
        given = {"mixed_precision": self.dtype, "device": self.device}
        return {name: value for name, value in given.items() if value != "auto"}


AUTO = Hardware()
