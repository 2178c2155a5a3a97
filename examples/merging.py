"""Learn two subjects apart, make one adapter of both, and draw either with it: `python examples/merging.py`.

Less than half a minute on two cores. The teapot comes with the package, the ball is drawn here. All goes to
runs/example-*.
"""

from pathlib import Path

from PIL import Image, ImageDraw

import atomtune

TEAPOT = atomtune.example_images("runs/example-images") / "teapot"
BALL = Path("runs/example-ball-images")

BALL.mkdir(parents=True, exist_ok=True)
for background in ("green", "yellow", "white"):
    image = Image.new("RGB", (64, 64), background)
    draw = ImageDraw.Draw(image)
    draw.ellipse((12, 12, 52, 52), fill="red")
    draw.pieslice((12, 12, 52, 52), 45, 225, fill="blue")
    image.save(BALL / f"{background}.png")
    (BALL / f"{background}.txt").write_text(f"a ohwx ball on a {background} background")

atomtune.customize(TEAPOT, class_name="teapot", token="sks", out="runs/example-one", steps=50)
atomtune.customize(BALL, class_name="ball", token="ohwx", out="runs/example-two", steps=50)
both = atomtune.merge(["runs/example-one", "runs/example-two"], "runs/example-both")  # adds exactly what the two add

pipe = atomtune.load_base("moji")
atomtune.load_adapter(pipe, both)
print(f"{len(atomtune.board(pipe))} atoms in one adapter")
for name in ("sks teapot", "ohwx ball"):
    file = Path(both) / f"{name.replace(' ', '-')}.png"
    atomtune.generate(pipe, f"a {name} on a blue background", seed=1)[0].image.save(file)
    print(file)
