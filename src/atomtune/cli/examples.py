"""`atomtune examples`: images and prompts to try everything with."""

from pathlib import Path

from atomtune.shell import command_line


def examples(folder: Path, /) -> None:
    """Lay out images and prompts to try everything with: the ones that the documentation uses.

    Two subjects and a style that moji has never seen, one image to edit, and prompts. Nothing that is
    there is replaced.

    Args:
        folder: Where to put them. The pages of the documentation use `photos`.
    """
    from atomtune.shipped import example_images

    folder = example_images(folder)
    for entry in sorted(folder / name for name in ("teapot", "octopus", "openmoji", "teapot.png", "prompts.txt")):
        print(f"{entry}{'/' if entry.is_dir() else ''}")
    learn = command_line("customize", folder / "teapot", "--class-name", "teapot", "--out", "runs/teapot")
    print(f"Who drew them: {folder / 'LICENSES.md'}\nNow learn one: {learn}")
