"""Learn a teapot, then turn its atoms: fewer a token, the best alone, one off: `python examples/steering.py`.

Less than half a minute on two cores. Once the board is there, nothing is trained again. Images go to
runs/example-steering.
"""

from pathlib import Path

import torch

import atomtune

IMAGES = atomtune.example_images("runs/example-images") / "teapot"
RUN = Path("runs/example-steering")
PROMPT = "a sks teapot on a blue background"

atomtune.customize(IMAGES, class_name="teapot", out=RUN, steps=60)
pipe = atomtune.load_base("moji")
atomtune.load_adapter(pipe, RUN)
board = atomtune.board(pipe)


def draw(name: str) -> None:
    atomtune.generate(pipe, PROMPT, seed=1)[0].image.save(RUN / f"{name}.png")
    print(RUN / f"{name}.png")


draw("all")
board.density = 0.01  # every token uses fewer atoms
draw("sparser")
board.reset()
board.keep(40)  # the 40 atoms of the most energy, over all layers
draw("best-40")
board.reset()
atoms = list(board)
strongest = atoms[int(torch.cat(board.mean_energy()).argmax())].address
with board.muted(strongest):  # what it alone brings is missing
    draw("without-the-strongest")
print(f"the strongest atom is {strongest}, of {len(board)}")
