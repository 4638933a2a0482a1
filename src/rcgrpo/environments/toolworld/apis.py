"""The four small APIs of ToolWorld: files, shop, mail, calendar. Their public methods are the tools.

Each class reads and writes its own part of ``self._state``, a JSON dict that one episode owns. Names, arguments
and results are short on purpose: every token costs where the policy runs on a CPU. Nothing hands out ids, so
calls that commute lead to equal states. A tool that cannot do what it is asked raises :class:`ToolError` and
changes nothing.
"""

from __future__ import annotations

from typing import Any

from rcgrpo.environments.protocol import ToolError

State = dict[str, Any]
"""The world as JSON: ``{"files": ..., "shop": ..., "mail": ..., "calendar": ...}``, only the task's domains."""

HOURS = range(8, 18)
DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri")
OK = {"ok": True}


def _short(text: str, limit: int = 60) -> str:
    """``text``, cut: what the policy wrote comes back in errors, and may be a megabyte."""
    return text if len(text) <= limit else text[:limit] + "..."


def _fits(text: str, limit: int = 120) -> str:
    if not 0 < len(text) <= limit:
        raise ToolError(f"text must have 1 to {limit} characters")
    return text


class Files:
    """Folders of text files. State: ``{folder: {file: {"size": int, "text": str}}}``."""

    _state: State

    def _dir(self, name: str) -> dict[str, Any]:
        if name not in self._state["files"]:
            raise ToolError(f"no dir {_short(name)}")
        return self._state["files"][name]

    def _file(self, dir: str, file: str) -> dict[str, Any]:
        if file not in self._dir(dir):
            raise ToolError(f"no file {_short(file)} in {dir}")
        return self._dir(dir)[file]

    def ls(self, dir: str) -> dict:
        """Files of a dir with sizes.

        Args:
            dir: Dir name.
        """
        files = self._dir(dir)
        return {name: files[name]["size"] for name in sorted(files)}

    def find(self, file: str) -> dict:
        """Dir of a file.

        Args:
            file: File name.
        """
        for name, files in sorted(self._state["files"].items()):
            if file in files:
                return {"dir": name}
        raise ToolError(f"no file {_short(file)}")

    def read(self, dir: str, file: str) -> dict:
        """Text of a file.

        Args:
            dir: Dir name.
            file: File name.
        """
        return {"text": self._file(dir, file)["text"]}

    def write(self, dir: str, file: str, text: str) -> dict:
        """Write a file.

        Args:
            dir: Dir name.
            file: File name.
            text: New text.
        """
        self._dir(dir)[_fits(file, 30)] = {"size": len(_fits(text)), "text": text}
        return OK

    def mv(self, dir: str, file: str, to: str) -> dict:
        """Move a file.

        Args:
            dir: Dir it is in.
            file: File name.
            to: New dir.
        """
        self.cp(dir, file, to)
        del self._dir(dir)[file]
        return OK

    def cp(self, dir: str, file: str, to: str) -> dict:
        """Copy a file.

        Args:
            dir: Dir it is in.
            file: File name.
            to: Second dir.
        """
        source = self._file(dir, file)
        if file in self._dir(to):
            raise ToolError(f"{file} is already in {to}")
        self._dir(to)[file] = dict(source)
        return OK

    def rm(self, dir: str, file: str) -> dict:
        """Delete a file.

        Args:
            dir: Dir name.
            file: File name.
        """
        self._file(dir, file)
        del self._dir(dir)[file]
        return OK

    def mkdir(self, dir: str) -> dict:
        """Make a dir.

        Args:
            dir: Dir name.
        """
        if dir in self._state["files"]:
            raise ToolError(f"{_short(dir)} exists")
        self._state["files"][_fits(dir, 30)] = {}
        return OK


