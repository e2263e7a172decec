# SPDX-License-Identifier: GPL-2.0-or-later
"""The state of objects as plain data, and back into the same objects.

`Encoder` walks from an object along the attributes that `fields` declares as state and makes a tree of numbers, texts,
lists and bytes of it. `Decoder` walks the same way through a machine of the same shape and sets what differs. It makes
no object but those of `fields.CREATABLE`, calls nothing of theirs, and sets only declared attributes: so a tree that
comes from a file can give a machine wrong numbers, and no more than that. A tree is valid JSON but for bytes and
`Plain`, which `swtdx.snapshot.file` writes in its own way.

A node is None, a truth value, a number or a text as it is, or a list that begins with a letter:

====  ==================================================================================================
b     bytes                          m     the contents of a buffer: bytearray, memoryview, array
l t   list, tuple: nodes             s f   set, frozenset: nodes
q     deque: nodes                   d     dict: keys, values (lists of nodes)
e     member of an enumeration       c     ctypes structure: class, bytes
o     object: number, class, {attribute: node}, what its method ``kept`` gave
r     an object that came before: its number
====  ==================================================================================================
"""

from __future__ import annotations

import ctypes
import importlib
from array import array
from collections import deque
from collections.abc import Callable
from enum import Enum, IntFlag
from functools import cache
from types import MappingProxyType
from typing import Any

from swtdx.snapshot.fields import CREATABLE, ENUMERATIONS, FIELDS, STRUCTURES, Fields
from swtdx.snapshot.private import Private

Node = Any
_ATOMS = frozenset({type(None), bool, int, str, float})
_ABSENT = object()
_BUFFERS = (bytearray, memoryview, array)


class NotKept(Exception):
    """The machine has something that a snapshot does not hold; the text says what."""


class Misfit(Exception):
    """A tree does not fit the machine into which it is to be put; the text says where."""


class Plain:
    """A copy of a dict, list, set or deque that holds nothing but atoms: most of what is large."""

    __slots__ = ("container",)

    def __init__(self, container: Any) -> None:
        self.container = container


_NAMES: dict[type[Any], str] = {}


def name_of(kind: type[Any]) -> str:
    """Return the name by which the tables know a class: its own, or that of the next base class that is there."""
    name = _NAMES.get(kind)
    if name is None:
        name = _NAMES[kind] = _find_name(kind)
    return name


def _find_name(kind: type[Any]) -> str:
    for base in kind.__mro__:
        name = f"{base.__module__}.{base.__qualname__}"
        if name in FIELDS:
            return name
    return f"{kind.__module__}.{kind.__qualname__}"


@cache
def _class(name: str) -> Any:
    """Return the class that a table names."""
    module, _, attribute = name.rpartition(".")
    found = getattr(importlib.import_module(module), attribute)
    assert isinstance(found, type)
    return found


def _is_plain(container: Any) -> bool:
    kinds = set(map(type, container))
    if isinstance(container, dict):
        kinds |= set(map(type, container.values()))
    return kinds <= _ATOMS


def condensed(node: Node) -> Node:
    """Return a tree from a file with `Plain` in it, as `Encoder` makes it: quick to decode, again and again."""
    match node:
        case ["l" | "s" | "q" as letter, list(items)] if _is_plain(items):
            return Plain(_PLAIN[letter](items))
        case ["l" | "s" | "q" | "t" | "f" as letter, list(items)]:
            return [letter, [condensed(item) for item in items]]
        case ["d", list(keys), list(values)] if len(keys) == len(values) and _is_plain(keys) and _is_plain(values):
            return Plain(dict(zip(keys, values, strict=True)))
        case ["d", list(keys), list(values)]:
            return ["d", [condensed(key) for key in keys], [condensed(value) for value in values]]
        case ["o", number, name, dict(state), kept]:
            return ["o", number, name, {key: condensed(value) for key, value in state.items()}, condensed(kept)]
    return node


