"""Each class of the client against the one for programs with an event loop."""

import inspect
import re

import pytest

import kvd.client
from kvd import recipes

PAIRS = {
    name: (getattr(module, name), getattr(module, f"Async{name}"))
    for module in (kvd.client, recipes)
    for name in module.__all__
    if f"Async{name}" in module.__all__
}


def methods(of: type) -> dict[str, inspect.Signature]:
    return {
        name: inspect.signature(method)
        for name, method in inspect.getmembers(of, inspect.isfunction)
        if not name.startswith("_") or name == "__init__"
    }


def awaited(received: object) -> str:
    """What an annotation is called where it is awaited."""
    word = re.compile(rf"\b({'|'.join(PAIRS)}|Iterator)\b")
    return word.sub(r"Async\1", str(received)).replace("threading.", "asyncio.")


def test_there_are_pairs():
    assert set(PAIRS) == {
        *("Client", "Watch", "Follow", "Observation"),
        *("Lock", "Election", "Queue", "Counter", "Barrier"),
    }


@pytest.mark.parametrize("name", PAIRS)
def test_both_have_the_same_methods(name):
    blocking, asynchronous = map(methods, PAIRS[name])
    if name == "Counter":
        # A property cannot be awaited.
        assert asynchronous.pop("value").return_annotation == "int"
        assert inspect.signature(recipes.Counter.value.fget).return_annotation == "int"
    assert blocking.keys() == asynchronous.keys()
    for method, signature in blocking.items():
        there = asynchronous[method]
        if method != "__init__" or name == "Client":
            assert there.parameters == signature.parameters, method
        assert there.return_annotation == awaited(signature.return_annotation), method


def test_both_clients_have_the_same_docstrings():
    for method in methods(kvd.client.Client):
        here, there = (getattr(of, method).__doc__ for of in PAIRS["Client"])
        assert here == there, method


@pytest.mark.parametrize("name", PAIRS)
def test_both_enter_and_leave_alike(name):
    blocking, asynchronous = PAIRS[name]
    for here, there in {
        "enter": "aenter",
        "exit": "aexit",
        "iter": "aiter",
        "next": "anext",
    }.items():
        assert hasattr(blocking, f"__{here}__") == hasattr(asynchronous, f"__{there}__"), here
