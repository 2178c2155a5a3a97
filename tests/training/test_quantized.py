"""What cannot be quantized or offloaded is refused before a run (tests/quantize has runs on a quantized base)."""

import pytest

import atomtune
from atomtune.bases import BaseParts
from tests.training.quick import QUICK


def test_a_base_that_cannot_be_quantized_is_refused_before_anything_is_written(images, base, tmp_path, monkeypatch):
    monkeypatch.setattr(BaseParts, "load", None)
    for options, sentence in (
        ({"base": base, "quantize": "nf4"}, "nf4 needs a CUDA or XPU card"),
        ({"quantize": "int8"}, "moji is so small"),
        ({"base": base, "offload": "model"}, "offload moves the parts of a base to an accelerator .* device is cpu"),
        ({"base": base, "quantize": "int3"}, "quantize must be one of int8, fp8, nf4"),
    ):
        with pytest.raises(atomtune.UserError, match=sentence):
            atomtune.customize(images, **QUICK | {"out": tmp_path / "run"} | options)
        assert not (tmp_path / "run").exists()
