"""What the atoms of an adapter do, measured."""
