"""The cost of requests to an endpoint, and limits in requests, tokens and money."""

import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from cogview3.config import UserError

MOST_TOKENS = 10**9
"""Of one answer; a count above that is not believed."""


@dataclass(frozen=True)
class Usage:
    """What was spent: requests, tokens as the endpoint counts them, and money in the price's currency."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    money: float = 0.0

    @property
    def tokens(self) -> int:
        """Of prompts and completions together."""
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Usage":
        """The inverse of `to_dict`. Counts that no number of answers can explain are left out."""
        usage = cls(**data)
        believed = 0 <= usage.tokens <= MOST_TOKENS * max(1, usage.requests) and 0 <= usage.requests < 2**53
        return usage if believed and 0 <= usage.money < float("inf") else cls(min(max(usage.requests, 0), 2**53))

    def to_dict(self) -> dict[str, Any]:
        """Plain types; money to a billionth."""
        return asdict(self) | {"money": round(self.money, 9)}


@dataclass(frozen=True)
class Price:
    """Of a million tokens of prompts, and of a million of completions."""

    prompt: float = 0.0
    completion: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.prompt < float("inf") and 0 <= self.completion < float("inf")):
            raise UserError(f"price {self.prompt},{self.completion}: give two numbers, 0 or more")

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        """The money for so many tokens."""
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6


class Budget:
    """Counts what is spent, and stops what would exceed a limit. Threads may share it.

    What a request costs is known when its answer is there. Until then the dearest answer so far is set aside for it;
    and where tokens or money are limited, the first request goes alone. So a limit is exceeded by no more than what
    the last answers cost beyond the dearest before them.

    `requests` counts failed ones too, `tokens` prompts and completions together, `money` needs a price; None is no
    limit. Raises UserError for a limit below 0, or money without a price.
    """

    def __init__(
        self,
        requests: int | None = None,
        tokens: int | None = None,
        money: float | None = None,
        price: Price | None = None,
    ) -> None:
        for name, limit in (("requests", requests), ("tokens", tokens), ("money", money)):
            if limit is not None and not 0 <= limit < float("inf"):
                raise UserError(f"a budget of {limit} {name}: give 0 or more")
        self._price = price or Price()
        if money is not None and not (self._price.prompt or self._price.completion):
            raise UserError(f"a budget of {money:g} in money needs a price: give that of a million tokens")
        self._limits: dict[str, float | None] = {"requests": requests, "tokens": tokens, "money": money}
        self._changed = threading.Condition()
        self.spent = Usage()  # so far, requests under way included
        self._dearest: Usage | None = None
        self._told = False
        self._flying = 0
        self._blind = False

    def add(self, usage: Usage) -> None:
        """Count what was spent elsewhere, by an earlier run say; its mean is what is first set aside for a request."""
        with self._changed:
            self.spent += usage
            if self._dearest is None and usage.requests and usage.tokens:
                self._dearest = Usage(0, usage.tokens // usage.requests, 0, usage.money / usage.requests)

    def reserve(self) -> str:
        """Set aside what one more request may cost, and count it; the reason against it, "" where there is none.

        Waits for requests under way where it depends on them. Each one reserved must be settled.
        """
        with self._changed:
            while True:
                reason = self._against()
                if reason and (not self._flying or self._against(flying=0) or self._blind):
                    return reason
                if not reason and (not self._unknown() or not self._flying):
                    self._flying += 1
                    self.spent += Usage(requests=1)
                    return ""
                self._changed.wait()

    def settle(self, tokens: tuple[int, int] | None, answered: bool = True) -> Usage:
        """Count what a reserved request cost: tokens of prompt and completion, None where nobody knows.

        `answered` says whether an answer came; only of answers is it taken amiss that their tokens are unknown. Returns
        the cost, the request left out, as that is counted already.
        """
        with self._changed:
            self._flying -= 1
            cost = Usage(0, *tokens, self._price.of(*tokens)) if tokens else Usage()
            self.spent += cost
            if tokens:
                self._told = True
                best = self._dearest or Usage()
                self._dearest = Usage(0, max(best.tokens, cost.tokens), 0, max(best.money, cost.money))
            self._blind |= answered and tokens is None
            self._changed.notify_all()
            return cost

    def _unknown(self) -> bool:
        """Whether the cost of a request matters and no answer has told it yet."""
        return not self._told and any(self._limits[name] is not None for name in ("tokens", "money"))

    def _against(self, flying: int | None = None) -> str:
        """Why there may be no further request beside those under way."""
        limited = [name for name in ("tokens", "money") if self._limits[name] is not None]
        if self._blind and limited:
            return f"the endpoint does not tell its tokens, so a budget in {limited[0]} cannot be kept"
        flying = self._flying if flying is None else flying
        each = self._dearest or Usage()
        for name, limit in self._limits.items():
            if limit is None:
                continue
            spent = getattr(self.spent, name)
            ahead = 1 if name == "requests" else (flying + 1) * getattr(each, name)
            if spent + ahead > limit or (spent >= limit and name != "requests"):
                return f"the budget of {limit:g} {name} is spent ({spent:g} so far)"
        return ""
