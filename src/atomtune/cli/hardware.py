"""`--base`, `--dtype` and `--device`: the same options in every command that opens a base."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from atomtune.storage.reading import AdapterInfo


@Parameter(name="*")
@dataclass(frozen=True)
class Hardware:
    """Where the base runs, and in which precision."""

    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Precision of the base. auto: bfloat16 on an accelerator (float16 if the accelerator has no bfloat16),
    float32 on a CPU."""
    device: str = "auto"
    """Where the base runs: auto (the accelerator if there is one), cpu, cuda, cuda:1, mps, xpu."""

    def for_training(self) -> dict[str, Any]:
        """The same as options of `customize`, without those that are "auto"."""
        given = {"mixed_precision": self.dtype, "device": self.device}
        return {name: value for name, value in given.items() if value != "auto"}


@Parameter(name="*")
@dataclass(frozen=True)
class Base(Hardware):
    """Which base, where it runs, and in which precision."""

    base: str | None = None
    """Base model: "moji", a folder, or a hub name. By default the one that the adapter names; without an adapter,
    moji."""

    def name(self, adapter: "AdapterInfo | None" = None) -> str:
        """Name of the base to open. Raises `UserError` if neither the command nor the adapter names one."""
        from atomtune.bases import MOJI

        return self.base or (adapter.base if adapter else MOJI)

    def open(
        self, adapter: "AdapterInfo | None" = None, quantize: str | None = None, offloaded: bool = False
    ) -> "DiffusionPipeline":
        """Open the base; if it will be `offloaded`, on the CPU in the precision of the device. Raises `UserError`."""
        from atomtune import bases
        from atomtune.devices import pick_device, pick_dtype, use_idle_cores

        dtype, device = self.dtype, pick_device(self.device)
        if offloaded:
            dtype, device = pick_dtype(dtype, device), None
        pipe = bases.load_base(self.name(adapter), dtype, device, quantize)
        use_idle_cores(bases.denoiser(pipe))
        return pipe


DEFAULT_HARDWARE = Hardware()
DEFAULT_BASE = Base()
