"""Requests to the shop."""

from __future__ import annotations

from rcgrpo.environments.toolworld.scene import Request, Scene, Unfit


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
    vague = s.say("Buy {n} pieces of something.", "Get me {n} of a nice item.", n=n)
    return Request(ask, vague=(vague, s.say("The {i}.", "I mean the {i}.", i=item)))


def watch(s: Scene) -> Request:
    item = s.pick(s.items)
    s.do("watch", id=s.item_id(item))
    ask = s.say("Watch the {i} for me.", "Put the {i} on the watch list.", "Keep an eye on the {i}.", i=item)
    vague = s.say("Put something on the watch list.", "Keep an eye on something for me.")
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
    return Request(ask, vague=(s.say("Send something back.", "Return one order."), s.say("The {i}.", i=item)))


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
