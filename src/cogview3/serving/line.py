"""The fair queue: jobs wait in a line for each client, and the client that was served least goes first."""

from collections import deque
from collections.abc import Iterator

from cogview3.serving.orders import Job, Kind


class Line:
    """Waiting jobs, fair between clients by the cost of what they were given (start-time fair queueing).

    A client that comes back after a pause starts level with the others: pauses are not saved up.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, deque[Job]] = {}
        self._served: dict[str, float] = {}
        self._level = 0.0

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def __iter__(self) -> Iterator[Job]:
        for jobs in self._waiting.values():
            yield from jobs

    def count(self, client: str) -> int:
        """How many of a client's jobs wait."""
        return len(self._waiting.get(client, ()))

    def add(self, job: Job) -> None:
        """Put a job behind its client's others."""
        if job.client not in self._waiting:
            self._waiting[job.client] = deque()
            self._served[job.client] = max(self._served.get(job.client, 0.0), self._level)
        self._waiting[job.client].append(job)

    def remove(self, job: Job) -> bool:
        """Take a job out, wherever it stands; False where it does not wait."""
        jobs = self._waiting.get(job.client)
        if not jobs or job not in jobs:
            return False
        jobs.remove(job)
        self._forget_idle()
        return True

    def position(self, job: Job) -> int | None:
        """How many jobs are likely to be taken before this one; None where it does not wait."""
        jobs = self._waiting.get(job.client)
        if not jobs or job not in jobs:
            return None
        own = jobs.index(job)
        served = self._served[job.client]
        ahead = own
        for client, others in self._waiting.items():
            if client != job.client:
                first = self._served[client] <= served  # the other one is served before this client's first
                ahead += min(len(others), own + first)
        return ahead

    def next_kind(self) -> Kind | None:
        """The kind of the job that is next; None where none waits."""
        return self._waiting[self._order()[0]][0].kind if self._waiting else None

    def matching(self, kind: Kind) -> int:
        """How many waiting jobs could be drawn together with one of this kind."""
        return sum(job.kind == kind for job in self)

    def take(self, most: int) -> list[Job]:
        """The next job and up to `most - 1` others of its kind, one of each client by turns."""
        kind = self.next_kind()
        taken: list[Job] = []
        while len(taken) < most:
            turn = [job for client in self._order() if (job := self._first(client, kind)) is not None]
            if not turn:
                break
            for job in turn[: most - len(taken)]:
                self._waiting[job.client].remove(job)
                self._served[job.client] += job.cost
                taken.append(job)
        if taken:
            self._level = max(self._level, self._served[taken[0].client] - taken[0].cost)
        self._forget_idle()
        return taken

    def _order(self) -> list[str]:
        """Clients with something waiting, the one that was served least first."""
        return sorted((client for client, jobs in self._waiting.items() if jobs), key=self._served.__getitem__)

    def _first(self, client: str, kind: Kind | None) -> Job | None:
        return next((job for job in self._waiting[client] if job.kind == kind), None)

    def _forget_idle(self) -> None:
        """Let go of clients without jobs; what they were served is kept only while it would matter."""
        for client in [client for client, jobs in self._waiting.items() if not jobs]:
            del self._waiting[client]
        for client in [client for client, served in self._served.items() if served <= self._level]:
            if client not in self._waiting:
                del self._served[client]