class Shop:
    """A shop and the user's account.

    State: ``{"items": {name: {"id", "price", "stock"}}, "money": int, "bought": {name: count},
    "watched": {name: True}}``.
    """

    _state: State

    def _item(self, id: int) -> tuple[str, dict[str, Any]]:
        for name, item in self._state["shop"]["items"].items():
            if item["id"] == id:
                return name, item
        raise ToolError("no such id")

    def catalog(self) -> dict:
        """Ids of all items."""
        return {name: item["id"] for name, item in self._state["shop"]["items"].items()}

    def price(self, id: int) -> dict:
        """Price and stock of an item.

        Args:
            id: Item id.
        """
        item = self._item(id)[1]
        return {"price": item["price"], "stock": item["stock"]}

    def buy(self, id: int, n: int) -> dict:
        """Buy n pieces.

        Args:
            id: Item id.
            n: How many.
        """
        shop = self._state["shop"]
        name, item = self._item(id)
        if n < 1:
            raise ToolError("n must be positive")
        if n > item["stock"]:
            raise ToolError(f"only {item['stock']} in stock")
        if n * item["price"] > shop["money"]:
            raise ToolError(f"{n * item['price'] - shop['money']} short")
        item["stock"] -= n
        shop["money"] -= n * item["price"]
        shop["bought"][name] = shop["bought"].get(name, 0) + n
        return {"left": shop["money"]}

    def refund(self, id: int) -> dict:
        """Return all bought pieces.

        Args:
            id: Item id.
        """
        shop = self._state["shop"]
        name, item = self._item(id)
        if name not in shop["bought"]:
            raise ToolError("not bought")
        n = shop["bought"].pop(name)
        item["stock"] += n
        shop["money"] += n * item["price"]
        return {"left": shop["money"]}

    def watch(self, id: int) -> dict:
        """Put on the watch list.

        Args:
            id: Item id.
        """
        self._state["shop"]["watched"][self._item(id)[0]] = True
        return OK

    def balance(self) -> dict:
        """Money left."""
        return {"left": self._state["shop"]["money"]}

    def deposit(self, amount: int) -> dict:
        """Add money.

        Args:
            amount: How much.
        """
        if not 1 <= amount <= 1000:
            raise ToolError("amount must be 1 to 1000")
        self._state["shop"]["money"] += amount
        return {"left": self._state["shop"]["money"]}


class Mail:
    """A message box and its contacts.

    State: ``{"contacts": {name: id}, "inbox": {name: {"id", "text"}}, "sent": sorted [[id, text]],
    "blocked": {name: True}}``; every sender has one mail, ``"star": True`` in it once starred.
    """

    _state: State

    def _mail(self, id: int) -> tuple[str, dict[str, Any]]:
        for name, mail in self._state["mail"]["inbox"].items():
            if mail["id"] == id:
                return name, mail
        raise ToolError("no such mail")

    def _person(self, id: int) -> str:
        for name, number in self._state["mail"]["contacts"].items():
            if number == id:
                return name
        raise ToolError("no such contact")

    def inbox(self) -> dict:
        """Mail ids by sender."""
        return {name: mail["id"] for name, mail in self._state["mail"]["inbox"].items()}

    def open_mail(self, id: int) -> dict:
        """Text of a mail.

        Args:
            id: Mail id.
        """
        return {"text": self._mail(id)[1]["text"]}

    def trash(self, id: int) -> dict:
        """Delete a mail.

        Args:
            id: Mail id.
        """
        del self._state["mail"]["inbox"][self._mail(id)[0]]
        return OK

    def star(self, id: int) -> dict:
        """Star a mail.

        Args:
            id: Mail id.
        """
        self._mail(id)[1]["star"] = True
        return OK

    def contact(self, name: str) -> dict:
        """Id of a person.

        Args:
            name: First name.
        """
        if name not in self._state["mail"]["contacts"]:
            raise ToolError(f"no contact {_short(name)}")
        return {"id": self._state["mail"]["contacts"][name]}

    def send(self, to: int, text: str) -> dict:
        """Send a text.

        Args:
            to: Contact id.
            text: What to say.
        """
        mail = self._state["mail"]
        if self._person(to) in mail["blocked"]:
            raise ToolError("contact is blocked")
        if len(mail["sent"]) >= 50:
            raise ToolError("outbox full")
        mail["sent"] = sorted([*mail["sent"], [to, _fits(text)]])
        return OK

    def block(self, id: int) -> dict:
        """Block a contact.

        Args:
            id: Contact id.
        """
        self._state["mail"]["blocked"][self._person(id)] = True
        return OK


