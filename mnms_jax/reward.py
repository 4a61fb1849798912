"""What a child is rewarded with: a formula of numbers that are known about it."""

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from mnms_jax.space import nearest
from mnms_jax.types import UserError

ACCURACY = "accuracy"
METRICS = (ACCURACY, "balanced_accuracy", "macro_f1", "auroc", "matthews", "neg_log_loss")
# Of the child's own, the same on any data.
SIZES = ("params", "samples")

_LONGEST = 300  # characters of a formula
_DEEPEST = 30
LARGEST = 1e18  # of a reward: its square has to be a float32
_LEAST_PROBABILITY = float(np.finfo(np.float32).eps)

_OPERATORS: Mapping[type, Callable[..., float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: math.pow,  # of floats, so that no number grows without end
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}
_FUNCTIONS: Mapping[str, Callable[..., float]] = {
    "abs": abs,
    "log": math.log,
    "log10": math.log10,
    "max": max,
    "min": min,
    "sqrt": math.sqrt,
}


class Reward(NamedTuple):
    """A formula; two of them are the same if they are written alike, but for spaces."""

    formula: str
    names: tuple[str, ...]  # of the numbers in it
    tree: ast.expr

    def __call__(self, numbers: Mapping[str, float]) -> tuple[float | None, str | None]:
        """Returns the reward and None, or None and the reason why there is none."""
        for name in self.names:
            if name not in numbers:
                return None, f"{name} isn't defined here"
        try:
            value = _evaluate(self.tree, numbers)
            reason = f"{value:g} is no reward"
        except (ArithmeticError, ValueError) as error:
            value, reason = math.nan, str(error)
        if abs(value) <= LARGEST:
            return value, None
        known = ", ".join(f"{name} {numbers[name]:g}" for name in self.names)
        return None, f"{self.formula} with {known}: {reason}"


def parse_reward(text: str) -> Reward:
    """Returns the reward that a formula such as `accuracy - 0.01*log10(params)` gives.

    Names are those of METRICS and SIZES; functions are abs, log, log10, max, min and sqrt;
    operators + - * / and **. Nothing else is evaluated.

    Raises:
      UserError: anything else in it, and where; or it is too long, or names no number.
    """
    text = " ".join(text.split())
    _check_length(text)
    try:
        tree = ast.parse(text, mode="eval").body
    except SyntaxError as error:
        place = f"character {error.offset}" if error.offset else "its end"
        raise UserError(f"reward {text!r}: {error.msg} at {place}") from None
    except UnicodeEncodeError:
        raise UserError(f"reward {text!r}: must have characters of UTF-8 only") from None
    try:
        names = _check(tree)
    except _WrongPartError as error:
        column = len(text.encode()[: error.node.col_offset].decode()) + 1
        part = ast.get_source_segment(text, error.node)
        raise UserError(f"reward {text!r}: {part!r} at character {column} {error}") from None
    if not names:
        raise UserError(f"reward {text!r}: must depend on one of {', '.join(METRICS + SIZES)}")
    formula = ast.unparse(tree)  # spaced as usual, and to be parsed again
    _check_length(formula)
    return Reward(formula, tuple(dict.fromkeys(names)), tree)


def measure(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Returns the METRICS of predictions, but for those that aren't defined for such labels.

    Those but the last are scikit-learn's. balanced_accuracy is the mean recall of the classes that
    are there; macro_f1 the mean F1 of those that are there or predicted; auroc the area under the
    ROC curve, for more than two classes the mean over those that are there, each against the rest;
    matthews the Matthews correlation; neg_log_loss the mean logarithm of the true class's
    probability, so that more is better.

    Args:
      labels: int [N].
      probabilities: float [N, C].
    """
    # Imported here, since it takes a second.
    from sklearn.metrics import f1_score, matthews_corrcoef, recall_score, roc_auc_score

    predicted, there = probabilities.argmax(1), np.unique(labels)
    last = probabilities.shape[1] - 1
    curves = [
        roc_auc_score(labels == c, probabilities[:, c])
        for c in (there if last > 1 else [last])
        if 0 < np.sum(labels == c) < len(labels)
    ]
    own = probabilities[np.arange(len(labels)), labels]
    found = {
        ACCURACY: np.mean(predicted == labels),
        "balanced_accuracy": recall_score(labels, predicted, labels=there, average="macro"),
        "macro_f1": f1_score(labels, predicted, average="macro", zero_division=0.0),
        "auroc": np.mean(curves) if curves else math.nan,
        "matthews": matthews_corrcoef(labels, predicted) if len(there) > 1 else math.nan,
        "neg_log_loss": np.mean(np.log(np.maximum(own, _LEAST_PROBABILITY))),
    }
    return {name: float(value) for name, value in found.items() if np.isfinite(value)}


def _check_length(text: str) -> None:
    if len(text) > _LONGEST:
        raise UserError(f"reward {text[:20]!r}...: must have at most {_LONGEST} characters")


class _WrongPartError(Exception):
    def __init__(self, node: ast.expr, message: str):
        super().__init__(message)
        self.node = node


def _check(node: ast.expr, depth: int = 0) -> list[str]:
    """Returns the names of the numbers in a formula; `_evaluate` takes what passes."""
    if depth > _DEEPEST:
        raise _WrongPartError(node, f"is more than {_DEEPEST} parts deep")
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            if not math.isfinite(value):
                raise _WrongPartError(node, "is too large")
            parts: list[ast.expr] = []
        case ast.Name(id=name):
            _check_name(node, name)
            return [name]
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _OPERATORS:
            parts = [operand]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            parts = [left, right]
        case ast.Call(func=ast.Name(id=name), args=parts, keywords=[]):
            _check_call(node, name, len(parts))
        case _:
            raise _WrongPartError(
                node,
                "can't be part of it; numbers, names, + - * / **, parentheses and "
                f"{', '.join(_FUNCTIONS)} can",
            )
    return [name for part in parts for name in _check(part, depth + 1)]


def _check_name(node: ast.expr, name: str) -> None:
    if name == "seconds":
        raise _WrongPartError(
            node,
            "is never the same twice, so that the search couldn't be resumed; 'samples' are those "
            "seen in training",
        )
    if name not in METRICS + SIZES:
        raise _WrongPartError(node, f"is unknown{nearest(name, METRICS + SIZES)}")


def _check_call(node: ast.expr, name: str, number: int) -> None:
    if name not in _FUNCTIONS:
        raise _WrongPartError(node, f"isn't a known function{nearest(name, _FUNCTIONS)}")
    if name in ("max", "min") and number < 2:
        raise _WrongPartError(node, "needs two numbers or more")
    if name not in ("max", "min") and number != 1:
        raise _WrongPartError(node, "takes one number")


def _evaluate(node: ast.expr, numbers: Mapping[str, float]) -> float:
    match node:
        case ast.Constant(value=int() | float() as value):
            return float(value)
        case ast.Name(id=name):
            return float(numbers[name])
        case ast.UnaryOp(op=op, operand=operand):
            return _OPERATORS[type(op)](_evaluate(operand, numbers))
        case ast.BinOp(left=left, op=op, right=right):
            return _OPERATORS[type(op)](_evaluate(left, numbers), _evaluate(right, numbers))
        case ast.Call(func=ast.Name(id=name), args=parts):
            return _FUNCTIONS[name](*(_evaluate(part, numbers) for part in parts))
    raise TypeError(f"{ast.dump(node)} has passed _check")
