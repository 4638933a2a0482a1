"""What users ask for, and how the expert does it: one function per kind of request.

Each takes the scene, acts in its world through ``scene.do`` and returns the user's words. Easy requests need one
look-up and one action at most; hard ones chain results, decide on them, or recover from an error.
"""

from __future__ import annotations

from collections.abc import Callable

from rcgrpo.environments.toolworld.apis import DAYS
from rcgrpo.environments.toolworld.scene import DIRS, NAMES, SAYINGS, Request, Scene, Unfit

Kind = Callable[[Scene], Request]

# -- files


def read_file(s: Scene) -> Request:
    file = s.pick(s.files)
    text = s.do("read", **s.do("find", file=file), file=file)["text"]
    ask = s.say("What does {f} say?", "Read {f} to me.", "Show me the text of {f}.", "What is in {f}?", f=file)
    return Request(ask, closing=text)


def remove_file(s: Scene) -> Request:
    file = s.pick(s.files)
    s.do("rm", **s.do("find", file=file), file=file)
    s.last["file_action"] = ("rm", {})
    ask = s.say("Delete {f}.", "Get rid of {f}.", "I no longer need {f}, remove it.", "Throw {f} away.", f=file)
    vague = s.say("Delete one of my files.", "Get rid of that file.", "Remove the old file.")
    return Request(ask, vague=(vague, s.say("I mean {f}.", "It is {f}.", "{f}.", f=file)))


def _carry(s: Scene, tool: str, verbs: tuple[str, ...]) -> Request:
    file, to = s.pick(s.files), s.pick(s.dirs)
    s.do(tool, **s.do("find", file=file), file=file, to=to)
    s.last["file_action"] = (tool, {"to": to})
    verb = s.pick(verbs)
    ask = s.say("{v} {f} to {d}.", "{v} my {f} to the {d} dir.", "{v} {f} over to {d}.", v=verb, f=file, d=to)
    if s.maybe(0.5):
        vague = s.say("{v} {f} to another dir.", "{v} {f} somewhere else.", v=verb, f=file)
        return Request(ask, vague=(vague, s.say("To {d}.", "Into {d}.", "The {d} dir.", d=to)))
    vague = s.say("{v} that file to {d}.", "{v} one of my files to {d}.", v=verb, d=to)
    return Request(ask, vague=(vague, s.say("I mean {f}.", "It is {f}.", "{f}.", f=file)))


def move_file(s: Scene) -> Request:
    return _carry(s, "mv", ("Move", "Shift", "Put"))


def copy_file(s: Scene) -> Request:
    return _carry(s, "cp", ("Copy", "Duplicate"))


def same_file_action(s: Scene) -> Request:
    tool, extra = s.known("file_action")
    file = s.pick(s.files)
    s.do(tool, **s.do("find", file=file), file=file, **extra)
    return Request(s.say("Do the same with {f}.", "The same for {f}.", "{f} gets the same treatment.", f=file))


def file_into_new_dir(s: Scene) -> Request:
    file, to = s.pick(s.files), s.pick(DIRS)
    where = s.do("find", file=file)
    if s.tries("mv", **where, file=file, to=to):
        s.do("mkdir", dir=to)
        s.do("mv", **where, file=file, to=to)
    s.last["file_action"] = ("mv", {"to": to})
    ask = s.say(
        "Move {f} to {d}, and make that dir if there is none.",
        "Put {f} into {d}. If {d} is missing, create it.",
        "{f} belongs in {d}, which may not exist yet.",
        f=file,
        d=to,
    )
    vague = s.say("Move {f} to some new dir.", "Put {f} into a dir of its own.", f=file)
    return Request(ask, vague=(vague, s.say("Call it {d}.", "To {d}, make it if missing.", d=to)))


