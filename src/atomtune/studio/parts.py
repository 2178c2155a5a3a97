"""What the tabs share: how a handler reports errors and is stopped, and the controls that several of them have."""

from __future__ import annotations

import functools
import html
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from atomtune.easel import Easel, Stopped
from atomtune.errors import UserError, check_seed
from atomtune.workspace import Workspace

DRAFT = 5  # sampling steps of a draft
Shown = Iterator[dict[Any, Any]]
"""What a handler yields: {component: value}."""
Lists = dict[gr.Dropdown, Callable[[], list[str]]]
"""Lists to choose from, and what stands in them now."""
QUIET: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None, "trigger_mode": "multiple"}
LIVE: dict[str, Any] = QUIET | {"show_progress": "minimal"}
DRAWS: dict[str, Any] = LIVE | {"js": "(...all) => [...all.slice(0, -1), performance.timeOrigin + performance.now()]"}
"""For a handler whose last input is when it was asked for: requests may come in another order than the keys."""


class Slider(gr.Slider):
    """While "-" or nothing is in its box, which is no number yet, it has the value that it began with."""

    def preprocess(self, payload: float) -> float:
        return super().preprocess(self.value if payload is None else payload)


slider = functools.partial(Slider, buttons=[])  # without a button that returns to what is no default of an adapter


def status() -> gr.HTML:
    """A line that says what happens, or what was wrong, to screen readers too."""
    return gr.HTML(said(""), elem_classes="status", padding=False)


def said(sentence: str, wrong: bool = False) -> str:
    """The content of a `status`."""
    return f'<p role="status" class="{"wrong" if wrong else "right"}">{html.escape(sentence)}</p>'


def reporting(line: gr.HTML, handler: Callable[..., Shown]) -> Callable[..., Shown]:
    """The handler, with its mistakes as a sentence in `line`."""

    @functools.wraps(handler)
    def reported(*args: Any) -> Shown:
        yield {line: gr.skip()}  # what yields nothing would empty every output
        try:
            yield from handler(*args)
        except UserError as error:
            sentence = str(error)
            if sentence.partition(" ")[0].isalpha():  # and not the name of a file
                sentence = sentence[:1].upper() + sentence[1:]
            yield {line: said(sentence, wrong=True)}
        except Stopped:
            return

    return reported


def stopping(button: gr.Button, easel: Easel, line: gr.HTML) -> None:
    """Let a button stop the drawing of the user who presses it."""

    def stop(request: gr.Request) -> str:
        easel.stop(str(request.session_hash))
        return said("Stopped.")

    button.click(stop, None, line, **QUIET)


def picture(label: str, alt: str = "") -> gr.Image:
    """An image that is only shown: give it `Workspace.picture`."""
    buttons: list[Any] = ["download", "fullscreen"]
    name = {"label": label or alt, "show_label": bool(label), "alt_text": alt or label}
    return gr.Image(**name, type="filepath", interactive=False, buttons=buttons)


def renewing(lists: Lists) -> None:
    """Keep lists up to date. One that is as it was is not sent again, because that would close it."""

    def now() -> list[list[str]]:
        found = {choices: choices() for choices in {*lists.values()}}
        return [found[choices] for choices in lists.values()]

    def renewed(known: list[list[str]]) -> list[Any]:
        new = now()
        return [new, *(gr.skip() if own == old else gr.Dropdown(choices=own) for own, old in zip(new, known))]

    known = gr.State(now())
    gr.Timer(2).tick(renewed, known, [known, *lists], **QUIET)


def subject(workspace: Workspace) -> tuple[gr.Dropdown, gr.Textbox, gr.Number, gr.Slider, gr.Number]:
    """Controls for an adapter, a prompt, a seed and a number of steps; and the last input of `DRAWS`."""

    def first_prompt(name: str) -> str:
        try:
            return next(iter(workspace.info(name).prompts(1)), "")
        except UserError:  # said when it is drawn
            return ""

    with gr.Row():
        run = gr.Dropdown(workspace.adapters(), value=workspace.adapters()[0], label="Adapter", scale=2)
        prompt = gr.Textbox(first_prompt(workspace.adapters()[0]), label="Prompt", scale=4, max_lines=2)
    with gr.Row():
        seed = gr.Number(0, label="Seed", precision=0, scale=1)
        steps = slider(2, 50, 20, step=1, label="Sampling steps", scale=3)
    run.input(first_prompt, run, prompt, **QUIET)
    return run, prompt, seed, steps, gr.Number(visible=False)


def checked(prompt: str, seed: Any, steps: Any) -> tuple[str, int, int]:
    """What was typed. Raises `UserError`."""
    number = checked_seed(seed)
    if not prompt.strip():
        raise UserError("the prompt is empty: say what to draw.")
    return prompt.strip(), number, int(steps)


def checked_seed(seed: Any) -> int:
    """The same of a seed alone. Raises `UserError`."""
    if seed is None:
        raise UserError("the seed is empty: give a whole number.")
    check_seed(seed)
    return int(seed)
