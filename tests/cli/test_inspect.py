"""`atomtune inspect` on a miniature PixArt-Σ: the page is written, and mistakes are one sentence."""

import json
import re
import shutil

import pytest
from peft import LoraConfig, get_peft_model

from atomtune.analysis import report
from atomtune.bases import denoiser, load_base
from atomtune.cli import main
from atomtune.storage.folders import save_adapter
from atomtune.storage.reading import adapter_info
from tests.analysis.tiny import adapted_pixart
from tests.cli.test_cli import said
from tests.tiny_pixart import save_tiny_pixart

QUICK = ["--steps", "3", "--top", "2", "--naming-prompts", "4"]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    base = save_tiny_pixart(tmp_path_factory.mktemp("base") / "tiny")
    model = adapted_pixart().transformer
    return save_adapter(
        model, tmp_path_factory.mktemp("run") / "adapter", base=str(base), token="sks", class_name="dog"
    )


def test_a_page_with_the_prompts_of_a_file(adapter, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a sks dog in the snow\n\na red sks dog\n")
    main(["inspect", str(adapter.parent), "--prompts", str(prompts), "--out", str(tmp_path / "page.html"), *QUICK])
    page = (tmp_path / "page.html").read_text()
    assert "a sks dog in the snow" in page and "What was learnt: <em>sks dog</em>" in page
    assert page.count('<article class="card"') == 2
    assert report.MARK in page.encode()
    assert str(tmp_path / "page.html") in capsys.readouterr().out


def test_without_prompts_and_beside_another(adapter, tmp_path):
    other = shutil.copytree(adapter, tmp_path / "other")
    main(["inspect", str(adapter), "--against", str(other), *QUICK])
    page = (adapter / "report.html").read_text()
    assert "Overlap with" in page
    assert "sks dog" in page


def test_of_two_subjects_both_are_drawn_and_named(adapter, tmp_path, monkeypatch):
    """On backgrounds that suit both."""
    words = [
        {"token": "sks", "class_name": "dog", "backgrounds": ["red", "blue", "white"]},
        {"token": "ohwx", "class_name": "cat", "backgrounds": ["white", "black", "red"]},
    ]
    base = adapter_info(adapter).base
    both = save_adapter(adapted_pixart().transformer, tmp_path / "both", base=base, subjects=words)
    main(["inspect", str(both), *QUICK])
    page = (both / "report.html").read_text()
    assert "What was learnt: <em>sks dog, ohwx cat</em>" in page
    prompts = re.findall(r"<figcaption>(a [^<]*)</figcaption>", page.partition('id="others"')[0])
    assert len(prompts) == 8 and {re.findall(r"on a (\w+) background", prompt)[0] for prompt in prompts} <= {
        "red",
        "white",
    }
    assert [("sks dog" in prompt, "ohwx cat" in prompt) for prompt in prompts] == [(True, False), (False, True)] * 4


def test_mistakes_are_one_sentence(adapter, tmp_path, capsys):
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    assert "is empty: expected one prompt a line" in said(capsys, "inspect", adapter, "--prompts", empty)
    assert "--top must be at least 1" in said(capsys, "inspect", adapter, "--top", "0")
    assert "no adapter in" in said(capsys, "inspect", tmp_path)
    base = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    model = get_peft_model(denoiser(load_base(base)), LoraConfig(target_modules=["to_q"]))
    lora = save_adapter(model, tmp_path / "lora", base=base)
    assert "only atoms can be inspected" in said(capsys, "inspect", lora)


def test_a_page_that_is_not_ours_is_not_replaced(adapter, tmp_path, capsys):
    (tmp_path / "page.html").write_text("<html>theirs</html>")
    for out, sentence in {
        tmp_path / "page.html": "is not a report of atomtune inspect: choose another name",
        tmp_path: "is not a report of atomtune inspect: choose another name",
        tmp_path / "page.html" / "report.html": "page.html is a file",
    }.items():
        assert sentence in said(capsys, "inspect", adapter, "--base", "nowhere", "--out", out)
    assert (tmp_path / "page.html").read_text() == "<html>theirs</html>"
    (tmp_path / "ours.html").write_bytes(report.MARK)
    report.refuse_other_file(tmp_path / "ours.html")
