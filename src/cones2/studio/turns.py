"""Fairness: who of several clients is served next."""

from collections.abc import Mapping, Sequence
from typing import Any


def fair_order(waiting: Sequence[dict[str, Any]], turns: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return waiting jobs in the order in which they are taken: clients by turns, whoever had none longest first.

    `waiting` is by number, the oldest first; `turns` has each client's latest turn.
    """
    queues: dict[str, list[dict[str, Any]]] = {}
    for job in waiting:
        queues.setdefault(job["client"], []).append(job)
    last, order = dict(turns), []
    turn = max(turns.values(), default=0)
    while queues:
        client = min(queues, key=lambda each: (last.get(each, 0), queues[each][0]["number"]))
        order.append(queues[client].pop(0))
        last[client] = turn = turn + 1
        if not queues[client]:
            del queues[client]
    return order
