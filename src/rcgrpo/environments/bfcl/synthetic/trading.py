"""Worlds and requests of TradingBot."""

from __future__ import annotations

import random
from typing import Any

from rcgrpo.environments.bfcl.synthetic.scene import Request, Scene, Unfit
from rcgrpo.environments.bfcl.synthetic.words import COMPANIES, FIRST, secret

CLASS = "TradingBot"
SECTORS = {"Technology": ("AAPL", "GOOG", "MSFT", "NVDA"), "Automobile": ("TSLA",)}
"""The known stocks of each sector."""


def config(rng: random.Random) -> dict[str, Any]:
    """An account with a few old orders, a watch list, and stocks at random prices."""
    invented = {"".join(rng.choices("ABCDEFGHKLMNPRSTUVXYZ", k=rng.choice((3, 4)))) for _ in range(rng.randint(0, 3))}
    symbols = [*COMPANIES.values(), *sorted(invented - set(COMPANIES.values()))]
    stocks = {}
    for symbol in symbols:
        price = round(rng.choice((rng.uniform(10, 100), rng.uniform(100, 900), rng.uniform(900, 3000))), 2)
        stocks[symbol] = {
            "price": price,
            "percent_change": round(rng.uniform(-0.5, 0.5), 2),
            "volume": round(rng.uniform(0.5, 4), 3),
            "MA(5)": round(price * rng.uniform(0.99, 1.01), 2),
            "MA(20)": round(price * rng.uniform(0.98, 1.02), 2),
        }
    counter = rng.randint(10000, 99000)
    orders = {}
    for number in rng.sample(range(counter - 300, counter), rng.randint(1, 3)):
        symbol = rng.choice(symbols)
        orders[str(number)] = {
            "id": number,
            "order_type": rng.choice(("Buy", "Sell")),
            "symbol": symbol,
            "price": stocks[symbol]["price"],
            "amount": 5 * rng.randint(1, 20),
            "status": rng.choice(("Completed", "Pending", "Open")),
        }
    return {
        "orders": orders,
        "account_info": {
            "account_id": rng.randint(10000, 99999),
            "balance": 1000.0 * rng.randint(20, 400),
            "binding_card": rng.randint(10**15, 10**16 - 1),
        },
        "authenticated": rng.random() < 0.9,
        "market_status": "Open" if rng.random() < 0.8 else "Closed",
        "order_counter": counter,
        "stocks": stocks,
        "watch_list": rng.sample(symbols, rng.randint(1, 3)),
        "transaction_history": [],
        "random_seed": rng.randint(1, 10**6),
    }


def _bot(s: Scene) -> Any:
    return s.api(CLASS)


def _stock(s: Scene) -> tuple[str, str]:
    """A symbol, and what the user calls it; often the one that was talked about."""
    if "stock" in s.last and s.maybe(0.35):
        symbol = s.last["stock"]
        return symbol, s.say("that stock", "this company", "it", "the stock we spoke about")
    names = {symbol: name for name, symbol in COMPANIES.items()}
    symbol = s.pick(_bot(s).stocks)
    s.last["stock"] = symbol
    if symbol in names and s.maybe(0.6):
        return symbol, names[symbol]
    return symbol, s.say("{x}", "'{x}'", "the stock with the symbol {x}", x=symbol)


def _plain(s: Scene, symbol: str, called: str) -> str:
    return symbol if called in ("that stock", "this company", "it", "the stock we spoke about") else called


def stock_info(s: Scene) -> Request:
    symbol, called = _stock(s)
    price = s.do("get_stock_info", symbol=symbol)["price"]
    s.last["price"] = (symbol, price)
    s.last["fact"] = (f"The price of {symbol} is $XXX.", "the price", price)
    ask = s.say(
        "What is the current price of {c}?",
        "Show me how {c} is doing on the market.",
        "I would like the latest data on {c}.",
        "How is {c} trading? Give me price, volume and averages.",
        "Get me the stock information for {c}.",
        c=called,
    )
    return Request(
        ask, (s.say("How is a certain stock doing?", "Look up a stock."), f"I mean {_plain(s, symbol, called)}.")
    )


def watch(s: Scene) -> Request:
    symbol, called = _stock(s)
    if symbol in _bot(s).watch_list:
        raise Unfit("it is watched")
    s.do("add_to_watchlist", stock=symbol)
    also = ""
    if s.maybe(0.25):
        s.do("get_watchlist")
        also = s.say(" Then show me the whole list.", " What is on it now?")
    ask = s.say(
        "Add {c} to my watchlist.",
        "Put {c} on the list of stocks that I watch.",
        "I want to keep an eye on {c}, so place it on my watchlist.",
        "Track {c} for me in the watchlist.",
        c=called,
    )
    return Request(ask + also, ("Add a stock to my watchlist.", f"{_plain(s, symbol, called)}.{also}"))


