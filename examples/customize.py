"""Teach moji a teapot from five images, and draw it where it has never stood: `python examples/customize.py`.

Less than half a minute on two cores; everything comes with the package. What it writes goes to runs/example-teapot.
"""

from pathlib import Path

import atomtune

IMAGES = atomtune.example_images("runs/example-images") / "teapot"  # yours: any folder with 1 to 6 images
RUN = Path("runs/example-teapot")

summary = atomtune.customize(IMAGES, class_name="teapot", out=RUN, steps=100)
print(f"learnt in {summary['seconds']:.0f} s: {summary['active_per_token']:.1f} atoms a token")

pipe = atomtune.load_base("moji")
atomtune.load_adapter(pipe, RUN)
prompts = ["a sks teapot on a red background", "a small sks teapot at the top on a black background"]
for number, drawing in enumerate(atomtune.generate(pipe, prompts, num=2, seed=1)):
    file = RUN / f"drawn-{number}.png"
    drawing.image.save(file)
    print(file)