class Encoder:
    """Makes trees. Objects that are met twice, in one tree or several, are named the second time."""

    def __init__(self) -> None:
        self.objects: list[Any] = []
        """In the order of their numbers. They are kept alive, so that no other object gets the address of one."""
        self._numbers: dict[int, int] = {}

    def encode(self, value: Any, where: str = "") -> Node:
        """Return the node of ``value``. Raises NotKept."""
        kind = type(value)
        if kind in _ATOMS:
            return value
        maker = _MAKERS.get(kind)
        if maker is not None:
            return maker(self, value, where)
        name = name_of(kind)
        if name in FIELDS:
            return self._object(value, FIELDS[name], name, where)
        if isinstance(value, IntFlag):
            return int(value)
        if isinstance(value, Enum):
            if name in ENUMERATIONS:
                return ["e", name, value.name]
        elif isinstance(value, ctypes.Structure):
            if name in STRUCTURES:
                return ["c", name, bytes(value)]
        raise NotKept(f"{where or 'the machine'} is a {name}, which a snapshot does not hold")

    def _sequence(self, value: Any, where: str) -> Node:
        letter = _LETTERS[type(value)]
        if letter in "ldqs" and _is_plain(value):
            return Plain(value.copy())
        return [letter, [self.encode(item, where) for item in value]]

    def _dict(self, value: dict[Any, Any], where: str) -> Node:
        if _is_plain(value):
            return Plain(value.copy())
        keys = [self.encode(key, where) for key in value]
        return ["d", keys, [self.encode(item, f"{where}[{key!r:.40}]") for key, item in value.items()]]

    def _bytes(self, value: bytes, where: str) -> Node:
        return ["b", value]

    def _buffer(self, value: Any, where: str) -> Node:
        return ["m", bytes(value)]

    def _object(self, value: Any, fields: Fields, name: str, where: str) -> Node:
        number = self._numbers.get(id(value))
        if number is not None:
            return ["r", number]
        number = self._numbers[id(value)] = len(self.objects)
        self.objects.append(value)
        refusal = fields.refuses(value)
        if refusal:
            raise NotKept(refusal)
        state = {}
        short = name.rpartition(".")[2]
        for attribute in fields.state:
            try:
                content = getattr(value, attribute)
            except AttributeError:  # there is none yet, or never in this kind of machine
                continue
            state[attribute] = self.encode(content, f"{short}.{attribute}")
        kept = getattr(value, "kept", None)
        return ["o", number, name, state, None if kept is None else self.encode(kept(), f"{short}.kept()")]


_LETTERS: dict[Any, str] = {list: "l", tuple: "t", set: "s", frozenset: "f", deque: "q"}
_PLAIN: dict[str, Callable[[list[Any]], Any]] = {"l": list, "s": set, "q": deque}
_MAKERS: dict[type, Callable[[Encoder, Any, str], Node]] = {
    **dict.fromkeys(_LETTERS, Encoder._sequence),
    dict: Encoder._dict,
    bytes: Encoder._bytes,
    **dict.fromkeys(_BUFFERS, Encoder._buffer),
    Private: lambda encoder, value, where: value,
}


