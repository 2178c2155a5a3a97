"""Puts AtomConfig into the lists of PEFT's own tests/test_custom_models.py; test_peft_own_suite.py runs pytest with it.

What is left out: merging weights, which PEFT's tests skip for methods that cannot (here by the same helper); two tests
that put their model into LoRA's list of presets; and one that wants every parameter moved by three steps on inputs of 0
to 89, where the λ that jumprelu learns has no coefficient near enough to learn from.
"""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest

import atomtune

CASES = [
    ("Vanilla MLP 1 Atoms", "MLP", {"target_modules": "lin0"}),
    ("Vanilla MLP 2 Atoms", "MLP", {"target_modules": ["lin0"], "num_atoms": 16, "density": 0.25}),
    ("Vanilla MLP 3 Atoms", "MLP", {"target_modules": ["lin1"]}),
    ("Vanilla MLP 4 Atoms", "MLP", {"target_modules": ["lin0", "lin1"]}),
    ("Vanilla MLP 5 Atoms", "MLP", {"target_modules": ["lin0"], "modules_to_save": ["lin1"]}),
    ("Vanilla MLP 6 Atoms", "MLP", {"target_modules": ["lin0"], "exclude_modules": ["lin1"], "num_atoms": 3}),
    ("Vanilla MLP 7 Atoms soft", "MLP", {"target_modules": ["lin0"], "activation": "soft"}),
    ("Vanilla MLP 8 Atoms ReLU", "MLP", {"target_modules": ["lin0"], "activation": "relu"}),
    ("Vanilla MLP 9 Atoms batch top-k", "MLP", {"target_modules": ["lin0"], "activation": "batch_topk"}),
    ("Vanilla MLP 10 Atoms jumprelu", "MLP", {"target_modules": ["lin0"], "activation": "jumprelu"}),
    ("Embedding + transformers Conv1D 1 Atoms", "EmbConv1D", {"target_modules": ["conv1d"]}),
    (
        "Embedding + transformers Conv1D 2 Atoms",
        "EmbConv1D",
        {"target_modules": ["conv1d"], "modules_to_save": ["emb"]},
    ),
]
PAIRS = [
    ("Atoms Same", {"target_modules": ["lin0"]}, {"target_modules": ["lin0"]}),
    ("Atoms Different", {"target_modules": ["lin0"]}, {"target_modules": ["lin1"], "num_atoms": 7}),
]
LEFT_OUT = (
    "test_default_target_modules_list_of_str",
    "test_default_target_modules_str",
    "test_only_params_are_updated[Vanilla MLP 10 Atoms jumprelu",
)


def pytest_configure() -> None:
    """`datasets` is imported at the top of PEFT's helpers, for tests that load from the hub: not here."""
    datasets: Any = ModuleType("datasets")
    datasets.load_dataset, datasets.__spec__ = None, ModuleSpec("datasets", None)
    sys.modules.setdefault("datasets", datasets)


def pytest_pycollect_makeitem(collector: pytest.Collector, name: str) -> None:
    """Called before any test of the module is made: its lists are still what parametrize will read."""
    module: Any = collector.getparent(pytest.Module).obj  # pyright: ignore[reportOptionalMemberAccess]
    kind = atomtune.AtomConfig
    module.TEST_CASES[:] = [(title, model, kind, options) for title, model, options in CASES]
    module.MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES[:] = [
        (title, "atoms", kind, *({"init_weights": False} | options for options in pair)) for title, *pair in PAIRS
    ]
    module.ALL_PEFT_CONFIG_CLASSES[:] = [kind]
    # Atoms refuse to merge, with a sentence that test_peft_suite.py asks for; what these tests do before goes on.
    module._skip_if_merging_not_supported = lambda *_: pytest.skip("atoms do not merge")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Lists written into a decorator."""
    for mark in metafunc.definition.iter_markers("parametrize"):
        if mark.args[0] == "config_cls":
            mark.args[1][:] = [atomtune.AtomConfig]


def pytest_collection_modifyitems(config: pytest.Config, items: list[Any]) -> None:
    """Only what runs with atoms."""
    ours = [
        item
        for item in items
        if hasattr(item, "callspec")
        and atomtune.AtomConfig in item.callspec.params.values()
        and not item.name.startswith(LEFT_OUT)
    ]
    config.hook.pytest_deselected(items=[item for item in items if item not in ours])
    items[:] = ours