def judge_size(s: Scene) -> Request:
    file, to, limit = s.pick(s.files), s.pick(s.dirs), 5 * s.rng.randint(4, 18)
    where = s.do("find", file=file)
    if s.do("ls", **where)[file] > limit:
        s.do("rm", **where, file=file)
    else:
        s.do("mv", **where, file=file, to=to)
    ask = s.say(
        "If {f} is bigger than {x}, delete it, else move it to {d}.",
        "Delete {f} if its size is over {x}, otherwise put it into {d}.",
        "Check the size of {f}: above {x} it goes, else it moves to {d}.",
        f=file,
        x=limit,
        d=to,
    )
    vague = s.say("If {f} is too big, delete it, else move it to {d}.", f=file, d=to)
    return Request(ask, vague=(vague, s.say("Over {x}.", "Too big is more than {x}.", x=limit)))


def remove_biggest(s: Scene) -> Request:
    dir = s.pick(s.dirs)
    sizes = s.do("ls", dir=dir)
    if len(sizes) < 2:
        raise Unfit("nothing to compare")
    s.do("rm", dir=dir, file=max(sizes, key=sizes.__getitem__))
    ask = s.say("Delete the biggest file in {d}.", "Remove the largest file of {d}.", d=dir)
    vague = s.say("Delete the biggest file in one of the dirs.", "Remove the largest file of that dir.")
    return Request(ask, vague=(vague, s.say("In {d}.", "The {d} dir.", d=dir)))


def move_two(s: Scene) -> Request:
    (a, b), to = s.pick(s.files, 2), s.pick(s.dirs)
    for file in (a, b):
        s.do("mv", **s.do("find", file=file), file=file, to=to)
    ask = s.say(
        "Move {a} and {b} to {d}.", "Both {a} and {b} should go to {d}.", "Put {a} and {b} into {d}.", a=a, b=b, d=to
    )
    vague = s.say("Move {a} and {b} to another dir.", "Put {a} and {b} together.", a=a, b=b)
    return Request(ask, vague=(vague, s.say("Into {d}.", "To {d}.", d=to)))


def append_text(s: Scene) -> Request:
    file, new, dir = s.pick(s.files), s.new_file(), s.pick(s.dirs)
    text = s.do("read", **s.do("find", file=file), file=file)["text"]
    s.do("write", dir=dir, file=new, text=text)
    ask = s.say(
        "Write the text of {f} to {n} in {d}.", "Make a {n} in {d} that says what {f} says.", f=file, n=new, d=dir
    )
    vague = s.say("Write the text of {f} to a {n}.", f=file, n=new)
    return Request(ask, vague=(vague, s.say("In {d}.", "The {n} goes into {d}.", d=dir, n=new)))


def write_note(s: Scene) -> Request:
    new, dir, text = s.new_file(), s.pick(s.dirs), s.pick(SAYINGS)
    s.do("write", dir=dir, file=new, text=text)
    ask = s.say("Write '{t}' to {f} in {d}.", "Make a file {f} in {d} that says '{t}'.", t=text, f=new, d=dir)
    vague = s.say("Make a file {f} in {d}.", "Write something to {f} in {d}.", f=new, d=dir)
    return Request(ask, vague=(vague, s.say("It should say '{t}'.", "Write '{t}'.", t=text)))


# -- shop


def ask_price(s: Scene) -> Request:
    item = s.pick(s.items)
    price = s.do("price", id=s.item_id(item))["price"]
    ask = s.say("How much is the {i}?", "What does the {i} cost?", "Tell me the price of a {i}.", i=item)
    return Request(ask, closing=str(price))


def ask_balance(s: Scene) -> Request:
    ask = s.say("How much money do I have?", "What is left on my account?", "Tell me my balance.")
    return Request(ask, closing=str(s.do("balance")["left"]))


def deposit(s: Scene) -> Request:
    amount = 5 * s.rng.randint(2, 30)
    s.do("deposit", amount=amount)
    ask = s.say("Put {x} on my account.", "Deposit {x}.", "Add {x} to my balance.", "Pay in {x}.", x=amount)
    vague = s.say("Put some money on my account.", "Deposit a bit of money.", "Top up my balance.")
    return Request(ask, vague=(vague, s.say("{x}.", "Make it {x}.", "{x}, please.", x=amount)))


