"""Requests that carry a result from one domain to another."""

from __future__ import annotations

from rcgrpo.environments.toolworld.scene import Request, Scene


def send_price(s: Scene) -> Request:
    item, name = s.pick(s.items), s.pick(s.contacts)
    price = s.do("price", id=s.item_id(item))["price"]
    s.do("send", to=s.person_id(name), text=str(price))
    ask = s.say("Send {p} the price of the {i}.", "Let {p} know what the {i} costs, just the number.", p=name, i=item)
    vague = s.say("Send {p} the price of an item.", p=name)
    return Request(ask, vague=(vague, s.say("The {i}.", "I mean the {i}.", i=item)))


def send_file(s: Scene) -> Request:
    file, name = s.pick(s.files), s.pick(s.contacts)
    text = s.do("read", **s.do("find", file=file), file=file)["text"]
    s.do("send", to=s.person_id(name), text=text)
    ask = s.say("Send {p} the text of {f}.", "Let {p} know what {f} says.", p=name, f=file)
    vague = s.say("Send the text of {f} to someone.", f=file)
    return Request(ask, vague=(vague, s.say("To {p}.", "I mean {p}.", p=name)))


def send_when(s: Scene) -> Request:
    title, name = s.pick(s.titles), s.pick(s.contacts)
    when = s.do("when", title=title)
    s.do("send", to=s.person_id(name), text=f"{when['day']} {when['hour']}")
    s.last["entry"] = title
    ask = s.say("Send {p} the day and hour of my {t}.", "Let {p} know when my {t} is, day and hour.", p=name, t=title)
    vague = s.say("Let someone know when my {t} is, day and hour.", t=title)
    return Request(ask, vague=(vague, s.say("{p}.", "Send it to {p}.", p=name)))


def note_price(s: Scene) -> Request:
    item, file, dir = s.pick(s.items), s.new_file(), s.pick(s.dirs)
    price = s.do("price", id=s.item_id(item))["price"]
    s.do("write", dir=dir, file=file, text=str(price))
    ask = s.say(
        "Write the price of the {i} to {f} in {d}.", "Note in {d}, file {f}, what the {i} costs.", i=item, f=file, d=dir
    )
    vague = s.say("Write the price of the {i} to a {f}.", i=item, f=file)
    return Request(ask, vague=(vague, s.say("In {d}.", "The dir is {d}.", d=dir)))


def note_mail(s: Scene) -> Request:
    name, file, dir = s.pick(s.inbox), s.new_file(), s.pick(s.dirs)
    text = s.do("open_mail", id=s.do("inbox")[name])["text"]
    s.do("write", dir=dir, file=file, text=text)
    ask = s.say("Save {p}'s mail as {f} in {d}.", "Write what {p} wrote to {f} in {d}.", p=name, f=file, d=dir)
    return Request(ask, vague=(s.say("Save {p}'s mail as {f}.", p=name, f=file), s.say("In {d}.", d=dir)))


def book_if_cheap(s: Scene) -> Request:
    item, limit, (day, hour) = s.pick(s.items), s.rng.randint(10, 50), s.slot(free=True)
    id = s.item_id(item)
    if s.do("price", id=id)["price"] <= limit:
        s.do("buy", id=id, n=1)
    else:
        s.do("book", day=day, hour=hour, title="shopping")
    ask = s.say("Buy a {i} if it is at most {x}, else book shopping on {d} at {h}.", i=item, x=limit, d=day, h=hour)
    return Request(ask)


def note_when(s: Scene) -> Request:
    title, file, dir = s.pick(s.titles), s.new_file(), s.pick(s.dirs)
    when = s.do("when", title=title)
    s.do("write", dir=dir, file=file, text=f"{when['day']} {when['hour']}")
    s.last["entry"] = title
    ask = s.say("Write the day and hour of my {t} to {f} in {d}.", t=title, f=file, d=dir)
    return Request(
        ask, vague=(s.say("Write the day and hour of my {t} to {f}.", t=title, f=file), s.say("In {d}.", d=dir))
    )
