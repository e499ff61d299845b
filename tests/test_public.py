"""Every public name explains itself: with an example, and with its parameters if they are many."""

import inspect

import pytest

import increlora_jax as il

NAMES = [name for name in il.__all__ if callable(getattr(il, name))]


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_has_an_example(name):
    assert ">>> " in inspect.getdoc(getattr(il, name))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "InputError"])
def test_a_public_name_of_many_parameters_explains_them(name):
    thing = getattr(il, name)
    sections = {"Args:", "Attributes:"} if inspect.isclass(thing) else {"Args:"}
    if len(inspect.signature(thing).parameters) > 3:
        assert sections & {*inspect.getdoc(thing).splitlines()}


def test_a_group_of_settings_lists_them_as_help_does():
    lines = inspect.getdoc(il.GrowthConfig).splitlines()
    assert "    beta1: decay of the average importance." in lines
