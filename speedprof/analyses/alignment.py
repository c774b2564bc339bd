"""Which of two ranks' kernels are parts of one collective, by what is known of them and by their times."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from speedprof.trace.intervals import Bools, Int64s

# What a file may say of a collective, as numbers: what PyTorch called it, its element type, the larger of what a rank
# gives and gets, how many ranks take part, and a number for each group and sequence number.
KEYS = ("declared", "dtype", "elements", "size", "tag")
UNKNOWN = -1
_TAG = KEYS.index("tag")
# The part that begins last is all transfer, and the others are there for all of it but what their ends lie apart, which
# is little unless the transfer is short. Over a host's sockets a rank may be through once its own share is on its way.
_LEAST_OVERLAP = 0.25
_LEAST_OVERLAP_IN_QUEUE = 0.0
# Candidates on either side, by end. The mate is the nearest; beyond it lie those that end within the same microseconds.
_NUM_NEIGHBOURS = 2
# A pair takes each other's first choice away from others, who then choose again; few collectives ever need to.
_MAX_ROUNDS = 5
# Leads that are tried for the order of a queue, the commonest. A drop makes one more; profilers drop little of a host.
_MOST_LEADS = 32
# What a pair that does not fit costs, and what a change of the lead, beside the most that a pair costs that fits. Hosts
# lose few events, and threads end collectives in any order: a change must be worth it.
_COST_OF_MISFIT = 2
_COST_OF_CHANGE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Spans:
    """Parts of collectives, or of each collective the span common to its parts so far.

    Only spans of one `kind` can pair, and only where each of `keys` (columns as in KEYS) that both know is equal.
    """

    kind: Int64s
    start: Int64s
    end: Int64s
    keys: Int64s

    def __len__(self) -> int:
        return len(self.kind)

    def take(self, rows: Int64s | Bools) -> Spans:
        return Spans(kind=self.kind[rows], start=self.start[rows], end=self.end[rows], keys=self.keys[rows])

    def shifted(self, offset_ns: int) -> Spans:
        return replace(self, start=self.start + offset_ns, end=self.end + offset_ns)


Pairs = tuple[Int64s, Int64s]


def pair_up(a: Spans, b: Spans, *, slack_ns: int = 0, in_queue: bool = False) -> Pairs:
    """Rows of `a` and of `b` that belong together, each at most once, in the order of `a`'s rows.

    What the file itself numbers alike belongs together. All else pairs by time: no part of a collective ends before
    every part has begun, and all end almost together. So the mate of a span overlaps it by a good part of the
    shorter one, and of those that do its end is the nearest, seen from either side.

        rank 0    ######  ###### ####        each waits for the one that begins last
        rank 1      ####      ##   ##
        rank 2    ######         ####        what the profiler dropped leaves the others' mates alone

    `slack_ns` is by how much the two clocks may be wrong. With `in_queue`, spans are of one queue that several threads
    serve: they may end in another order than they began in, and the order in which they began decides.
    """
    rule = _Rule(slack_ns=slack_ns, least_overlap=_LEAST_OVERLAP_IN_QUEUE if in_queue else _LEAST_OVERLAP)
    rows_a, rows_b = _pair_tagged(a, b)
    left_a, left_b = _rest(len(a), rows_a), _rest(len(b), rows_b)
    timed_a, timed_b = _pair_by_time(a.take(left_a), b.take(left_b), rule, in_queue)
    rows_a = np.concatenate((rows_a, left_a[timed_a]))
    rows_b = np.concatenate((rows_b, left_b[timed_b]))
    order = np.argsort(rows_a, kind="stable")
    return rows_a[order], rows_b[order]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    """Which spans can be parts of one collective: `least_overlap` is a share of the shorter one."""

    slack_ns: int
    least_overlap: float

    def allows(self, a: Spans, b: Spans) -> Bools:
        """For each pair of rows of equally long `a` and `b`."""
        same = (a.keys == b.keys) | (a.keys == UNKNOWN) | (b.keys == UNKNOWN)
        overlap = np.minimum(a.end, b.end) - np.maximum(a.start, b.start) + self.slack_ns
        shorter = np.maximum(np.minimum(a.end - a.start, b.end - b.start), 0)
        overlaps = overlap >= self.least_overlap * shorter
        return np.asarray((a.kind == b.kind) & same.all(axis=1) & overlaps, dtype=np.bool_)


def _pair_tagged(a: Spans, b: Spans) -> Pairs:
    known_a, known_b = np.flatnonzero(a.keys[:, _TAG] != UNKNOWN), np.flatnonzero(b.keys[:, _TAG] != UNKNOWN)
    _, at_a, at_b = np.intersect1d(a.keys[known_a, _TAG], b.keys[known_b, _TAG], return_indices=True)
    return known_a[at_a], known_b[at_b]


def _rest(length: int, rows: Int64s) -> Int64s:
    rest = np.ones(length, dtype=np.bool_)
    rest[rows] = False
    return np.flatnonzero(rest)


def _pair_by_time(a: Spans, b: Spans, rule: _Rule, in_queue: bool) -> Pairs:
    mate = np.full(len(a), -1, dtype=np.int64)
    left_a, left_b = np.arange(len(a)), np.arange(len(b))
    for _ in range(_MAX_ROUNDS):
        some_a, some_b = a.take(left_a), b.take(left_b)
        best_b, best_a = _nearest(some_a, some_b, rule), _nearest(some_b, some_a, rule)
        chosen = np.flatnonzero(best_b >= 0)
        chosen = chosen[best_a[best_b[chosen]] == chosen]
        if not len(chosen):
            break
        mate[left_a[chosen]] = left_b[best_b[chosen]]
        left_a, left_b = _rest_of(left_a, chosen), _rest_of(left_b, best_b[chosen])
    rows_a = np.flatnonzero(mate >= 0)
    if in_queue and len(rows_a):
        return _keep_order(a, b, rows_a, mate[rows_a], rule)
    return rows_a, mate[rows_a]


def _rest_of(rows: Int64s, taken: Int64s) -> Int64s:
    return rows[_rest(len(rows), taken)]


def _nearest(of: Spans, among: Spans, rule: _Rule) -> Int64s:
    """For each row of `of` the row in `among` that it pairs with best, -1 where it pairs with none."""
    if not len(of) or not len(among):
        return np.full(len(of), -1, dtype=np.int64)
    order = np.lexsort((among.end, among.kind))
    place = _places(of, among.take(order))
    best = np.full(len(of), -1, dtype=np.int64)
    nearest = np.full(len(of), np.iinfo(np.int64).max)
    for step in range(-_NUM_NEIGHBOURS, _NUM_NEIGHBOURS):
        at = place + step
        rows = order[np.clip(at, 0, len(among) - 1)]
        candidates = among.take(rows)
        fits = (at >= 0) & (at < len(among)) & rule.allows(of, candidates)
        distance = np.abs(candidates.end - of.end)
        better = fits & (distance < nearest)
        best[better], nearest[better] = rows[better], distance[better]
    return best


def _places(of: Spans, ordered: Spans) -> Int64s:
    """How many of `ordered`, sorted by kind and end, come before each row of `of`."""
    is_of = np.concatenate((np.zeros(len(ordered), dtype=np.bool_), np.ones(len(of), dtype=np.bool_)))
    kind, end = np.concatenate((ordered.kind, of.kind)), np.concatenate((ordered.end, of.end))
    merged = np.lexsort((is_of, end, kind))
    before = np.cumsum(~is_of[merged])
    place = np.empty(len(merged), dtype=np.int64)
    place[merged] = before
    return place[len(ordered) :]


def _keep_order(a: Spans, b: Spans, rows_a: Int64s, rows_b: Int64s, rule: _Rule) -> Pairs:
    """The pairs with the order of the queue put right.

    Ends that lie close together may have paired neighbours crosswise. Both ranks serve their queues in one order, so
    that a mate is a steady number of places ahead: its lead, which changes only where a profiler dropped something.

        places in a    0 1 2 3 4 5 6          b lacks the span at place 4
        paired in b    0 2 1 3 - 4 5
        put right      0 1 2 3 - 4 5
    """
    order_a, order_b = (np.lexsort((spans.end, spans.start)) for spans in (a, b))
    leads, counts = np.unique(np.argsort(order_b)[rows_b] - np.argsort(order_a)[rows_a], return_counts=True)
    leads = np.sort(leads[np.argsort(-counts, kind="stable")[:_MOST_LEADS]])
    ordered_a, ordered_b = a.take(order_a), b.take(order_b)
    length = a.end[rows_a] - a.start[rows_a]
    most = max(1, int(np.median(np.minimum(length, b.end[rows_b] - b.start[rows_b]))))
    usual = min(most, int(np.median(np.abs(b.end[rows_b] - a.end[rows_a]))))
    costs = [_cost_of_lead(ordered_a, ordered_b, lead, usual, most, rule) for lead in leads.tolist()]
    place = np.arange(len(a)) + leads[_steadiest(np.stack(costs), _COST_OF_CHANGE * most)]
    # Where the lead falls, two places in a point to one of b: the later one has it.
    later = np.append(np.minimum.accumulate(place[::-1])[::-1][1:], len(b))
    keep = np.flatnonzero((place >= 0) & (place < np.minimum(later, len(b))))
    ones, others = ordered_a.take(keep), ordered_b.take(place[keep])
    keep = keep[rule.allows(ones, others)]
    by_row = np.argsort(order_a[keep], kind="stable")
    return order_a[keep][by_row], order_b[place[keep]][by_row]


def _cost_of_lead(a: Spans, b: Spans, lead: int, usual: int, most: int, rule: _Rule) -> Int64s:
    """How far the ends of each span and of the one `lead` places ahead lie apart, at most `most`; more if they misfit.

    Beyond the ends of `b`, where its capture had not begun or was over, it is what is usual: neither a gain nor a loss.
    """
    cost = np.full(len(a), usual, dtype=np.int64)
    inside = np.arange(max(0, -lead), max(0, min(len(a), len(b) - lead)))
    ones, others = a.take(inside), b.take(inside + lead)
    apart = np.minimum(np.abs(others.end - ones.end), most)
    cost[inside] = np.where(rule.allows(ones, others), apart, _COST_OF_MISFIT * most)
    return cost


def _steadiest(cost: Int64s, change: int) -> Int64s:
    """For each column the row of a path through `cost` with the least sum, where going to another row costs too."""
    num_rows, num_columns = cost.shape
    if num_rows == 1 or not num_columns:
        return np.zeros(num_columns, dtype=np.int64)
    every = np.arange(num_rows)
    came_from = np.zeros((num_columns, num_rows), dtype=np.int64)
    total = cost[:, 0]
    for column in range(1, num_columns):
        best = int(np.argmin(total))
        from_best = total[best] + change
        came_from[column] = np.where(total <= from_best, every, best)
        total = np.minimum(total, from_best) + cost[:, column]
    path = np.empty(num_columns, dtype=np.int64)
    path[-1] = np.argmin(total)
    for column in range(num_columns - 1, 0, -1):
        path[column - 1] = came_from[column, path[column]]
    return path
