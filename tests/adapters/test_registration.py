"""The method in PEFT's enum and tables: whole, once, and harmless to the others."""

import copy
import json
import pickle

from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING, LoraConfig, PeftType, get_peft_config
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

from atomtune.adapters import AtomConfig, AtomModel, register


def test_the_member_is_like_any_other():
    member = PeftType("ATOMS")
    assert member is PeftType["ATOMS"] is getattr(PeftType, "ATOMS")  # noqa: B009  pyright does not know the member
    assert isinstance(member, PeftType)
    assert member == "ATOMS"
    assert (member.name, member.value) == ("ATOMS", "ATOMS")
    assert member in list(PeftType)
    assert repr(member) == repr(PeftType.LORA).replace("LORA", "ATOMS")
    assert json.dumps(member) == '"ATOMS"'
    assert pickle.loads(pickle.dumps(member)) is copy.deepcopy(member) is member


def test_peft_knows_config_model_and_prefix():
    assert PEFT_TYPE_TO_CONFIG_MAPPING[PeftType("ATOMS")] is AtomConfig
    assert PEFT_TYPE_TO_TUNER_MAPPING[PeftType("ATOMS")] is AtomModel
    assert PEFT_TYPE_TO_PREFIX_MAPPING[PeftType("ATOMS")] == "atoms_"
    assert isinstance(get_peft_config({"peft_type": "ATOMS", "target_modules": ["attn1"]}), AtomConfig)


def test_registering_again_changes_nothing():
    before = list(PeftType), dict(PEFT_TYPE_TO_CONFIG_MAPPING)
    register()
    assert (list(PeftType), dict(PEFT_TYPE_TO_CONFIG_MAPPING)) == before
    assert LoraConfig().peft_type is PeftType.LORA
