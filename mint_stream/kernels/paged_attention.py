"""Attention over pages of keys and values: prefill chunks beside decode rows, each sequence finding its pages in its line of a table."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mint_stream.kernels import readable
from mint_stream.kernels.attention_plan import EVERYTHING, WIDEST, PagedSpans, attention_tile, power
from mint_stream.kernels.tiles import ALIGNMENT_BYTES

SIZES = ["scaling", "softcap", "window", "table_width", "places"]


@triton.jit(do_not_specialize=SIZES)  # type: ignore[untyped-decorator]  # triton ships no types
def paged_attention_kernel(
    q: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    out: tl.tensor,
    sums: tl.tensor,
    marks: tl.tensor,
    sinks: tl.tensor,
    items: tl.tensor,
    table: tl.tensor,
    scaling: tl.tensor,
    softcap: tl.tensor,
    window: tl.tensor,
    table_width: tl.tensor,
    places: tl.tensor,
    q_row: tl.tensor,
    q_head: tl.tensor,
    k_page: tl.tensor,
    k_token: tl.tensor,
    k_head: tl.tensor,
    v_page: tl.tensor,
    v_token: tl.tensor,
    v_head: tl.tensor,
    PAGE: tl.constexpr,
    GROUP: tl.constexpr,
    HEIGHT: tl.constexpr,
    TOKENS: tl.constexpr,
    KEY: tl.constexpr,
    KEY_REGISTERS: tl.constexpr,
    VALUE: tl.constexpr,
    VALUE_REGISTERS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SINKS: tl.constexpr,
    SPLIT: tl.constexpr,
) -> None:
    """out[t, a, v] = Σ_n w[t, a, n] V[n, g, v], w the softmax over the visible n of cap(scaling · Σ_k q[t, a, k] K[n, g, k]).

    For the rows t of work item program_id(0) and the heads a of key head g = program_id(1) = a // GROUP. n is visible from position p
    of row t when p - window < n ≤ p; cap(s) = softcap · tanh(s / softcap); a sink is one more logit, a head's own, without a value.
    K[n] is in page table[sequence, n // PAGE] at token n % PAGE. When SPLIT: sums [planes, places, heads, VALUE] fp32 are not yet
    divided, and marks [planes, places, heads, 2] are the largest logit and the sum of exponentials. items int32 [items, 8].
    """
    item, g = items + tl.program_id(0) * 8, tl.program_id(1)
    count = tl.load(item + 1)
    if count == 0:
        return
    heads = tl.num_programs(1) * GROUP
    line = table + tl.load(item + 2).to(tl.int64) * table_width
    end = tl.load(item + 5)
    at, d, v = tl.arange(0, HEIGHT), tl.arange(0, KEY_REGISTERS), tl.arange(0, VALUE_REGISTERS)
    rows = (tl.load(item) + at // GROUP).to(tl.int64)
    head = g * GROUP + at % GROUP
    position = tl.load(item + 3) + at // GROUP
    present = at // GROUP < count
    queries = tl.load(q + (rows * q_row + head * q_head)[:, None] + d[None, :], mask=present[:, None] & (d < KEY)[None, :], other=0.0)
    largest = tl.full((HEIGHT,), float("-inf"), tl.float32)
    total = tl.zeros((HEIGHT,), tl.float32)
    added = tl.zeros((HEIGHT, VALUE_REGISTERS), tl.float32)
    for first in range(tl.load(item + 4), end, TOKENS):
        n = first + tl.arange(0, TOKENS)
        page = tl.load(line + n // PAGE, mask=n < end, other=0).to(tl.int64)
        k_at = keys + page * k_page + n % PAGE * k_token + g * k_head
        k = tl.load(k_at[None, :] + d[:, None], mask=(n < end)[None, :] & (d < KEY)[:, None], other=0.0)
        logits = tl.dot(queries, k, input_precision="tf32x3") * scaling
        if SOFTCAP:
            logits = softcap * (2.0 * tl.sigmoid(2.0 * logits / softcap) - 1.0)
        visible = (n[None, :] <= position[:, None]) & (n[None, :] > position[:, None] - window) & (n < end)[None, :]
        logits = tl.where(visible, logits, float("-inf"))
        higher = tl.maximum(largest, tl.max(logits, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)  # a row that sees nothing yet would subtract infinities
        weights, kept = tl.exp(logits - base[:, None]), tl.exp(largest - base)
        v_at = values + page * v_page + n % PAGE * v_token + g * v_head
        seen = tl.load(v_at[:, None] + v[None, :], mask=(n < end)[:, None] & (v < VALUE)[None, :], other=0.0)
        total = total * kept + tl.sum(weights, 1)
        added = tl.dot(weights.to(seen.dtype), seen, added * kept[:, None], input_precision="tf32x3")
        largest = higher
    mask = present[:, None] & (v < VALUE)[None, :]
    if SPLIT:
        place = (tl.load(item + 6) * places + tl.load(item + 7) + at // GROUP).to(tl.int64) * heads + head
        tl.store(sums + place[:, None] * VALUE + v[None, :], added, mask=mask)
        tl.store(marks + place * 2, largest, mask=present)
        tl.store(marks + place * 2 + 1, total, mask=present)
    else:
        if SINKS:
            sink = tl.load(sinks + head, mask=present, other=0.0).to(tl.float32)
            higher = tl.maximum(largest, sink)
            kept = tl.exp(largest - higher)
            total = total * kept + tl.exp(sink - higher)
            added = added * kept[:, None]
        answer = added / tl.where(total == 0.0, 1.0, total)[:, None]
        tl.store(out + (rows * heads + head)[:, None] * VALUE + v[None, :], answer.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["places"])  # type: ignore[untyped-decorator]  # triton ships no types
def combine_kernel(
    sums: tl.tensor,
    marks: tl.tensor,
    sinks: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    places: tl.tensor,
    VALUE: tl.constexpr,
    VALUE_REGISTERS: tl.constexpr,
    SINKS: tl.constexpr,
) -> None:
    """out[t, a, v] = Σ_p sums[p, ., a, v] e^(m_p - M) / (Σ_p l_p e^(m_p - M) + e^(sink_a - M)), M the largest of them all.

    For the row t and the planes, in order, of line program_id(0) of rows int32 [places, 2], head a = program_id(1); (m, l) are the marks.
    """
    place, a, heads = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    row, planes = tl.load(rows + place * 2).to(tl.int64), tl.load(rows + place * 2 + 1)
    v = tl.arange(0, VALUE_REGISTERS)
    here = place.to(tl.int64) * heads + a
    largest, total = tl.load(marks + here * 2), tl.load(marks + here * 2 + 1)
    added = tl.load(sums + here * VALUE + v, mask=v < VALUE, other=0.0)
    there = here
    for _ in range(1, planes):
        there += places.to(tl.int64) * heads
        mark = tl.load(marks + there * 2)
        higher = tl.maximum(largest, mark)
        kept, taken = tl.exp(largest - higher), tl.exp(mark - higher)
        total = total * kept + tl.load(marks + there * 2 + 1) * taken
        added = added * kept + tl.load(sums + there * VALUE + v, mask=v < VALUE, other=0.0) * taken
        largest = higher
    if SINKS:
        sink = tl.load(sinks + a).to(tl.float32)
        higher = tl.maximum(largest, sink)
        kept = tl.exp(largest - higher)
        total = total * kept + tl.exp(sink - higher)
        added = added * kept
    tl.store(out + (row * heads + a) * VALUE + v, (added / total).to(out.dtype.element_ty), mask=v < VALUE)


def takes(q: Tensor, keys: Tensor, values: Tensor) -> bool:
    """Whether the kernels can read them: one dtype, numbers of a head adjacent and 16-byte aligned, at most 256 of them (fp32: 128)."""
    sides = (q, keys, values)
    plain = all(side.dtype == q.dtype and side.stride(-1) == 1 and readable.head(side.shape[-1], side.dtype) for side in sides)
    unit = ALIGNMENT_BYTES // q.element_size()
    return plain and not any(side.data_ptr() % ALIGNMENT_BYTES or any(step % unit for step in side.stride()[:-1]) for side in sides)


def paged_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    table: Tensor,
    spans: PagedSpans,
    scaling: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """As reference.paged_attention, but rows in no span hold anything. q [rows, heads, K] → [rows, heads, V]. A row's bits are its span's.

    keys [pages, page tokens, key heads, K], values [pages, page tokens, key heads, V], table int32 [sequences, pages a sequence].
    """
    _check(q, keys, values, table, spans, sinks)
    group, width = q.shape[1] // keys.shape[2], values.shape[3]
    tiles = [attention_tile(low, group, max(keys.shape[3], width), q.dtype) for low in (False, True)]
    work = spans.work(group, window, tiles[0].height, q.device)
    places = work.rows.shape[0]
    out = q.new_empty(q.shape[0], q.shape[1], width)
    sums, marks = (q.new_empty(work.planes, places, q.shape[1], size, dtype=torch.float32) for size in (width, 2))
    given = sums if sinks is None else sinks
    numbers = (scaling, softcap or 0.0, EVERYTHING if window is None else window, table.shape[1], places)
    strides = (*q.stride()[:2], *keys.stride()[:3], *values.stride()[:3])
    constants = attention_constants(keys.shape[1], group, keys.shape[3], width, softcap is not None, sinks is not None)
    with torch.cuda.device(q.get_device()):  # -1, no change, where triton interprets on the CPU
        for items, low in ((work.tall, False), (work.low, True)):
            if len(items):
                at = tiles[low]
                tensors = (q, keys, values, out, sums, marks, given, items, table)
                cut = {"HEIGHT": at.height, "TOKENS": at.tokens, "SPLIT": low}
                launch = paged_attention_kernel[(len(items), keys.shape[2])]
                launch(*tensors, *numbers, *strides, **constants, **cut, num_warps=at.warps, num_stages=at.stages)
        if places:
            launch = combine_kernel[(places, q.shape[1])]
            launch(sums, marks, given, out, work.rows, places, **combine_constants(width, sinks is not None), num_warps=1)
    return out


def _check(q: Tensor, keys: Tensor, values: Tensor, table: Tensor, spans: PagedSpans, sinks: Tensor | None) -> None:
    if not takes(q, keys, values):
        raise ValueError(
            f"attention needs q, keys and values of one dtype, 16-byte aligned, of at most {WIDEST} numbers a head (fp32: half)"
        )
    if q.shape[2] != keys.shape[3] or keys.shape[:3] != values.shape[:3] or q.shape[1] % keys.shape[2]:
        raise ValueError(f"q {list(q.shape)}, keys {list(keys.shape)} and values {list(values.shape)} do not fit each other")
    if q.shape[0] != spans.rows or table.dtype != torch.int32 or (sinks is not None and sinks.shape != q.shape[1:2]):
        raise ValueError(f"{spans.rows} rows need q of as many, an int32 table and a sink for each of its {q.shape[1]} heads")


def attention_constants(page: int, group: int, key: int, value: int, softcap: bool, sinks: bool) -> dict[str, int]:
    """What a model compiles into both variants."""
    widths = {"KEY": key, "KEY_REGISTERS": max(16, power(key)), "VALUE": value, "VALUE_REGISTERS": max(16, power(value))}
    return {"PAGE": page, "GROUP": group, **widths, "SOFTCAP": softcap, "SINKS": sinks}


def combine_constants(value: int, sinks: bool) -> dict[str, int]:
    """What is compiled into combine."""
    return {"VALUE": value, "VALUE_REGISTERS": power(value), "SINKS": sinks}
