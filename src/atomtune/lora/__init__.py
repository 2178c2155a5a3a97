"""LoRAs: open one, convert it into atoms, distill it into sparse ones."""
