"""The page of the paper's evidence and the rules of its verdicts, on invented results."""

import json
import re

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="figures are drawn with matplotlib, of the extra `dev`")
pytest.importorskip("resvg_py", reason="pretraining renders with resvg-py, of the extra `dev`")

from experiments.common.report import CONDITIONS, HOLDS, NO_DIFFERENCE, NOT_HERE, Claim
from experiments.common.styles import OPENMOJI
from experiments.density import plot as density_figure
from experiments.density import run as density
from experiments.edit import run as edit
from experiments.merge import run as merge
from experiments.pages import paper
from experiments.prune import run as prune


def write(folder, cells):
    folder.mkdir(parents=True)
    lines = [
        json.dumps({"name": name, "settings": {"base": "0"}, "cpu_seconds": 1, "values": cells[name]}) + "\n"
        for name in sorted(cells)
    ]
    (folder / "results.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def overview(page):
    return {line.split("[")[1].split("]")[0]: line for line in page.splitlines() if line.startswith("| [")}


def test_every_figure_and_table_is_a_row_and_says_if_it_was_not_run(tmp_path):
    rows = overview(paper.page(tmp_path))
    numbers = [f"Fig. {number}" for number in range(1, 11)]
    assert [*rows] == [*("Table 1", "Table 2"), *numbers, "Fig. 11-16", "A.1", "§3.5", "the two orders", "the frontier"]
    assert all("not run yet" in row for item, row in rows.items() if not item.startswith(("Fig. 11", "the frontier")))


def test_links_are_the_anchors_of_the_sections(tmp_path):
    slugify = pytest.importorskip("markdown.extensions.toc", reason="of mkdocs").slugify
    page = paper.page(tmp_path)
    anchors = {slugify(line.removeprefix("## "), "-") for line in page.splitlines() if line.startswith("## ")}
    links = set(re.findall(r"^\| \[[^]]*]\(#(.*?)\)", page, re.MULTILINE))
    assert links == anchors and len(anchors) == len(paper.SECTIONS)


def test_verdicts_are_summed_up():
    claims = [Claim("", "", "", verdict) for verdict in (HOLDS, NOT_HERE, HOLDS, CONDITIONS, NOT_HERE, NO_DIFFERENCE)]
    assert paper.summed_up(claims) == "2 hold, 1 under conditions, 2 do not hold, 1 no difference"
    assert paper.summed_up(claims[:2]) == "1 holds, 1 does not hold"


def scored(fidelity, **others):
    return {"fidelity": fidelity, "alignment": 0.5, "diversity": 1.5} | others


def pruned(energy, chance):
    """Gains left with 120 atoms and more; fewer leave nothing."""

    def left(most, gain):
        return [scored(gain if count >= 120 else 0.0, count=count, kept=count) for count in most]

    cell = {"atoms": 2048, "layers": 8, "all": scored(1.0), "base": scored(0.0)}
    for reading, counts in (("model", prune.COUNTS), ("layer", prune.COUNTS[:4])):
        cell |= {f"{reading}-energy": left(counts, energy), f"{reading}-random": left(counts, chance)}
    return cell


def test_few_atoms_carry_the_concept_if_a_tenth_leaves_more_than_half(tmp_path):
    for place, (gain, verdict) in enumerate(((0.7, HOLDS), (0.45, NOT_HERE))):
        rng = np.random.default_rng(0)
        cells = {name: pruned(gain + rng.normal(0, 0.02), 0.1) for name in prune.grid()}
        few, _, best, _ = prune.claims(write(tmp_path / str(place), cells))
        assert few.verdict == verdict and "120 of 2,048" in few.brief
        assert best.verdict == CONDITIONS  # from 120 on
    assert prune.claims(tmp_path) == []
    page = paper.page(tmp_path)
    assert "not run yet" in overview(page)["Fig. 3"]
    write(tmp_path / "prune", cells)
    assert "(on earlier weights of the base, 0)" in overview(paper.page(tmp_path))["Fig. 3"]


def test_edits_are_paired_by_case_and_the_ladder_is_about_figure_6(tmp_path):
    def cell(atoms, lora, ladder):
        scores = [{"alignment": a, "fidelity": 1 - a} for a in (atoms, lora)]
        own = dict(zip(("best of atoms", "best of LoRA"), (one | {"obeyed": 1.0} for one in scores)))
        return own | {"ladder": [{"label": "", "alignment": a, "fidelity": 1 - a} for a in ladder]}

    cells = {name: cell(0.6, 0.5, (0.3, 0.4, 0.5)) for name in edit.CASES}
    verdicts = [(claim.item, claim.verdict) for claim in edit.claims(write(tmp_path / "edit", cells))]
    assert verdicts == [("Fig. 5", HOLDS), ("Fig. 5", NOT_HERE), ("Fig. 5", NO_DIFFERENCE)] + [("Fig. 6", HOLDS)] * 2
    for one in cells.values():
        del one["ladder"]
    assert {claim.item for claim in edit.claims(write(tmp_path / "before", cells))} == {"Fig. 5"}


def test_density_is_turned_in_training_and_after_it(tmp_path):
    def at(density):
        return scored(0.5 + density, alignment=0.5 - density)

    cells = {name: {f"{d:g}": at(d) for d in config.densities} for name, config in density.grid().items()}
    folder = write(tmp_path / "density", cells)
    verdicts = [claim.verdict for claim in density.claims(folder)]
    assert verdicts == [HOLDS, HOLDS, NO_DIFFERENCE] * 2  # fidelity, alignment, diversity
    curves = density.curves(folder)
    assert curves["dial"] == curves["trained"] and len(curves["dial"]) == 6
    density_figure.plot(folder, tmp_path)
    assert (tmp_path / "results" / "figures" / "density.png").stat().st_size > 10_000
    del cells["turtle-trained-0.01"]
    assert density.claims(write(tmp_path / "less", cells)) == []


def test_merged_subjects_are_the_mean_over_both_styles(tmp_path):
    def cell(name):
        if name.endswith("-told"):
            own = {"twemoji": 0.1, name.removesuffix("-told"): 0.9, "auc": 1.0}
            return {"names": 9, "outline": own, "likeness": own}
        if name.endswith("-overlap"):
            same = {key: [0.5, 0.5] for key in ("both", "strength", "cosine")}
            return same | {"independent": [0.6, 0.6], "span_overlap": 0.1, "chance": 0.1}
        kept = {"concatenate": 0.7, "lora": 0.7}.get(name.rpartition("-")[2], 0.2)
        style = 0.6 if "-concatenate" in name and OPENMOJI.word in name else 0.2  # in one of the two styles
        return {"subject": kept, "style": style, "outline": 0.1, "alignment": 0.5, "background": 1.0}

    folder = write(tmp_path / "merge", {name: cell(name) for name in merge.grid()})
    claims = merge.claims(folder)
    assert [claim.verdict for claim in claims] == [HOLDS, HOLDS, NO_DIFFERENCE, HOLDS, HOLDS, HOLDS, HOLDS]
    assert claims[0].ours == "+0.200 [+0.200, +0.200]" and claims[-1].ours == "-0.100 [-0.100, -0.100]"
    text = merge.results(folder)
    assert text.index("**OpenMoji**") < text.index("**Streamline**") < text.index("**teapot**")
    assert "black outline" not in text[text.index("**Streamline**") : text.index("**teapot**")]


@pytest.mark.parametrize("name", [*merge.SUBJECTS, *merge.EXAMPLES])
def test_prompts_of_a_merge_share_no_colour_with_the_subject(name):
    chosen = merge.colours(name)
    assert len(chosen) == 3 and not {*chosen} & {*merge.subjects.SHARED_COLOURS[name]}
    assert merge.prompts(name, OPENMOJI)[0] == f"an openmoji drawing of a sks {name} on a {chosen[0]} background"
