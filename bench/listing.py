"""A listing of nvdisasm: its instructions, where each may go on, and the shortest way through those that matter."""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Instruction:
    predicate: str
    text: str
    targets: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.text.split(" ", 1)[0]


_LINE = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@(!?U?P\w+)\s+)?(.*?)\s*(?:\(\*(.*)\*\))?\s*;\s*$")
_LABEL = re.compile(r"^(\.\w[\w.$]*):$")


def parse(listing: str) -> tuple[list[Instruction], dict[str, int]]:
    """Return the instructions of a listing of nvdisasm, and where its labels are."""
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in listing.splitlines():
        if label := _LABEL.match(line.strip()):
            labels[label[1]] = len(instructions)
        elif found := _LINE.match(line):
            predicate, text, comment = found.groups(default="")
            targets = re.findall(r"\.L_x_\d+", comment if text.startswith("BRX") else text)
            instructions.append(Instruction(predicate, text, tuple(targets)))
    return instructions, labels


def successors(instructions: list[Instruction], labels: dict[str, int]) -> list[list[int]]:
    """Return where each instruction may go on. Calls come back; they are made for numbers out of the ordinary."""
    found = []
    for index, instruction in enumerate(instructions):
        following = [index + 1] if index + 1 < len(instructions) else []
        is_conditional = bool(instruction.predicate) or re.match(r"BRA\S* !?U?P\d", instruction.text) is not None
        if instruction.name.startswith("BRX"):
            found.append([labels[target] for target in instruction.targets])
        elif instruction.name.startswith("BRA"):
            found.append([labels[target] for target in instruction.targets] + following * is_conditional)
        elif instruction.name.startswith(("EXIT", "RET")):
            found.append(following * is_conditional)
        else:
            found.append(following)
    return found


_CALL_COST = 1000
"""More than any way around a call."""


def shortest(start: int, edges: list[list[int]], instructions: list[Instruction]) -> tuple[dict[int, int], list[int]]:
    """Return the cost of the way from `start` to everything in reach, and each one's predecessor on that way."""
    cost, before, queue = {start: 0}, [-1] * len(edges), [(0, start)]
    while queue:
        so_far, index = heapq.heappop(queue)
        if so_far > cost[index]:
            continue
        for following in edges[index]:
            total = so_far + (_CALL_COST if instructions[following].name.startswith("CALL") else 1)
            if total < cost.get(following, total + 1):
                cost[following], before[following] = total, index
                heapq.heappush(queue, (total, following))
    return cost, before


def ordinary_way(
    instructions: list[Instruction], edges: list[list[int]], is_marked: Callable[[str], bool]
) -> list[int]:
    """Return the shortest way from the first instruction to an exit through one whose text is marked."""
    cost, before = shortest(0, edges, instructions)
    exits = [i for i, instruction in enumerate(instructions) if instruction.name == "EXIT"]
    best: tuple[int, list[int]] | None = None
    for mark in (i for i, instruction in enumerate(instructions) if is_marked(instruction.text) and i in cost):
        onward, before_exit = shortest(mark, edges, instructions)
        ends = [end for end in exits if end in onward]
        for end in [end for end in ends if not instructions[end].predicate] or ends:
            total = cost[mark] + onward[end]
            if best is None or total < best[0]:
                best = total, [*_walk(before, mark, 0), *_walk(before_exit, end, mark)[1:]]
    assert best is not None, "no instruction is marked"
    return best[1]


def _walk(before: list[int], end: int, start: int) -> list[int]:
    way = [end]
    while way[-1] != start:
        way.append(before[way[-1]])
    return way[::-1]


def in_loops(way: Iterable[int], edges: list[list[int]], instructions: list[Instruction]) -> set[int]:
    """Return those on the way that may be passed again."""
    found = set()
    for index in way:
        if index not in found:
            reach, _ = shortest(index, edges, instructions)
            if any(index in edges[other] for other in reach):
                found.add(index)
    return found
