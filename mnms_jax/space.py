"""Search spaces: flat lists of discrete decisions, some active only under others' choices."""

import difflib
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mnms_jax.types import Choice, UserError

Condition = Mapping[str, tuple[Choice, ...]]


class Decision(NamedTuple):
    """One decision of a search space.

    Attributes:
      name: unique in its space.
      choices: the values to choose from; an inactive decision takes the first.
      active_if: for each earlier decision named, the choices under which this one matters. All
        conditions must hold, and the earlier decisions must be active themselves.
    """

    name: str
    choices: tuple[Choice, ...]
    active_if: Condition | None = None


class SearchSpace:
    """An ordered list of decisions; a design is one action (index of a choice) for each.

    >>> layers = Decision("layers", (0, 1, 2))
    >>> width = Decision("width", (16, 64), {"layers": (1, 2)})
    >>> space = SearchSpace([layers, width])
    >>> space.encode({"layers": 2, "width": 64}).tolist()
    [2, 1]
    >>> space.decode([0, 0])  # without layers there is no width
    {'layers': 0}

    Raises:
      UserError: two decisions of one name, a decision without choices or with one twice, a
        condition on a decision that doesn't stand earlier or on a choice that it doesn't have.
    """

    def __init__(self, decisions: Iterable[Decision]):
        self.decisions = tuple(decisions)
        _validate(self.decisions)

    @property
    def num_decisions(self) -> int:
        return len(self.decisions)

    @property
    def max_choices(self) -> int:
        return max(len(decision.choices) for decision in self.decisions)

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the decisions in order."""
        return tuple(decision.name for decision in self.decisions)

    @functools.cached_property
    def action_mask(self) -> np.ndarray:
        """Bool [D, C]: whether decision d has a choice c."""
        sizes = np.array([len(decision.choices) for decision in self.decisions])
        return np.arange(self.max_choices) < sizes[:, None]

    @functools.cached_property
    def conditions(self) -> np.ndarray:
        """Bool [D, D, C]: whether d can be active when decision p took its choice c."""
        allowed = np.ones((self.num_decisions, self.num_decisions, self.max_choices), bool)
        for d, decision in enumerate(self.decisions):
            for name, values in (decision.active_if or {}).items():
                p = self.names.index(name)
                allowed[d, p] = False
                for value in values:
                    allowed[d, p, _index(self.decisions[p], value)] = True
        return allowed

    @functools.cached_property
    def parents(self) -> np.ndarray:
        """Bool [D, D]: whether d can be active only when p is."""
        parents = np.zeros((self.num_decisions, self.num_decisions), bool)
        for d, decision in enumerate(self.decisions):
            for name in decision.active_if or {}:
                parents[d, self.names.index(name)] = True
        return parents

    def active(self, actions: Sequence[int] | np.ndarray) -> np.ndarray:
        """Returns which decisions matter in designs: bool [..., D] for actions [..., D]."""
        actions = np.asarray(actions)
        active = np.zeros(actions.shape, bool)
        for d in range(self.num_decisions):
            allowed = self.conditions[d, np.arange(self.num_decisions), actions]
            active[..., d] = np.all(allowed & (active | ~self.parents[d]), axis=-1)
        return active

    def decode(self, actions: Sequence[int] | np.ndarray) -> dict[str, Choice]:
        """Returns the active decisions' choices by name, for actions [D].

        Raises:
          UserError: not one action a decision, or an action that its decision doesn't have.
        """
        actions = np.asarray(actions)
        if actions.shape != (self.num_decisions,):
            raise UserError(
                f"actions of shape {actions.shape}; this search space takes ({self.num_decisions},)"
            )
        for decision, action in zip(self.decisions, actions, strict=True):
            if not 0 <= action < len(decision.choices):
                raise UserError(
                    f"action {action} for {decision.name!r}, which has choices "
                    f"0 to {len(decision.choices) - 1}"
                )
        return {
            decision.name: decision.choices[action]
            for decision, action, active in zip(
                self.decisions, actions, self.active(actions), strict=True
            )
            if active
        }

    def encode(self, design: Mapping[str, Choice]) -> np.ndarray:
        """Returns the actions, int32 [D], of a design given by name; inactive ones are 0.

        Raises:
          UserError: an unknown name or choice, or an active decision that is missing.
        """
        for name in design:
            if name not in self.names:
                raise UserError(f"unknown decision {name!r}{nearest(name, self.names)}")
        actions = np.zeros(self.num_decisions, np.int32)
        for d, decision in enumerate(self.decisions):
            if not self.active(actions)[d]:
                continue
            if decision.name not in design:
                raise UserError(f"decision {decision.name!r} is missing: {dict(design)}")
            actions[d] = _index(decision, design[decision.name])
        return actions

    def to_json(self) -> list[dict]:
        """Returns the decisions as plain JSON data."""
        return [
            {
                "name": decision.name,
                "choices": list(decision.choices),
                "active_if": {k: list(v) for k, v in (decision.active_if or {}).items()},
            }
            for decision in self.decisions
        ]

    @classmethod
    def from_json(cls, data: Iterable[Mapping]) -> "SearchSpace":
        """Returns the space that `to_json` wrote."""
        return cls(
            Decision(
                row["name"],
                tuple(row["choices"]),
                {k: tuple(v) for k, v in row["active_if"].items()} or None,
            )
            for row in data
        )

    @property
    def fingerprint(self) -> str:
        """Returns 16 hexadecimal digits that change with any name, choice, order or condition."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def diff(self, other: "SearchSpace") -> list[str]:
        """Returns what distinguishes `other` from this space, a line a difference."""
        mine = {decision.name: decision for decision in self.decisions}
        others = {decision.name: decision for decision in other.decisions}
        lines = [f"decision {name!r} is gone" for name in mine if name not in others]
        lines += [f"decision {name!r} is new" for name in others if name not in mine]
        for name in [name for name in mine if name in others]:
            for field, old, new in zip(Decision._fields, mine[name], others[name], strict=True):
                if old != new:
                    lines.append(f"{field} of {name!r}: {old} became {new}")
        if not lines and self.names != other.names:
            lines.append("the order of the decisions is another")
        return lines


