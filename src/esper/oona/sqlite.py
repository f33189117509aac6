"""Messages in one SQLite file, for the processes of one host; nothing to install.

The file is in WAL mode with ``synchronous=NORMAL``: what was published survives the death of any process; the last
moments may be lost when the machine itself loses power.
"""

import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

from esper.contracts.errors import BusError, BusUnavailableError
from esper.oona.bus import (
    DeadLetter,
    Delivery,
    Message,
    Start,
    Statistics,
    check_joining,
    check_messages,
    check_topic,
)

_PATIENCE_S = 10.0  # for another process that writes
_PAUSE_S = 0.002  # between two looks for messages
_LONGEST_PAUSE_S = 0.02

_TABLES = """
CREATE TABLE IF NOT EXISTS topics (name TEXT PRIMARY KEY, first INTEGER NOT NULL, next INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS messages (topic TEXT, number INTEGER, key TEXT, body BLOB, headers TEXT,
    PRIMARY KEY (topic, number)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS groups (topic TEXT, name TEXT, next INTEGER NOT NULL,
    PRIMARY KEY (topic, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS held (topic TEXT, grp TEXT, number INTEGER, until REAL NOT NULL, attempt INTEGER NOT NULL,
    PRIMARY KEY (topic, grp, number)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS dead (id INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT, grp TEXT, reason TEXT, time REAL,
    key TEXT, body BLOB, headers TEXT);
"""


def connect(url: str, bound: int) -> "SqliteBus":
    """The bus of ``sqlite:PATH``.

    Raises:
        BusError: if there is no path, or no database can be there.
    """
    path = url.partition(":")[2].partition("?")[0]
    path = path[2:] if path.startswith("//") else path
    if not path:
        raise BusError("sqlite: names no file. Say sqlite:PATH, such as sqlite:runs/bus.db.")
    return SqliteBus(path, bound)


