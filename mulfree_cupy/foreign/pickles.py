"""A safe interpreter of pickles, without Python's unpickler.

A pickle is a program for a small stack machine, which can import any name and call it. This one
imports nothing: names are mapped by the caller, and all others rejected.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any, BinaryIO

_MARK = object()
_LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING",
    "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
}  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


def described(
    file: BinaryIO, names: Mapping[str, Any], stored: Callable[[Any], Any] | None = None
) -> Any:
    """Load a pickle from a file; what follows it is not read.

    Parameters
    ----------
    file : binary file
        In memory: a damaged pickle may ask for more bytes than there are.
    names : mapping
        Objects for the names that may be imported; functions are called as the pickle says.
    stored : callable, optional
        Maps a persistent id, which refers to something stored elsewhere, to an object.

    Raises
    ------
    ValueError
        If it imports another name, does anything but build numbers, text, tuples, lists and dicts,
        or is damaged.
    """
    try:
        return _run(file, names, stored)
    except (TypeError, IndexError, KeyError, OverflowError) as error:
        raise ValueError(f"its pickle is damaged: {error}") from error


def _run(file: BinaryIO, names: Mapping[str, Any], stored: Callable[[Any], Any] | None) -> Any:
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def from_mark() -> list[Any]:
        items = []
        while (item := stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def imported(name: str) -> Any:
        if name not in names:
            raise ValueError(f"it asks for {name!r:.200}, which a file of numbers does not need")
        return names[name]

    for opcode, argument, _ in pickletools.genops(file):
        match opcode.name:
            case name if name in _LITERALS:
                stack.append(argument)
            case name if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            case "MARK":
                stack.append(_MARK)
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3" as name:
                items = [stack.pop() for _ in range(int(name[-1]))]
                stack.append(tuple(items[::-1]))
            case "TUPLE":
                stack.append(tuple(from_mark()))
            case "EMPTY_LIST":
                stack.append([])
            case "LIST":
                stack.append(from_mark())
            case "APPEND":
                item = stack.pop()
                _expect(stack[-1], list).append(item)
            case "APPENDS":
                items = from_mark()
                _expect(stack[-1], list).extend(items)
            case "EMPTY_DICT":
                stack.append({})
            case "DICT":
                items = from_mark()
                stack.append(_entries(items))
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _expect(stack[-1], dict).update(_entries([key, value]))
            case "SETITEMS":
                items = from_mark()
                _expect(stack[-1], dict).update(_entries(items))
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[int(argument)] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[int(argument)])
            case "GLOBAL":
                stack.append(imported(argument.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                stack.append(imported(f"{_expect(module, str)}.{_expect(attribute, str)}"))
            case "REDUCE":
                arguments = stack.pop()
                function = _expect(stack.pop(), FunctionType)
                stack.append(function(*_expect(arguments, tuple)))
            case "BUILD":  # attributes of a dict, such as the versions that a state dict has
                stack.pop()
                _expect(stack[-1], dict)
            case "BINPERSID" if stored is not None:
                stack.append(stored(stack.pop()))
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case name:
                what = name if argument is None else f"{name} {argument!r:.100}"
                raise ValueError(f"it holds the instruction {what}, which numbers do not need")
    raise ValueError("its pickle has no end")


def _entries(items: list[Any]) -> dict[Any, Any]:
    keys = items[::2]
    if not all(type(key) in (str, int) for key in keys):  # hashing a deep tuple would crash
        raise TypeError("a key is neither text nor a whole number")
    if len(items) % 2:
        raise TypeError("a key has no value")
    return dict(zip(keys, items[1::2], strict=True))


def _expect(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"there is a {type(value).__name__} where a {kind.__name__} should be")
    return value