def buy(s: Scene) -> Request:
    item, n = s.pick(s.items), s.rng.randint(1, 4)
    s.do("buy", id=s.item_id(item), n=n)
    ask = s.say(
        "Buy {n} of the {i}.",
        "Get me {n} x {i}.",
        "I want {n} pieces of the {i}.",
        "Order the {i}, {n} of it.",
        n=n,
        i=item,
    )
    if s.maybe(0.5):
        vague = s.say("Buy some of the {i}.", "Get me a few of the {i}.", i=item)
        return Request(ask, vague=(vague, s.say("{n} of it.", "{n} pieces.", "Make that {n}.", n=n)))
    vague = s.say("Buy {n} of those things.", "Get me {n} of the nice ones.", n=n)
    return Request(ask, vague=(vague, s.say("The {i}.", "I mean the {i}.", i=item)))


def watch(s: Scene) -> Request:
    item = s.pick(s.items)
    s.do("watch", id=s.item_id(item))
    ask = s.say("Watch the {i} for me.", "Put the {i} on the watch list.", "Keep an eye on the {i}.", i=item)
    vague = s.say("Put something on the watch list.", "Keep an eye on that one for me.")
    return Request(ask, vague=(vague, s.say("The {i}.", "I mean the {i}.", i=item)))


def buy_more(s: Scene) -> Request:
    item, n = s.known("item"), s.rng.randint(1, 3)
    s.do("buy", id=s.items[item]["id"], n=n)
    ask = s.say("Buy {n} more of that.", "I will take {n} of it.", "Get {n} of that item.", n=n)
    vague = s.say("Buy more of it.", "I will take some of it.")
    return Request(ask, vague=(vague, s.say("{n}.", "{n} of it.", n=n)))


def watch_it(s: Scene) -> Request:
    s.do("watch", id=s.items[s.known("item")]["id"])
    return Request(s.say("Put it on the watch list as well.", "Watch that item too.", "Keep an eye on it."))


def refund(s: Scene) -> Request:
    item = s.pick(s.world.state["shop"]["bought"])
    s.do("refund", id=s.item_id(item))
    ask = s.say("Send the {i} back.", "Return what I bought of the {i}.", "I do not want the {i} after all.", i=item)
    return Request(ask, vague=(s.say("Send that back.", "Return one order."), s.say("The {i}.", i=item)))


def buy_if_cheap(s: Scene) -> Request:
    item, limit = s.pick(s.items), s.rng.randint(10, 50)
    id = s.item_id(item)
    if s.do("price", id=id)["price"] <= limit:
        s.do("buy", id=id, n=1)
    else:
        s.do("watch", id=id)
    ask = s.say(
        "If the {i} costs at most {x}, buy one, else watch it.",
        "Buy a {i} unless it is over {x}, in that case put it on the watch list.",
        "Check the {i}: up to {x} get one, above that only watch it.",
        i=item,
        x=limit,
    )
    vague = s.say("If the {i} is cheap enough, buy one, else watch it.", i=item)
    return Request(ask, vague=(vague, s.say("Up to {x}.", "At most {x} is fine.", x=limit)))


def buy_cheaper(s: Scene) -> Request:
    a, b = s.pick(s.items, 2)
    ids = s.do("catalog")
    item = min((a, b), key=lambda i: s.do("price", id=ids[i])["price"])
    s.do("buy", id=ids[item], n=1)
    s.last["item"] = item
    ask = s.say("Buy the cheaper one of {a} and {b}.", "{a} or {b}? Get me one of the cheaper.", a=a, b=b)
    vague = s.say("Buy the {a} or the other one, what is cheaper.", a=a)
    return Request(ask, vague=(vague, s.say("The other is the {b}.", "Compare it with the {b}.", b=b)))


def buy_with_deposit(s: Scene) -> Request:
    item, n = s.pick(s.items), s.rng.randint(2, 6)
    id = s.item_id(item)
    error = s.tries("buy", id=id, n=n)
    if error.endswith("short"):
        s.do("deposit", amount=int(error.split()[0]))
        s.do("buy", id=id, n=n)
    elif error:
        raise Unfit(error)
    ask = s.say(
        "Buy {n} of the {i}. If money is short, deposit just what is missing.",
        "I want {n} of the {i}, pay in the rest if I am short.",
        n=n,
        i=item,
    )
    vague = s.say("Buy a lot of the {i}, and deposit what is missing.", i=item)
    return Request(ask, vague=(vague, s.say("{n}.", "{n} of it.", n=n)))