def nearest(word: str, known: Iterable[str]) -> str:
    """Returns a hint for a misspelt word: the nearest known one, else all of them."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


def _index(decision: Decision, value: Choice) -> int:
    # Types count: in Python True == 1, but they are different choices.
    for index, choice in enumerate(decision.choices):
        if choice == value and isinstance(choice, bool) == isinstance(value, bool):
            return index
    raise UserError(f"{value!r} is no choice of {decision.name!r}, which has {decision.choices}")


def _validate(decisions: tuple[Decision, ...]) -> None:
    if not decisions:
        raise UserError("a search space needs at least one decision")
    earlier: dict[str, Decision] = {}
    for decision in decisions:
        if decision.name in earlier:
            raise UserError(f"two decisions are called {decision.name!r}")
        for what, values in {"choices": decision.choices, **(decision.active_if or {})}.items():
            if not isinstance(values, tuple) or not values:
                raise UserError(
                    f"decision {decision.name!r}: {what} must be a tuple with at least one choice, "
                    f"not {values!r}"
                )
        kinds = [(isinstance(choice, bool), choice) for choice in decision.choices]
        if len(set(kinds)) < len(kinds):
            raise UserError(f"decision {decision.name!r} has a choice twice: {decision.choices}")
        for name, values in (decision.active_if or {}).items():
            if name not in earlier:
                raise UserError(
                    f"decision {decision.name!r} depends on {name!r}, which doesn't stand before it"
                    f"{nearest(name, earlier)}"
                )
            for value in values:
                _index(earlier[name], value)
        earlier[decision.name] = decision