class Calendar:
    """A week of hours. State: ``{day: {hour as text: {"title": str, "alert": bool}}}``."""

    _state: State

    def _day(self, day: str) -> dict[str, Any]:
        if day not in self._state["calendar"]:
            raise ToolError(f"day must be one of {' '.join(DAYS)}")
        return self._state["calendar"][day]

    def _entry(self, day: str, hour: int) -> dict[str, Any]:
        if hour not in HOURS or str(int(hour)) not in self._day(day):
            raise ToolError("nothing then")
        return self._day(day)[str(int(hour))]

    def _put(self, day: str, hour: int, entry: dict[str, Any]) -> None:
        if hour not in HOURS:
            raise ToolError("hour must be 8 to 17")
        if str(int(hour)) in self._day(day):
            raise ToolError("busy")
        self._day(day)[str(int(hour))] = entry

    def agenda(self, day: str) -> dict:
        """Entries of a day by hour.

        Args:
            day: Mon to Fri.
        """
        day_ = self._day(day)
        return {hour: day_[hour]["title"] for hour in sorted(day_, key=int)}

    def free(self, day: str) -> dict:
        """Free hours of a day.

        Args:
            day: Mon to Fri.
        """
        return {"free": [hour for hour in HOURS if str(hour) not in self._day(day)]}

    def when(self, title: str) -> dict:
        """Day and hour of an entry.

        Args:
            title: Entry title.
        """
        for day, entries in self._state["calendar"].items():
            for hour in sorted(entries, key=int):
                if entries[hour]["title"] == title:
                    return {"day": day, "hour": int(hour)}
        raise ToolError(f"no entry {_short(title)}")

    def book(self, day: str, hour: int, title: str) -> dict:
        """Add an entry.

        Args:
            day: Mon to Fri.
            hour: 8 to 17.
            title: Entry title.
        """
        self._put(day, hour, {"title": _fits(title, 40), "alert": False})
        return OK

    def cancel(self, day: str, hour: int) -> dict:
        """Remove an entry.

        Args:
            day: Mon to Fri.
            hour: 8 to 17.
        """
        self._entry(day, hour)
        del self._day(day)[str(int(hour))]
        return OK

    def shift(self, day: str, hour: int, to_day: str, to_hour: int) -> dict:
        """Move an entry.

        Args:
            day: Old day.
            hour: Old hour.
            to_day: New day.
            to_hour: New hour.
        """
        entry = self._entry(day, hour)
        self._put(to_day, to_hour, entry)
        del self._day(day)[str(int(hour))]
        return OK

    def alert(self, day: str, hour: int) -> dict:
        """Set a reminder.

        Args:
            day: Mon to Fri.
            hour: 8 to 17.
        """
        self._entry(day, hour)["alert"] = True
        return OK


APIS: dict[str, type] = {"files": Files, "shop": Shop, "mail": Mail, "calendar": Calendar}
"""The domains by name; a task's block is its first domain."""

TOOLS = {domain: tuple(n for n in vars(api) if not n.startswith("_")) for domain, api in APIS.items()}
"""Tool names of each domain, in the order in which they are shown."""

READS = frozenset(
    ("ls", "find", "read", "catalog", "price", "balance", "inbox", "open_mail", "contact", "agenda", "free", "when")
)
"""Tools that leave the state as it is."""
