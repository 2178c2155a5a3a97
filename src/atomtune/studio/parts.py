"""What the tabs share: how a handler reports errors, and the controls that several of them have."""

from __future__ import annotations

import functools
import html
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
from PIL import Image

from atomtune.easel import Stopped
from atomtune.errors import UserError, check_seed

DRAFT = 5
"""Sampling steps of a draft."""
SHOWN = 512
"""Pixels, the least width of an image on the page: moji's have 64."""
Handler = Callable[..., Iterator[dict[Any, Any]]]


def status() -> gr.HTML:
    """A line that says what happens, or what was wrong, to screen readers too."""
    return gr.HTML(said(""), elem_classes="status", padding=False)


def said(sentence: str, wrong: bool = False) -> str:
    """The content of a `status`."""
    return f'<p role="status" class="{"wrong" if wrong else "right"}">{html.escape(sentence)}</p>'


def reporting(line: gr.HTML, handler: Handler) -> Handler:
    """The handler, with its mistakes as a sentence in `line`. It yields {component: value}."""

    @functools.wraps(handler)
    def reported(*args: Any) -> Iterator[dict[Any, Any]]:
        try:
            yield from handler(*args)
        except UserError as error:
            yield {line: said(f"{str(error)[:1].upper()}{str(error)[1:]}", wrong=True)}
        except Stopped:
            return

    return reported


def enlarged(image: Image.Image) -> Image.Image:
    """The image at `SHOWN` pixels or more."""
    factor = max(1, SHOWN // image.width)
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC)


def picture(label: str, alt: str = "") -> gr.Image:
    """An image that is only shown."""
    return gr.Image(
        label=label,
        alt_text=alt or label,
        type="pil",
        format="png",
        interactive=False,
        buttons=["download", "fullscreen"],
    )


def subject(workspace: Any, label: str = "Adapter") -> tuple[gr.Dropdown, gr.Textbox, gr.Number, gr.Slider]:
    """Controls for an adapter, a prompt, a seed and a number of steps."""
    names = workspace.adapters()
    with gr.Row():
        run = gr.Dropdown(names, value=names[0], label=label, scale=2)
        prompt = gr.Textbox(first_prompt(workspace, names[0]), label="Prompt", scale=4, max_lines=2)
    with gr.Row():
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, scale=1)
        steps = gr.Slider(2, 50, 20, step=1, label="Sampling steps", scale=3)
    run.focus(lambda: gr.Dropdown(choices=workspace.adapters()), None, run, show_progress="hidden")
    run.input(lambda name: first_prompt(workspace, name), run, prompt, show_progress="hidden")
    return run, prompt, seed, steps


def first_prompt(workspace: Any, name: str) -> str:
    """A prompt that shows what an adapter learnt."""
    try:
        return next(iter(workspace.info(name).prompts(1)), "")
    except UserError:
        return ""


def checked(prompt: str, seed: Any, steps: Any) -> tuple[str, int, int]:
    """What was typed. Raises `UserError`."""
    check_seed(seed)
    if not prompt.strip():
        raise UserError("the prompt is empty: say what to draw.")
    return prompt.strip(), int(seed), int(steps)