class Decoder:
    """Puts trees into a machine, in the order in which they were made."""

    def __init__(self) -> None:
        self.objects: dict[int, Any] = {}

    def decode(self, node: Node, present: Any = None, where: str = "") -> Any:
        """Return the value of ``node``: ``present`` itself where that is an object or a container that can change.

        Raises Misfit.
        """
        kind = type(node)
        if kind in _ATOMS:
            return node
        if kind is Plain:
            return _refill(present, node.container, copies=True)
        if kind is Private:
            return node.value
        if kind is not list or not node or not isinstance(node[0], str):
            raise Misfit(f"{where}: not a value")
        maker = _READERS.get(node[0])
        if maker is None:
            raise Misfit(f"{where}: no kind of value is called {node[0]!r:.20}")
        try:
            return maker(self, present, where, *node[1:])
        except TypeError as error:  # a list as a key, or another number of parts
            raise Misfit(f"{where}: {error}") from error

    def _bytes(self, present: Any, where: str, data: Any) -> Any:
        if type(data) is not bytes:
            raise Misfit(f"{where}: not bytes")
        return data

    def _buffer(self, present: Any, where: str, data: Any) -> Any:
        if type(data) is not bytes:
            raise Misfit(f"{where}: not bytes")
        if isinstance(present, bytearray) and len(present) != len(data):
            return bytearray(data)
        if not isinstance(present, _BUFFERS):
            if present is None:
                return bytearray(data)
            raise Misfit(f"{where} is not a buffer here")
        view = memoryview(present).cast("B")
        if len(view) != len(data):
            raise Misfit(f"{where} has {len(view)} bytes here, not {len(data)}")
        view[:] = data
        return present

    def _items(self, present: Any, where: str, nodes: Any) -> list[Any]:
        if type(nodes) is not list:
            raise Misfit(f"{where}: not a list")
        if _is_plain(nodes):
            return nodes
        hints = list(present) if isinstance(present, (list, tuple, set, deque)) else []
        hints += [None] * (len(nodes) - len(hints))
        return [self.decode(node, hint, where) for node, hint in zip(nodes, hints, strict=False)]

    def _list(self, present: Any, where: str, nodes: Any) -> Any:
        return _refill(present, self._items(present, where, nodes))

    def _tuple(self, present: Any, where: str, nodes: Any) -> Any:
        return tuple(self._items(present, where, nodes))

    def _set(self, present: Any, where: str, nodes: Any) -> Any:
        return _refill(present, set(self._items(present, where, nodes)))

    def _frozenset(self, present: Any, where: str, nodes: Any) -> Any:
        return frozenset(self._items(present, where, nodes))

    def _deque(self, present: Any, where: str, nodes: Any) -> Any:
        return _refill(present, deque(self._items(present, where, nodes)))

    def _dict(self, present: Any, where: str, keys: Any, nodes: Any) -> Any:
        if type(keys) is not list or type(nodes) is not list or len(keys) != len(nodes):
            raise Misfit(f"{where}: not as many keys as values")
        known = present if isinstance(present, dict) else {}
        names = keys if _is_plain(keys) else [self.decode(key, None, where) for key in keys]
        if _is_plain(nodes):
            return _refill(present, dict(zip(names, nodes, strict=True)))
        # A machine that was built again may have the same things under other numbers: then their order tells.
        if len(known) == len(names) and known.keys().isdisjoint(names):
            known = dict(zip(names, known.values(), strict=True))
        new = {
            name: self.decode(node, known.get(name), f"{where}[{name!r:.40}]")
            for name, node in zip(names, nodes, strict=True)
        }
        return _refill(present, new)

    def _enumeration(self, present: Any, where: str, name: Any, member: Any) -> Any:
        if name not in ENUMERATIONS:
            raise Misfit(f"{where}: no enumeration is called {name!r:.60}")
        try:
            return _class(name)[member]
        except KeyError:
            raise Misfit(f"{where}: {name} has no {member!r:.40}") from None

    def _structure(self, present: Any, where: str, name: Any, data: Any) -> Any:
        if name not in STRUCTURES or type(data) is not bytes:
            raise Misfit(f"{where}: no structure is called {name!r:.60}")
        kind = _class(name)
        if len(data) != ctypes.sizeof(kind):
            raise Misfit(f"{where}: {name} does not have {len(data)} bytes")
        if isinstance(present, kind):
            ctypes.memmove(ctypes.addressof(present), data, len(data))
            return present
        return kind.from_buffer_copy(data)

    def _reference(self, present: Any, where: str, number: Any) -> Any:
        if number not in self.objects:
            raise Misfit(f"{where} refers to an object that does not exist")
        return self.objects[number]

    def _object(self, present: Any, where: str, number: Any, name: Any, state: Any, kept: Any) -> Any:
        fields = FIELDS.get(name) if isinstance(name, str) else None
        if fields is None or type(state) is not dict or type(number) is not int:
            raise Misfit(f"{where}: no class is called {name!r:.60}")
        if present is None or name_of(type(present)) != name or (fields.frozen and name in CREATABLE):
            if name not in CREATABLE:
                found = "nothing" if present is None else f"a {name_of(type(present))}"
                raise Misfit(f"{where} is {found} here, and not a {name}")
            kind = _class(name)
            present = object.__new__(kind)
        self.objects[number] = present
        short = name.rpartition(".")[2]
        for attribute, node in state.items():
            if attribute not in fields.state:
                raise Misfit(f"{name} has no state called {attribute!r:.40}")
            old = getattr(present, attribute, _ABSENT)
            new = self.decode(node, None if old is _ABSENT else old, f"{short}.{attribute}")
            if new is not old:
                _check_kind(old, new, f"{short}.{attribute}")
                object.__setattr__(present, attribute, new) if fields.frozen else setattr(present, attribute, new)
        if hasattr(present, "go_on"):
            present.go_on(None if kept is None else self.decode(kept, None, f"{short}.kept()"))
        return present


def _check_kind(old: Any, new: Any, where: str) -> None:
    """Raise Misfit where a number takes the place of a text, or the like; None may take any place."""
    if old is _ABSENT or old is None or new is None or type(old) is type(new):
        return
    if isinstance(old, (int, float)) and isinstance(new, (int, float)):
        return
    if isinstance(old, MappingProxyType) or name_of(type(old)) in FIELDS:
        return
    if type(old) in _ATOMS or type(new) in _ATOMS:
        raise Misfit(f"{where} is a {type(old).__name__} here, and not a {type(new).__name__}")


def _refill(present: Any, new: Any, *, copies: bool = False) -> Any:
    """Return ``new``, in the container that is there if it is of the same kind: others may hold it, too."""
    if type(present) is not type(new):
        return new.copy() if copies else new
    if isinstance(present, list):
        present[:] = new
    else:
        present.clear()
        present.extend(new) if isinstance(present, deque) else present.update(new)
    return present


_READERS: dict[str, Callable[..., Any]] = {
    "b": Decoder._bytes,
    "m": Decoder._buffer,
    "l": Decoder._list,
    "t": Decoder._tuple,
    "s": Decoder._set,
    "f": Decoder._frozenset,
    "q": Decoder._deque,
    "d": Decoder._dict,
    "e": Decoder._enumeration,
    "c": Decoder._structure,
    "r": Decoder._reference,
    "o": Decoder._object,
}
