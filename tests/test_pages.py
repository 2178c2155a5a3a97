"""A reader goes through README and every how-to page, types every command and every snippet, and meets no error.

Each page goes on from the start (README's first commands). Training and drawing are cut to a few steps, unless
`--full-length` asks for the pages as they stand (half an hour): `pytest tests/test_pages.py --full-length`. What needs
the network, another program or a file of the reader's own is not run; its options are checked.
"""

import ast
import inspect
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from atomtune import cli
from atomtune.moji import MojiPipeline
from atomtune.training import load_recipe

ROOT = Path(__file__).parent.parent
START = "docs/index.md"
PAGES = ["README.md", *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs" / "how-to").glob("*.md"))]
ELSEWHERE = {  # first word of a command: where it is run
    "make": "tests/cli/test_demo.py, from the wheel",
    "source": "by the shell that runs the tests",
    "ACCELERATE_USE_CPU=1": "tests/training/test_processes.py",
    "accelerate": "nowhere: it needs several cards",
}
SHELL = ("cp", "mkdir", "rm")
FEW = {"measure_every": 1, "sample_every": 0}
WHOLE = ("runs/teapot", "runs/teapot-kept")  # runs that keep the rest as it was, which takes a while
SHORT_CALLS = {"generate": {"steps": 2}, "compare": {"steps": 2, "num": 1}}
NOT_HERE = re.compile(r"\b[A-Z]+-[A-Z]+\b|PixArt-alpha/|Tongyi-MAI/")  # a file of the reader's own, a download
SHORT = {  # command: options that make it quick
    "customize": ["--measure-every", "1", "--sample-every", "0"],
    "generate": ["--steps", "2"],
    "edit": ["--steps", "2", "--num", "1"],
    "inspect": ["--steps", "2", "--top", "2", "--naming-prompts", "16"],
    "distill": ["--steps", "4", "--sampling-steps", "2", "--tokens", "256"],
    "merge": ["--steps", "2"],
    "compare": ["--steps", "2", "--num", "1"],
    "prune": [],
}


LEFT = {  # page: what must be true of the names that its snippets leave behind
    "docs/how-to/own-training-loop.md": lambda codes, **_: codes.active_per_token == 10,
    "docs/how-to/peft.md": lambda model, **_: model.peft_config.keys() == {"subject", "style"},
    "docs/how-to/steer.md": lambda layer, atom, **_: atom.maps().shape == layer.maps().shape[:2] == (4, 64),
}


PRINTED = {  # page whose ```text is what its commands print: what else they print
    "docs/how-to/plan.md": [  # Flux.1's denoiser alone has 22.2 GiB in bf16
        "--method atoms --target-modules attn.to_v --target-modules attn.add_v_proj --resolution 1024 --batch-size 1 "
        "--gradient-checkpointing --quantize int8\n",
        "--method lora --target-modules attn --resolution 1024 --batch-size 1 --gradient-checkpointing --quantize "
        "int8\n",
        "--prompt ... --quantize int8\n",
    ],
}


def steps(line: str) -> int:
    """The teapot that the pages share is learnt well enough to be pruned; nothing else is."""
    return 50 if "runs/teapot" in re.split(r"[ \"']", line) else 2


def blocks(page: str) -> list[tuple[str, str]]:
    """The language and text of every fenced block that a reader types."""
    text = (ROOT / page).read_text(encoding="utf-8")
    assert not re.search(r"^    (atomtune|make|pip) ", text, re.MULTILINE), f"{page}: a command outside ```sh"
    return re.findall(r"^```(sh|python)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(block: str) -> list[list[str]]:
    return [shlex.split(line, comments=True) for line in block.replace("\\\n", " ").splitlines()]


def run(command: list[str], short: bool) -> None:
    if command[0] in ELSEWHERE:
        return
    if command[0] in SHELL:
        subprocess.run(command, check=True)
        return
    program, name, *options = command
    assert program == "atomtune", f"nobody runs {command}"
    if NOT_HERE.search(" ".join(options)):
        if "--config" in options:
            place = options.index("--config")
            load_recipe(options[place + 1])
            del options[place : place + 2]
        cli.parsed([name, *options])
        return
    if short and name in SHORT and not ({"--help"} & {*options}):
        for flag, number in (("--steps", "4" if "--config" in options else "2"), ("--finetune-steps", "2")):
            if flag in options:
                options[options.index(flag) + 1] = number
        if name == "customize" and "--config" not in options:
            out = options[options.index("--out") + 1]
            options += [] if "--steps" in options else ["--steps", str(steps(out))]
            options += [] if out in WHOLE else ["--no-preserve", "--floor", "0"]
        options += SHORT[name] if "--config" not in options else []
    cli.main([name, *options])


class Shortened(ast.NodeTransformer):
    """The calls of a snippet with few steps."""

    def visit_Call(self, node: ast.Call) -> ast.Call:
        self.generic_visit(node)
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        if name == "range" and ast.unparse(node.args[-1]) == "250":
            node.args = [ast.Constant(2)]
        few = {"steps": steps(ast.unparse(node)), **FEW} if name == "customize" else SHORT_CALLS.get(name, {})
        kept = [keyword for keyword in node.keywords if keyword.arg not in few]
        node.keywords = kept + [ast.keyword(key, ast.Constant(value)) for key, value in few.items()]
        return node


def read(page: str, short: bool) -> dict:
    """Type all of a page; returns the names that its snippets leave behind."""
    scope: dict = {}
    for language, block in blocks(page):
        if language == "python":
            tree = ast.parse(block)
            exec(compile(ast.fix_missing_locations(Shortened().visit(tree)) if short else tree, page, "exec"), scope)
        else:
            for command in filter(None, commands(block)):
                run(command, short)
    return scope


@pytest.fixture(scope="session")
def short(pytestconfig) -> bool:
    return not pytestconfig.getoption("--full-length")


def hurry(patch: pytest.MonkeyPatch) -> None:
    """moji draws in few steps where no number is given."""
    patch.setitem(inspect.unwrap(MojiPipeline.__call__).__kwdefaults__, "num_inference_steps", 6)


@pytest.fixture(scope="session")
def started(tmp_path_factory, short) -> Path:
    """A folder in which a reader has typed the start."""
    folder = tmp_path_factory.mktemp("reader")
    with pytest.MonkeyPatch.context() as patch:
        if short:
            hurry(patch)
        patch.chdir(folder)
        read(START, short)
    return folder


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")  # the page says that it comes
@pytest.mark.parametrize("page", PAGES)
def test_every_line_of_a_page_works(page, started, tmp_path, monkeypatch, capsys, short):
    if short:
        hurry(monkeypatch)
    shutil.copytree(started, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "118")  # as wide as the tables of the pages
    left = read(page, short)
    if page in PRINTED:
        printed = "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines())
        shown = re.findall(r"^```text\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
        assert shown and all(block in printed for block in shown)
        assert all(said in printed for said in PRINTED[page])
    assert page not in LEFT or LEFT[page](**left)
    for _, block in blocks(page):
        for folder in re.findall(r"--out (runs/[\w-]+)", block):
            line = next(line for line in block.replace("\\\n", " ").splitlines() if folder in line)
            assert NOT_HERE.search(line) or line.split()[0] in ELSEWHERE or (tmp_path / folder).is_dir(), line
