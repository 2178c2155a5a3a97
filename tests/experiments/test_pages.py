"""Generated pages are what their JSON says."""

from importlib import import_module

import pytest


@pytest.mark.parametrize("name", ["activations", "distill"])
def test_the_page_is_that_of_the_results(name):
    module = import_module(f"experiments.{name}")
    assert module.PAGE.read_text(encoding="utf-8") == module.page()
