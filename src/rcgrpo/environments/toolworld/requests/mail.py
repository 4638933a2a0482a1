"""Requests about mail and contacts."""

from __future__ import annotations

from rcgrpo.environments.toolworld.scene import Request, Scene
from rcgrpo.environments.toolworld.words import NAMES, SAYINGS


def send(s: Scene) -> Request:
    name, text = s.pick(s.contacts), s.pick(SAYINGS)
    s.do("send", to=s.person_id(name), text=text)
    ask = s.say("Tell {p} '{t}'.", "Send '{t}' to {p}.", "Write to {p}: '{t}'.", "Let {p} know: '{t}'.", p=name, t=text)
    if s.maybe(0.5):
        vague = s.say("Send {p} a message.", "Write to {p}.", p=name)
        return Request(ask, vague=(vague, s.say("Say '{t}'.", "The text is '{t}'.", t=text)))
    vague = s.say("Send '{t}' to my friend.", "Tell someone '{t}'.", t=text)
    return Request(ask, vague=(vague, s.say("To {p}.", "I mean {p}.", p=name)))


def read_mail(s: Scene) -> Request:
    name = s.pick(s.inbox)
    text = s.do("open_mail", id=s.do("inbox")[name])["text"]
    ask = s.say("What did {p} write?", "Read me the mail from {p}.", "What does {p} want?", p=name)
    return Request(ask, closing=text)


def _file_mail(s: Scene, tool: str, asks: tuple[str, ...], vagues: tuple[str, ...]) -> Request:
    name = s.pick(s.inbox)
    s.do(tool, id=s.do("inbox")[name])
    s.last["mail_action"] = tool
    return Request(s.say(*asks, p=name), vague=(s.say(*vagues), s.say("The one from {p}.", "{p}'s.", p=name)))


def trash_mail(s: Scene) -> Request:
    asks = ("Delete the mail from {p}.", "Trash {p}'s mail.", "Throw out what {p} wrote.")
    return _file_mail(s, "trash", asks, ("Delete a mail.", "Trash one of my mails."))


def star_mail(s: Scene) -> Request:
    asks = ("Star the mail from {p}.", "Mark {p}'s mail with a star.", "Give {p}'s mail a star.")
    return _file_mail(s, "star", asks, ("Star a mail.", "Give one of my mails a star."))


def same_mail_action(s: Scene) -> Request:
    tool, name = s.known("mail_action"), s.pick(s.inbox)
    s.do(tool, id=s.do("inbox")[name])
    return Request(s.say("Do the same with {p}'s mail.", "The same for the mail from {p}.", p=name))


def block(s: Scene) -> Request:
    name = s.pick(s.contacts)
    s.do("block", id=s.person_id(name))
    del s.last["person"]
    ask = s.say("Block {p}.", "I want no more mail from {p}, block them.", "Put {p} on the block list.", p=name)
    return Request(
        ask, vague=(s.say("Block someone for me.", "Block one of my contacts."), s.say("{p}.", "I mean {p}.", p=name))
    )


def send_again(s: Scene) -> Request:
    name, text = s.known("person"), s.pick(SAYINGS)
    s.do("send", to=s.contacts[name], text=text)
    ask = s.say("Also tell them '{t}'.", "Send '{t}' to the same person.", "And write to them '{t}'.", t=text)
    return Request(ask, vague=(s.say("Write to them again."), s.say("Say '{t}'.", t=text)))


def forward(s: Scene) -> Request:
    name, other = s.pick(s.inbox), s.pick(s.contacts)
    text = s.do("open_mail", id=s.do("inbox")[name])["text"]
    s.do("send", to=s.person_id(other), text=text)
    ask = s.say(
        "Forward {p}'s mail to {q}.", "Tell {q} what {p} wrote.", "Send {q} the text of {p}'s mail.", p=name, q=other
    )
    vague = s.say("Forward {p}'s mail to someone.", "Pass on what {p} wrote.", p=name)
    return Request(ask, vague=(vague, s.say("To {q}.", "{q} should get it.", q=other)))


def judge_mail(s: Scene) -> Request:
    name = s.pick(s.inbox)
    id = s.do("inbox")[name]
    text = s.do("open_mail", id=id)["text"]
    asked = text if s.maybe(0.5) else s.pick(SAYINGS)
    s.do("star" if text == asked else "trash", id=id)
    ask = s.say(
        "If {p}'s mail says '{t}', star it, else trash it.",
        "Star the mail from {p} if it says '{t}', otherwise delete it.",
        p=name,
        t=asked,
    )
    vague = s.say("If {p}'s mail says what I hope, star it, else trash it.", p=name)
    return Request(ask, vague=(vague, s.say("I hope for '{t}'.", t=asked)))


def send_two(s: Scene) -> Request:
    (a, b), text = s.pick(s.contacts, 2), s.pick(SAYINGS)
    for name in (a, b):
        s.do("send", to=s.person_id(name), text=text)
    ask = s.say("Tell {a} and {b} '{t}'.", "Send '{t}' to {a} and to {b}.", a=a, b=b, t=text)
    return Request(ask, vague=(s.say("Write to {a} and {b}.", a=a, b=b), s.say("Say '{t}'.", t=text)))


def send_or_else(s: Scene) -> Request:
    first = (
        s.pick(s.contacts) if s.maybe(0.3) else s.pick(n for n in NAMES if n not in s.world.state["mail"]["contacts"])
    )
    second, text = s.pick(name for name in s.contacts if name != first), s.pick(SAYINGS)
    known = not s.tries("contact", name=first)
    to = s.contacts[first] if known else s.person_id(second)
    s.last["person"] = first if known else second
    s.do("send", to=to, text=text)
    ask = s.say(
        "Tell {a} '{t}', or {b} if I have no such contact.",
        "Send '{t}' to {a}. If {a} is not in my contacts, send it to {b}.",
        a=first,
        b=second,
        t=text,
    )
    return Request(ask, vague=(s.say("Write to {a}, or else {b}.", a=first, b=second), s.say("Say '{t}'.", t=text)))
