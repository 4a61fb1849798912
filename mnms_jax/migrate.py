"""A controller carried over to a changed search space: what still means the same is kept."""

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from mnms_jax.replay import ReplayBank
from mnms_jax.space import SearchSpace, nearest
from mnms_jax.types import Params, UserError

# Parameters of the policy that belong to a decision, and where their decisions and choices lie.
_DECISION_PARAMS = {"action_embedding": (0, 1), "head_kernel": (0, 2), "head_bias": (0, 1)}


class Match(NamedTuple):
    """Where each decision and choice of a new space stood in an old one; -1: nowhere."""

    decisions: np.ndarray  # int [D]
    choices: np.ndarray  # int [D, C], of the new space; -1 beyond a decision's choices


def match_spaces(old: SearchSpace, new: SearchSpace, renamed: Mapping[str, str]) -> Match:
    """Finds the decisions and choices of a space in an older one.

    Args:
      old: the older space.
      new: the newer one.
      renamed: new names by old ones, of decisions ("units": "hidden_size") and of choices
        ("embedding:glove": "glove50", with the decision's old name).

    Raises:
      UserError: a name in `renamed` that the spaces don't have, or that two old ones would have.
    """
    _check_renamed(old, new, renamed)
    now = {name: renamed.get(name, name) for name in old.names}
    _check_distinct(now)
    decisions = np.full(new.num_decisions, -1)
    choices = np.full((new.num_decisions, new.max_choices), -1)
    for before, decision in enumerate(old.decisions):
        if now[decision.name] not in new.names:
            continue
        after = new.names.index(now[decision.name])
        decisions[after] = before
        called = {str(c): renamed.get(f"{decision.name}:{c}", str(c)) for c in decision.choices}
        _check_distinct(called)
        names = list(called.values())
        for index, choice in enumerate(new.decisions[after].choices):
            if str(choice) in names:
                choices[after, index] = names.index(str(choice))
    return Match(decisions, choices)


def migrate_params(match: Match, params: Params, fresh: Params) -> Params:
    """Returns a policy's parameters for the new space; `fresh` ones where nothing is known.

    Raises:
      UserError: the policies differ in more than their spaces.
    """
    migrated = {**params}
    for name, axes in _DECISION_PARAMS.items():
        before, after = (np.moveaxis(np.asarray(p[name]), axes, (0, 1)) for p in (params, fresh))
        if before.shape[2:] != after.shape[2:]:
            raise UserError(
                f"the controller's {name} has rows of shape {before.shape[2:]} and this policy's "
                f"of {after.shape[2:]}: it was made with other sizes"
            )
        rows = match.decisions[:, None], match.choices
        known = (match.choices >= 0).reshape(*match.choices.shape, *[1] * (before.ndim - 2))
        moved = np.where(known, before[rows], after)
        migrated[name] = jnp.asarray(np.moveaxis(moved, (0, 1), axes))
    return migrated


def migrate_trials(
    match: Match, old: SearchSpace, new: SearchSpace, trials: ReplayBank
) -> ReplayBank:
    """Returns the trials whose choices the new space has, where it has the decision at all.

    A decision that the old space didn't have is taken to have been its first choice.
    """
    actions = np.asarray(trials.actions)  # [T, N, D of old]
    moved = np.zeros((*actions.shape[:2], new.num_decisions), np.int32)
    lost = np.zeros(actions.shape[:2], bool)
    active = old.active(actions)
    for d, (before, choices) in enumerate(zip(match.decisions, match.choices, strict=True)):
        if before < 0:
            continue
        index = np.full(old.max_choices, -1)
        index[choices[choices >= 0]] = np.flatnonzero(choices >= 0)
        action = index[actions[..., before]]
        lost |= active[..., before] & (action < 0)
        moved[..., d] = np.maximum(action, 0)
    moved = np.where(new.active(moved), moved, 0)
    # Those that are kept come first.
    kept = ~lost & np.asarray(trials.valid)
    order = np.argsort(~kept, axis=1, kind="stable")

    def sort(rows: np.ndarray) -> jnp.ndarray:
        shape = (*order.shape, *[1] * (rows.ndim - 2))
        return jnp.asarray(np.take_along_axis(rows, order.reshape(shape), axis=1))

    return ReplayBank(
        sort(moved),
        jnp.zeros(moved.shape),
        sort(np.asarray(trials.rewards)),
        jnp.asarray(kept.sum(1), jnp.int32),
    )


def _check_distinct(now: Mapping[str, str]) -> None:
    """Checks that no two names of old are the same name now."""
    before: dict[str, str] = {}
    for old, new in now.items():
        if new in before:
            raise UserError(f"--renamed: {before[new]!r} and {old!r} can't both become {new!r}")
        before[new] = old


def _check_renamed(old: SearchSpace, new: SearchSpace, renamed: Mapping[str, str]) -> None:
    for before, after in renamed.items():
        name, colon, choice = before.partition(":")
        if name not in old.names:
            raise UserError(
                f"renamed decision {name!r} isn't in the old space{nearest(name, old.names)}"
            )
        decision = old.decisions[old.names.index(name)]
        if colon and choice not in map(str, decision.choices):
            raise UserError(
                f"renamed choice {choice!r}: {name!r} had {', '.join(map(str, decision.choices))}"
            )
        if not colon and after not in new.names:
            raise UserError(
                f"{name!r} can't become {after!r}, which isn't in the space"
                f"{nearest(after, new.names)}"
            )
        now = renamed.get(name, name)
        if colon and now in new.names:
            choices = [str(c) for c in new.decisions[new.names.index(now)].choices]
            if after not in choices:
                raise UserError(f"{before!r} can't become {after!r}{nearest(after, choices)}")