class SqliteBus:
    """Implements :class:`esper.oona.bus.Bus`.

    Args:
        path: of the database; its folder must exist.
        bound: messages that a topic holds at most.
    """

    def __init__(self, path: str, bound: int) -> None:
        self._path, self._bound = path, bound
        self._threads = threading.local()
        self._opened: list[sqlite3.Connection] = []
        self.statistics = Statistics()
        try:
            with self.writing() as database:
                database.execute("SELECT 1 FROM topics LIMIT 1")
        except BusUnavailableError as error:
            raise BusError(f"sqlite: {path!r} cannot be opened: {error.__cause__}.") from error

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that writes, alone among all processes.

        Raises:
            BusUnavailableError: if the database cannot be used, as when the disk is full.
        """
        try:
            database = self._connection()
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
            except BaseException:
                database.execute("ROLLBACK")
                raise
            database.execute("COMMIT")
        except sqlite3.Error as error:
            raise BusUnavailableError(f"sqlite: {self._path!r} does not take this: {error}.") from error

    def _connection(self) -> sqlite3.Connection:
        found: sqlite3.Connection | None = getattr(self._threads, "connection", None)
        if found is None:
            found = sqlite3.connect(
                self._path, timeout=_PATIENCE_S, isolation_level=None, check_same_thread=False, cached_statements=64
            )
            found.execute("PRAGMA journal_mode=WAL")
            found.execute("PRAGMA synchronous=NORMAL")
            found.executescript(_TABLES)
            self._threads.connection = found
            self._opened.append(found)
        return found

    def changes(self) -> int:
        """A number that differs once another connection has written."""
        (version,) = self._connection().execute("PRAGMA data_version").fetchone()
        return int(version)

    def publish(self, message: Message) -> None:
        self.publish_batch([message])

    def publish_batch(self, messages: Sequence[Message]) -> None:
        check_messages(messages)
        with self.writing() as database:
            self._append(database, messages)
        self.statistics.published += len(messages)

    def _append(self, database: sqlite3.Connection, messages: Sequence[Message]) -> None:
        for topic, part in groupby(messages, key=lambda message: message.topic):
            first, end = _topic(database, topic)
            rows = [
                (topic, end + index, message.key, message.body, json.dumps(dict(message.headers)))
                for index, message in enumerate(part)
            ]
            database.executemany("INSERT INTO messages VALUES (?, ?, ?, ?, ?)", rows)
            end += len(rows)
            if end - first > self._bound:
                first = end - self._bound
                database.execute("DELETE FROM messages WHERE topic = ? AND number < ?", (topic, first))
            database.execute("UPDATE topics SET first = ?, next = ? WHERE name = ?", (first, end, topic))

    def subscribe(
        self, topic: str, group: str, consumer: str, *, start: Start = "new", redeliver_after_s: float = 30.0
    ) -> "SqliteSubscription":
        check_joining(topic, group, consumer)
        with self.writing() as database:
            first, end = _topic(database, topic)
            joined = (topic, group, end if start == "new" else first)
            database.execute("INSERT OR IGNORE INTO groups VALUES (?, ?, ?)", joined)
        return SqliteSubscription(self, topic, group, redeliver_after_s)

    def forget(self, topic: str, group: str) -> None:
        check_topic(topic)
        with self.writing() as database:
            database.execute("DELETE FROM groups WHERE topic = ? AND name = ?", (topic, group))
            database.execute("DELETE FROM held WHERE topic = ? AND grp = ?", (topic, group))

    def topics(self) -> dict[str, int]:
        with self.writing() as database:
            return dict(database.execute("SELECT name, next - first FROM topics ORDER BY name").fetchall())

    def dead_letters(self, topic: str, most: int = 1000) -> list[DeadLetter]:
        check_topic(topic)
        with self.writing() as database:
            return _dead(database, "topic = ? ORDER BY id LIMIT ?", topic, most)

    def requeue(self, topic: str, ids: Sequence[str]) -> int:
        check_topic(topic)
        with self.writing() as database:
            found = [letter for one in ids for letter in _dead(database, "topic = ? AND id = ?", topic, one)]
            self._append(database, [letter.message for letter in found])
            database.executemany("DELETE FROM dead WHERE id = ?", [(letter.id,) for letter in found])
        self.statistics.published += len(found)
        return len(found)

    def close(self) -> None:
        for connection in self._opened:
            connection.close()
        self._opened.clear()
        self._threads = threading.local()


class SqliteSubscription:
    """Implements :class:`esper.oona.bus.Subscription`."""

    def __init__(self, bus: SqliteBus, topic: str, group: str, redeliver_after_s: float) -> None:
        self._bus, self._topic, self._group = bus, topic, group
        self._redeliver_after_s = redeliver_after_s

    def receive(self, most: int = 100, timeout_s: float = 0.0) -> list[Delivery]:
        deadline = time.monotonic() + timeout_s
        while True:
            before = self._bus.changes()
            with self._bus.writing() as database:
                found = self._overdue(database, most)
                found += self._unread(database, most - len(found))
                self._hold(database, found)
                left_s = self._next_overdue_s(database)
            if found or time.monotonic() >= deadline:
                self._bus.statistics.count(found)
                return found
            self._wait(before, min(deadline, time.monotonic() + left_s))

    def _wait(self, version: int, until: float) -> None:
        """Until another connection has written, at the longest until a time."""
        pause = _PAUSE_S
        while self._bus.changes() == version and (left := until - time.monotonic()) > 0:
            time.sleep(min(pause, left))
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _next_overdue_s(self, database: sqlite3.Connection) -> float:
        mine = (self._topic, self._group)
        (until,) = database.execute("SELECT min(until) FROM held WHERE topic = ? AND grp = ?", mine).fetchone()
        return float("inf") if until is None else float(until) - time.time()

    def _overdue(self, database: sqlite3.Connection, most: int) -> list[Delivery]:
        rows = database.execute(
            "SELECT number, key, body, headers, attempt FROM held JOIN messages USING (topic, number) "
            "WHERE topic = ? AND grp = ? AND until <= ? ORDER BY number LIMIT ?",
            (self._topic, self._group, time.time(), most),
        )
        return [Delivery(_message(self._topic, *rest), str(number), attempt + 1) for number, *rest, attempt in rows]

    def _unread(self, database: sqlite3.Connection, most: int) -> list[Delivery]:
        first, _ = _topic(database, self._topic)
        mine = (self._topic, self._group)
        row = database.execute("SELECT next FROM groups WHERE topic = ? AND name = ?", mine).fetchone()
        if row is None:  # somebody has emptied the database
            self._bus.statistics.wiped += 1
            database.execute("INSERT INTO groups VALUES (?, ?, ?)", (*mine, first))
            row = (first,)
        if row[0] < first:
            gone = database.execute("DELETE FROM held WHERE topic = ? AND grp = ? AND number < ?", (*mine, first))
            self._bus.statistics.lost += first - row[0] + gone.rowcount
        rows = database.execute(
            "SELECT number, key, body, headers FROM messages WHERE topic = ? AND number >= ? ORDER BY number LIMIT ?",
            (self._topic, max(row[0], first), most),
        )
        found = [Delivery(_message(self._topic, *rest), str(number)) for number, *rest in rows]
        following = int(found[-1].id) + 1 if found else max(row[0], first)
        if following != row[0]:
            database.execute("UPDATE groups SET next = ? WHERE topic = ? AND name = ?", (following, *mine))
        return found

    def _hold(self, database: sqlite3.Connection, found: Sequence[Delivery]) -> None:
        until = time.time() + self._redeliver_after_s
        rows = [(self._topic, self._group, int(one.id), until, one.attempt) for one in found]
        database.executemany("INSERT OR REPLACE INTO held VALUES (?, ?, ?, ?, ?)", rows)

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        with self._bus.writing() as database:
            acked = sum(self._let_go(database, one) for one in deliveries)
        self._bus.statistics.acked += acked

    def reject(self, delivery: Delivery, reason: str) -> None:
        message = delivery.message
        with self._bus.writing() as database:
            is_held = self._let_go(database, delivery)
            if is_held:
                where = (self._topic, self._group, reason, time.time())
                what = (message.key, message.body, json.dumps(dict(message.headers)))
                database.execute(
                    "INSERT INTO dead (topic, grp, reason, time, key, body, headers) VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (*where, *what),
                )
        self._bus.statistics.rejected += is_held

    def _let_go(self, database: sqlite3.Connection, one: Delivery) -> int:
        mine = (self._topic, self._group, int(one.id))
        return database.execute("DELETE FROM held WHERE topic = ? AND grp = ? AND number = ?", mine).rowcount

    def close(self) -> None:
        pass


def _topic(database: sqlite3.Connection, name: str) -> tuple[int, int]:
    """Numbers of the oldest message of a topic and of the next one to come."""
    database.execute("INSERT OR IGNORE INTO topics VALUES (?, 0, 0)", (name,))
    first, end = database.execute("SELECT first, next FROM topics WHERE name = ?", (name,)).fetchone()
    return int(first), int(end)


def _dead(database: sqlite3.Connection, where: str, *values: Any) -> list[DeadLetter]:
    rows = database.execute(f"SELECT topic, key, body, headers, id, grp, reason, time FROM dead WHERE {where}", values)
    return [DeadLetter(_message(*row[:4]), str(row[4]), *row[5:]) for row in rows]


def _message(topic: str, key: str, body: bytes, headers: str) -> Message:
    return Message(topic, key, body, json.loads(headers))