def watchlist(s: Scene) -> Request:
    s.do("get_watchlist")
    return Request(
        s.say(
            "What is on my watchlist?",
            "Show me the stocks that I am watching.",
            "Which stocks do I keep an eye on?",
            "Pull up my watchlist, please.",
        )
    )


def unwatch(s: Scene) -> Request:
    s.do("get_watchlist")
    watched = list(_bot(s).watch_list)
    if not watched:
        raise Unfit("nothing watched")
    place = s.pick(("first", "last", "named"))
    symbol = {"first": watched[0], "last": watched[-1]}.get(place, s.pick(watched))
    s.do("remove_stock_from_watchlist", symbol=symbol)
    s.last["stock"] = symbol
    which = symbol if place == "named" else f"the {place} stock"
    ask = s.say(
        "Take {w} off my watchlist.", "Remove {w} from my watchlist.", "Stop watching {w} on my watchlist.", w=which
    )
    return Request(ask, ("Take something off my watchlist.", f"I mean {which}."))


def _price(s: Scene, symbol: str) -> float:
    """What a stock costs now; looked up unless that has just been done."""
    if s.last.get("price", ("", 0))[0] != symbol:
        s.last["price"] = (symbol, s.do("get_stock_info", symbol=symbol)["price"])
    return s.last["price"][1]


def trade(s: Scene) -> Request:
    symbol, called = _stock(s)
    side = s.pick(("Buy", "Buy", "Buy", "Sell"))
    shares = s.pick((10, 20, 50, 75, 100, 120, 150, 200, s.rng.randint(2, 300)))
    if s.maybe(0.7):
        price, at = _price(s, symbol), s.say("at the current market price", "for what it costs now", "at market price")
    else:
        price = round(_bot(s).stocks[symbol]["price"] * s.rng.uniform(0.9, 1.1), s.pick((0, 1, 2)))
        price = int(price) if price.is_integer() else price
        at = s.say("at ${p} per share", "for {p} dollars each", "at a price of {p}", p=price)
    s.last["order"] = s.do("place_order", order_type=side, symbol=symbol, price=price, amount=shares)["order_id"]
    verb = side if s.maybe(0.5) else f"Place an order to {side.lower()}"
    ask = s.say(
        "{v} {n} shares of {c} {a}.",
        "{v} {n} shares of {c}, {a} please.",
        "I am ready to invest. {v} {n} shares of {c} {a}.",
        v=verb,
        n=shares,
        c=called,
        a=at,
    )
    if s.maybe(0.5):
        vague = s.say("{v} some shares of {c} {a}.", v=side, c=called, a=at)
        return Request(ask, (vague, s.say("{n} shares.", "Let it be {n}.", n=shares)))
    return Request(ask, (f"{side} {shares} shares of a stock {at}.", f"Of {_plain(s, symbol, called)}."))


def _order(s: Scene) -> tuple[int, str]:
    """An order and what the user calls it: the one just placed, the latest, or one by its number."""
    if "order" in s.last:
        return s.last["order"], s.say("that order", "the order I just placed", "my latest order", "this order")
    if s.maybe(0.5):
        s.last["order"] = s.do("get_order_history")["history"][-1]
        return s.last["order"], s.say("the last order in my history", "the latest order of my order history")
    s.last["order"] = s.pick(_bot(s).orders)
    return s.last["order"], s.say("order {n}", "the order with the ID {n}", n=s.last["order"])


def order_details(s: Scene) -> Request:
    order, called = _order(s)
    s.do("get_order_details", order_id=order)
    ask = s.say(
        "Show me the details of {c}.",
        "How does {c} look?",
        "I would like to check {c}, give me all its details.",
        "What is the status of {c}?",
        c=called,
    )
    return Request(ask, ("Show me the details of an order.", f"I mean {called}."))


def cancel(s: Scene) -> Request:
    order, called = _order(s)
    s.do("cancel_order", order_id=order)
    ask = s.say(
        "Cancel {c}.",
        "I changed my mind, please cancel {c}.",
        "Revoke {c}, I do not want it any longer.",
        "Stop {c}.",
        c=called,
    )
    return Request(ask, ("I changed my mind about something.", f"Please cancel {called}."))