def buy_all_stock(s: Scene) -> Request:
    item = s.pick(s.items)
    id = s.item_id(item)
    s.do("buy", id=id, n=s.do("price", id=id)["stock"])
    return Request(s.say("Buy all the {i} they have in stock.", "Get me every {i} that is left in stock.", i=item))


# -- mail


def send(s: Scene) -> Request:
    name, text = s.pick(s.contacts), s.pick(SAYINGS)
    s.do("send", to=s.person_id(name), text=text)
    ask = s.say("Tell {p} '{t}'.", "Send '{t}' to {p}.", "Write to {p}: '{t}'.", "Let {p} know: '{t}'.", p=name, t=text)
    if s.maybe(0.5):
        vague = s.say("Send {p} a message.", "Write to {p}.", p=name)
        return Request(ask, vague=(vague, s.say("Say '{t}'.", "The text is '{t}'.", t=text)))
    vague = s.say("Send '{t}' to my friend.", "Tell them '{t}'.", t=text)
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
    return _file_mail(s, "trash", asks, ("Delete that mail.", "Trash one of my mails."))


def star_mail(s: Scene) -> Request:
    asks = ("Star the mail from {p}.", "Mark {p}'s mail with a star.", "Give {p}'s mail a star.")
    return _file_mail(s, "star", asks, ("Star that mail.", "Give one of my mails a star."))


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
        ask, vague=(s.say("Block someone for me.", "Block that person."), s.say("{p}.", "I mean {p}.", p=name))
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


# -- calendar


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
    request = _on_entry(s, "cancel", asks, ("Cancel one of my dates.", "Cancel that for me."))
    del s.last["entry"]
    return request


def alert(s: Scene) -> Request:
    asks = ("Remind me of the {t}.", "Set a reminder for {t}.", "I must not forget the {t}, set an alert.")
    return _on_entry(s, "alert", asks, ("Set a reminder.", "Remind me of that."))


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


# -- two domains


def send_price(s: Scene) -> Request:
    item, name = s.pick(s.items), s.pick(s.contacts)
    price = s.do("price", id=s.item_id(item))["price"]
    s.do("send", to=s.person_id(name), text=str(price))
    ask = s.say("Send {p} the price of the {i}.", "Let {p} know what the {i} costs, just the number.", p=name, i=item)
    vague = s.say("Send {p} the price of that item.", p=name)
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


EASY: dict[str, tuple[Kind, ...]] = {
    "files": (read_file, remove_file, move_file, copy_file, write_note, same_file_action),
    "shop": (ask_price, ask_balance, deposit, buy, watch, buy_more, watch_it, refund),
    "mail": (send, read_mail, trash_mail, star_mail, same_mail_action, block, send_again),
    "calendar": (ask_when, book, cancel, alert, alert_it, shift),
}
"""Requests of each domain that need one look-up and one action at most."""

HARD: dict[str, tuple[Kind, ...]] = {
    "files": (file_into_new_dir, judge_size, remove_biggest, move_two, append_text),
    "shop": (buy_if_cheap, buy_cheaper, buy_with_deposit, buy_all_stock),
    "mail": (forward, judge_mail, send_two, send_or_else),
    "calendar": (push_back, book_or_next, book_first_free, clear_morning),
}
"""Requests of each domain that chain results, decide on them, or recover from an error."""

BOTH: dict[frozenset[str], tuple[Kind, ...]] = {
    frozenset(("shop", "mail")): (send_price,),
    frozenset(("files", "mail")): (send_file, note_mail),
    frozenset(("calendar", "mail")): (send_when,),
    frozenset(("files", "shop")): (note_price,),
    frozenset(("shop", "calendar")): (book_if_cheap,),
    frozenset(("files", "calendar")): (note_when,),
}
"""Hard requests that carry a result from one domain to another."""
