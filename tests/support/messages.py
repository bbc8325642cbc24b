"""Hypothesis strategies for messages, derived from their types."""

from functools import cache
from typing import Any

import msgspec
from hypothesis import strategies as st


def messages_of(union: Any) -> st.SearchStrategy[Any]:
    """Any message of a union alias."""
    return st.one_of([_struct(cls) for cls in union.__value__.__args__])


@cache  # one strategy a class: hypothesis looks at each object anew
def _struct(cls: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    return st.builds(
        cls, **{field.name: _type(field.type) for field in msgspec.structs.fields(cls)}
    )


def _type(hint: Any) -> st.SearchStrategy[Any]:
    return _from(msgspec.inspect.type_info(hint))


def _from(info: msgspec.inspect.Type) -> st.SearchStrategy[Any]:  # noqa: C901 (one case a type)
    match info:
        case msgspec.inspect.StructType(cls=cls):
            return _struct(cls)
        case msgspec.inspect.UnionType(types=types):
            return st.one_of([_from(part) for part in types])
        case msgspec.inspect.ListType(item_type=item):
            return st.lists(_from(item), max_size=3)
        case msgspec.inspect.DictType(key_type=key, value_type=value):
            return st.dictionaries(_from(key), _from(value), max_size=3)
        case msgspec.inspect.EnumType(cls=cls):
            return st.sampled_from(list(cls))
        case msgspec.inspect.IntType(ge=ge, le=le):
            return st.integers(-(2**63) if ge is None else ge, 2**64 - 1 if le is None else le)
        case msgspec.inspect.FloatType(gt=gt, ge=ge, le=le):
            least = ge if gt is None else gt
            return st.floats(least, le, allow_nan=False, exclude_min=gt is not None)
        case msgspec.inspect.StrType(min_length=least):
            characters = st.characters(exclude_categories=["Cs"])
            return st.text(characters, min_size=least or 0, max_size=20)
        case msgspec.inspect.BytesType():
            return st.binary(max_size=50)
        case msgspec.inspect.BoolType():
            return st.booleans()
        case msgspec.inspect.NoneType():
            return st.none()
        case _:
            raise TypeError(f"no strategy for {info}")