def account(s: Scene) -> Request:
    balance = s.do("get_account_info")["balance"]
    s.last["fact"] = ("My balance is $XXX.", "the balance", balance)
    return Request(
        s.say(
            "How much money is in my account?",
            "Show me my account information.",
            "What is my balance, and which card is linked?",
            "Give me an overview of my account.",
        )
    )


def fund(s: Scene) -> Request:
    if "price" in s.last and s.maybe(0.2):
        symbol, price = s.last["price"]
        shares = s.pick((10, 100))
        s.do("fund_account", amount=round(price * shares, 2))
        return Request(s.say("Put as much into my account as {n} shares of {x} cost.", n=shares, x=symbol))
    amount = s.pick((500, 1000, 2000, 2500, 5000, 10000, 50 * s.rng.randint(1, 99)))
    s.do("fund_account", amount=amount)
    ask = s.say("Put {a} dollars into my account.", "Fund my account with ${a}.", "Add {a} to my balance.", a=amount)
    return Request(ask, ("Put some money into my account.", s.say("{a} dollars.", "${a}.", a=amount)))


def withdraw(s: Scene) -> Request:
    amount = 50 * s.rng.randint(2, 60)
    s.do("withdraw_funds", amount=amount)
    ask = s.say("Take {a} dollars out of my account.", "Withdraw ${a} for me.", a=amount)
    return Request(ask, ("Withdraw some money.", f"${amount}."))


def sector(s: Scene) -> Request:
    name = s.pick(("Technology", "Technology", "Automobile"))
    stocks = s.do("get_available_stocks", sector=name)["stock_list"]
    listing = s.say("Which stocks are there in the {n} sector?", "List the stocks of the {n} sector.", n=name)
    if s.maybe(0.5):
        return Request(listing, ("List the stocks of a sector.", f"The {name} sector."))
    known = [symbol for symbol in stocks if symbol in SECTORS[name]]
    if s.maybe(0.4):
        for symbol in known:
            if symbol not in _bot(s).watch_list:
                s.do("add_to_watchlist", stock=symbol)
        if len(s.calls) == 1 or len(known) != len(stocks):
            raise Unfit("nothing to add, or stocks that are unknown")
        return Request(f"{listing} Add those that I do not watch yet to my watchlist.")
    place = s.rng.randrange(min(len(known), 4))
    symbol = s.last["stock"] = stocks[place]
    s.last["price"] = (symbol, s.do("get_stock_info", symbol=symbol)["price"])
    ordinal = ("first", "second", "third", "fourth")[place]
    return Request(f"{listing} Then show me the data of the {ordinal} one.")


def by_name(s: Scene) -> Request:
    name = s.pick(COMPANIES)
    s.last["stock"] = s.do("get_symbol_by_name", name=name)["symbol"]
    return Request(s.say("What is the symbol of {n}?", "Which ticker does {n} have?", n=name))


def time(s: Scene) -> Request:
    s.do("get_current_time")
    return Request(s.say("What time is it now?", "Tell me the current time."))


def history(s: Scene) -> Request:
    s.do("get_order_history")
    return Request(s.say("Show me my order history.", "Which orders have I placed so far?"))


def login(s: Scene) -> Request:
    if _bot(s).authenticated:
        raise Unfit("logged in")
    name, password = s.pick(FIRST), secret(s.rng)
    s.do("trading_login", username=name, password=password)
    ask = s.say(
        "Log me into the trading system as {n} with the password {p}.",
        "My trading login is {n}, {p}.",
        n=name,
        p=password,
    )
    return Request(ask, (f"Log me into the trading system as {name}.", f"My password is {password}."))


def logout(s: Scene) -> Request:
    if not _bot(s).authenticated or len(s.last) < 2:
        raise Unfit("too early")
    s.do("trading_logout")
    return Request(s.say("Log me out of the trading system.", "That's all for now, sign me out of trading."))


def notify(s: Scene) -> Request:
    symbols = s.sample(_bot(s).stocks, 2)
    limit = s.pick((0.1, 0.2, 0.25))
    s.do("notify_price_change", stocks=symbols, threshold=limit)
    return Request(f"Tell me whether {symbols[0]} or {symbols[1]} changed by at least {limit} percent.")


KINDS = (
    *(stock_info,) * 7, *(watch,) * 6, *(watchlist,) * 4, *(unwatch,) * 2, *(trade,) * 8, *(order_details,) * 7,
    *(cancel,) * 6, *(account,) * 4, *(fund,) * 2, withdraw, *(sector,) * 4, by_name, time, history, *(login,) * 4,
    logout, notify,
)  # fmt: skip
"""The kinds of request, the frequent ones several times."""
