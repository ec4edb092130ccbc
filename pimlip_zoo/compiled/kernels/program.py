"""Straight-line programs of additions and products, and their derivatives, written out before they are compiled.

A value is a number in the order of its making. Programs are differentiated in forward and in reverse mode as often
as needed; what no result uses is never emitted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Value = int | None
"""None: exactly zero."""


class Program:
    """Values made from inputs by ``+`` and ``*``; equal ones are made once."""

    def __init__(self) -> None:
        self._nodes: list[tuple[str, object, object]] = []
        self._known: dict[tuple[str, object, object], int] = {}

    def input(self, name: str, index: int) -> int:
        """An input by name and index."""
        return self._make("input", name, index)

    def constant(self, value: float) -> int:
        """A number that is known; an input called ``constant``."""
        return self._make("input", "constant", value)

    def add(self, a: Value, b: Value) -> Value:
        """``a + b``."""
        if a is None or b is None:
            return a if b is None else b
        return self._make("+", min(a, b), max(a, b))

    def multiply(self, a: Value, b: Value) -> Value:
        """``a * b``."""
        return None if a is None or b is None else self._make("*", min(a, b), max(a, b))

    def dot(self, left: Sequence[Value], right: Sequence[Value]) -> Value:
        """Sum of products."""
        total: Value = None
        for a, b in zip(left, right, strict=True):
            total = self.add(total, self.multiply(a, b))
        return total

    def tangents(self, results: Sequence[Value], directions: Mapping[int, int]) -> list[Value]:
        """Directional derivatives of results; ``directions`` gives the tangent of each input that has one."""
        tangent: dict[int, Value] = dict(directions)
        for value in range(max((r for r in results if r is not None), default=-1) + 1):
            kind, a, b = self._nodes[value]
            if kind == "input":
                tangent.setdefault(value, None)
            elif kind == "+":
                tangent[value] = self.add(tangent[a], tangent[b])  # type: ignore[index]
            else:
                left, right = self.multiply(tangent[a], b), self.multiply(a, tangent[b])  # type: ignore[index,arg-type]
                tangent[value] = self.add(left, right)
        return [None if r is None else tangent[r] for r in results]

    def gradients(self, result: Value, inputs: Sequence[int]) -> list[Value]:
        """Derivatives of one result by inputs."""
        if result is None:
            return [None] * len(inputs)
        cotangent: dict[int, Value] = {}
        for value in range(result, -1, -1):
            kind, a, b = self._nodes[value]
            if value == result:
                # d result / d result = 1, which is not a value: its operands get their factors directly.
                self._seed(cotangent, value)
                continue
            bar = cotangent.get(value)
            if bar is None or kind == "input":
                continue
            assert isinstance(a, int)
            assert isinstance(b, int)
            if kind == "+":
                for operand in (a, b):
                    cotangent[operand] = self.add(cotangent.get(operand), bar)
            else:
                cotangent[a] = self.add(cotangent.get(a), self.multiply(bar, b))
                cotangent[b] = self.add(cotangent.get(b), self.multiply(bar, a))
        return [cotangent.get(i) for i in inputs]

    def _seed(self, cotangent: dict[int, Value], result: int) -> None:
        """Cotangents of the factors of a sum of products, without a multiplication by one."""
        todo = [result]
        while todo:
            kind, a, b = self._nodes[todo.pop()]
            assert isinstance(a, int)
            assert isinstance(b, int)
            if kind == "+":
                todo += [a, b]
            else:
                cotangent[a] = self.add(cotangent.get(a), b)
                cotangent[b] = self.add(cotangent.get(b), a)

    def emit(
        self,
        vector: str,
        load: Mapping[str, str],
        results: Sequence[tuple[int, str]],
        *,
        define: str = "const {vector} {name} = {value};",
    ) -> list[str]:
        """Statements, of C if nothing else is said.

        Args:
            vector: type of a value.
            load: for each name of input, its value with ``{}`` for the index.
            results: (value, statement with ``{}`` for it).
            define: how a value gets a name.

        Returns:
            Lines, each value just once and before its use, results as soon as they are known.
        """
        lines: list[str] = []
        done: set[int] = set()
        for result, statement in results:
            stack = [result]
            while stack:
                value = stack[-1]
                kind, a, b = self._nodes[value]
                missing = [] if kind == "input" else [v for v in (b, a) if v not in done]
                if value in done or not missing:
                    stack.pop()
                    if value not in done:
                        done.add(value)
                        text = load[str(a)].format(b) if kind == "input" else f"t{a} {kind} t{b}"
                        lines.append(define.format(vector=vector, name=f"t{value}", value=text))
                else:
                    stack += missing  # type: ignore[arg-type]
            lines.append(statement.format(f"t{result}"))
        return lines

    def _make(self, kind: str, a: object, b: object) -> int:
        key = (kind, a, b)
        if key not in self._known:
            self._known[key] = len(self._nodes)
            self._nodes.append(key)
        return self._known[key]
