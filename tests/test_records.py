"""Every record that crosses a process comes out as it went in, and nothing else comes out at all."""

import pickle
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.records import (
    Entry,
    Fault,
    LinkDown,
    Order,
    Plan,
    Progress,
    Ready,
    Report,
    Result,
    Sampling,
    Setup,
    Stop,
    Up,
    decode_order,
    decode_report,
    encode,
    pack_blocks,
    unpack_blocks,
)

SCALARS: dict[Any, st.SearchStrategy[Any]] = {
    bool: st.booleans(),
    int: st.integers(-(2**63), 2**64 - 1),
    float: st.floats(allow_nan=False),
    str: st.text(max_size=20),
    bytes: st.binary(max_size=20),
    NoneType: st.none(),
}
PLAN = Plan(7, 1, [Entry(3, 0, [1, 2], pack_blocks([5]), Sampling(0.0, 1.0, 0, 0.0, 2**64 - 1))], [(1, 2)], [], True)


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Any value of a type as records use them."""
    if kind in SCALARS:
        return SCALARS[kind]
    arguments = get_args(kind)
    if get_origin(kind) is list:
        return st.lists(values(arguments[0]), max_size=3)
    if get_origin(kind) is tuple:
        return st.tuples(*map(values, arguments))
    if get_origin(kind) is UnionType:
        return st.one_of(*map(values, arguments))
    return st.builds(kind, **{field.name: values(field.type) for field in msgspec.structs.fields(kind)})


@pytest.mark.parametrize("kind", [Plan, Setup, Stop])
@given(data=st.data())
def test_an_order_comes_out_as_it_went_in(kind: type[Order], data: st.DataObject) -> None:
    order = data.draw(values(kind))
    assert decode_order(encode(order)) == order


@pytest.mark.parametrize("kind", [Progress, Ready, Up, Result, Fault, LinkDown])
@given(data=st.data())
def test_a_report_comes_out_as_it_went_in(kind: type[Report], data: st.DataObject) -> None:
    report = data.draw(values(kind))
    assert decode_report(encode(report)) == report


def test_every_record_is_tried_here() -> None:
    assert set(get_args(Order)) == {Plan, Setup, Stop}
    assert set(get_args(Report)) == {Progress, Ready, Up, Result, Fault, LinkDown}


def test_a_report_is_no_order_and_the_other_way_round() -> None:
    with pytest.raises(msgspec.ValidationError):
        decode_order(encode(Up(1)))
    with pytest.raises(msgspec.ValidationError):
        decode_report(encode(PLAN))


@pytest.mark.parametrize(
    "array",
    [
        [],
        ["Plan"],
        ["Plan", "7", 1, [], [], [], True],
        ["Plan", 7, 1, [], [[1, 2, 3]], [], True],
        ["Plan", 7, 1, [[3, 0, ["1"], [5], None]], [], [], True],
        ["Rm", "-rf", "/"],
        {"type": "Plan"},
    ],
    ids=str,
)
def test_a_payload_of_another_shape_is_refused(array: object) -> None:
    with pytest.raises(msgspec.ValidationError):
        decode_order(msgspec.msgpack.encode(array))


@given(st.integers(0, len(encode(PLAN)) - 1))
def test_a_payload_that_was_cut_short_is_refused(length: int) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_order(encode(PLAN)[:length])


def test_a_pickle_is_refused() -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_order(pickle.dumps(["Stop"]))


@given(st.lists(st.integers(0, 2**31 - 1)))
def test_packed_blocks_are_the_same_numbers(blocks: list[int]) -> None:
    assert list(unpack_blocks(pack_blocks(blocks))) == blocks


def test_a_plan_of_a_full_batch_is_small() -> None:
    entry = Entry(123, 319, [49000], pack_blocks(range(1000, 1020)), Sampling(0.7, 0.9, 50, 0.0, 2**63))
    assert len(encode(Plan(10_000, 0, [entry] * 22, [], [], False))) < 3000
