"""Requests about the calendar."""

from __future__ import annotations

from rcgrpo.environments.toolworld.apis import DAYS
from rcgrpo.environments.toolworld.scene import Request, Scene, Unfit


def ask_when(s: Scene) -> Request:
    title = s.pick(s.titles)
    when = s.do("when", title=title)
    s.last["entry"] = title
    ask = s.say("When is my {t}?", "What time is the {t}?", "On which day do I have {t}?", t=title)
    return Request(ask, closing=f"{when['day']} {when['hour']}")


def book(s: Scene) -> Request:
    title, (day, hour) = s.new_title(), s.slot(free=True)
    s.do("book", day=day, hour=hour, title=title)
    s.last["entry"] = title
    ask = s.say(
        "Book {t} on {d} at {h}.",
        "I have {t} {d} at {h}, add it.",
        "Put {t} down for {d} at {h}.",
        t=title,
        d=day,
        h=hour,
    )
    if s.maybe(0.5):
        vague = s.say("Book {t} on {d}.", "Put {t} down for {d}.", t=title, d=day)
        return Request(ask, vague=(vague, s.say("At {h}.", "{h} is good.", h=hour)))
    vague = s.say("Book {t} at {h}.", "Put {t} down for {h}.", t=title, h=hour)
    return Request(ask, vague=(vague, s.say("On {d}.", "{d}.", d=day)))


def _on_entry(s: Scene, tool: str, asks: tuple[str, ...], vagues: tuple[str, ...]) -> Request:
    title = s.pick(s.titles)
    s.do(tool, **s.do("when", title=title))
    s.last["entry"] = title
    return Request(s.say(*asks, t=title), vague=(s.say(*vagues), s.say("The {t}.", "I mean {t}.", t=title)))


def cancel(s: Scene) -> Request:
    asks = ("Cancel my {t}.", "I cannot make it to the {t}, cancel it.", "Remove {t} from my week.")
    request = _on_entry(s, "cancel", asks, ("Cancel one of my dates.", "Cancel something for me."))
    del s.last["entry"]
    return request


def alert(s: Scene) -> Request:
    asks = ("Remind me of the {t}.", "Set a reminder for {t}.", "I must not forget the {t}, set an alert.")
    return _on_entry(s, "alert", asks, ("Set a reminder.", "Remind me of something."))


def alert_it(s: Scene) -> Request:
    title = s.known("entry")
    day, hour = next((d, int(h)) for d, es in s.world.state["calendar"].items() for h in es if es[h]["title"] == title)
    s.do("alert", day=day, hour=hour)
    return Request(s.say("Remind me of it.", "Set a reminder for that.", "And an alert for it."))


def shift(s: Scene) -> Request:
    title, (day, hour) = s.pick(s.titles), s.slot(free=True)
    when = s.do("when", title=title)
    s.do("shift", **when, to_day=day, to_hour=hour)
    s.last["entry"] = title
    ask = s.say(
        "Move my {t} to {d} at {h}.", "The {t} is now {d} at {h}.", "Shift {t} to {d}, {h}.", t=title, d=day, h=hour
    )
    vague = s.say("Move my {t} to another time.", "The {t} is at a new time.", t=title)
    return Request(ask, vague=(vague, s.say("{d} at {h}.", "To {d}, {h}.", d=day, h=hour)))


def push_back(s: Scene) -> Request:
    title, k = s.pick(s.titles), s.rng.randint(1, 3)
    when = s.do("when", title=title)
    s.do("shift", **when, to_day=when["day"], to_hour=when["hour"] + k)
    s.last["entry"] = title
    ask = s.say("Push my {t} back by {k} h on the same day.", "The {t} starts {k} h later, fix that.", t=title, k=k)
    return Request(ask, vague=(s.say("Push my {t} back a bit.", t=title), s.say("By {k} h.", "{k} h later.", k=k)))


def book_or_next(s: Scene) -> Request:
    title, (day, hour) = s.new_title(), s.slot(free=s.maybe(0.3))
    if s.tries("book", day=day, hour=hour, title=title):
        later = [h for h in s.do("free", day=day)["free"] if h > hour]
        s.do("book", day=day, hour=s.pick(later[:1]), title=title)
    s.last["entry"] = title
    ask = s.say(
        "Book {t} on {d} at {h}, or the next free hour that day.",
        "Put {t} down for {d} at {h}. If that is taken, the first free hour after it.",
        t=title,
        d=day,
        h=hour,
    )
    vague = s.say("Book {t} on {d}, or the next free hour after that time.", t=title, d=day)
    return Request(ask, vague=(vague, s.say("From {h}.", "I thought of {h}.", h=hour)))


def book_first_free(s: Scene) -> Request:
    title, day = s.new_title(), s.pick(DAYS)
    s.do("book", day=day, hour=s.pick(s.do("free", day=day)["free"][:1]), title=title)
    s.last["entry"] = title
    ask = s.say("Book {t} at the first free hour on {d}.", "As early as I can on {d}: {t}. Book it.", t=title, d=day)
    vague = s.say("Book {t} at the first free hour of a day.", t=title)
    return Request(ask, vague=(vague, s.say("{d}.", "On {d}.", d=day)))


def clear_morning(s: Scene) -> Request:
    day = s.pick(DAYS)
    early = [int(hour) for hour in s.do("agenda", day=day) if int(hour) < 12]
    if not 1 <= len(early) <= 2:
        raise Unfit("nothing to clear, or too much")
    for hour in early:
        s.do("cancel", day=day, hour=hour)
    s.last.pop("entry", None)
    ask = s.say("Cancel all I have on {d} before 12.", "Clear my {d} morning, all before 12.", d=day)
    return Request(
        ask, vague=(s.say("Clear one of my mornings, all before 12."), s.say("{d}.", "The one on {d}.", d=day))
    )
