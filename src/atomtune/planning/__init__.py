"""Will it fit the card? The memory that training and drawing need, before anything is loaded."""

from atomtune.planning.memory import MemoryPlan, plan_memory
from atomtune.planning.parts import known_bases

__all__ = ["MemoryPlan", "known_bases", "plan_memory"]
