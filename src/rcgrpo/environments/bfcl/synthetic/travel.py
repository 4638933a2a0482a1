"""Worlds and requests of TravelAPI."""

from __future__ import annotations

import datetime
import random
from typing import Any

from rcgrpo.environments.bfcl.synthetic.scene import Request, Scene, Unfit
from rcgrpo.environments.bfcl.synthetic.words import AIRPORTS, CURRENCIES, FIRST, LAST, MONTHS, remark, secret

CLASS = "TravelAPI"
TOO_LONG = 5
"""Cities to try before giving up on a route."""


def config(rng: random.Random) -> dict[str, Any]:
    """A logged-in traveller with one or two cards."""
    first, last = rng.choice(FIRST), rng.choice(LAST)
    cards = {
        _card_id(rng): {
            "card_number": str(rng.randint(10**15, 10**16 - 1)),
            "expiry_date": f"{rng.randint(1, 12):02d}/{rng.randint(26, 32)}",
            "cardholder_name": f"{first} {last}",
            "balance": 500.0 * rng.randint(10, 60),
        }
        for _ in range(rng.choice((1, 1, 1, 2)))
    }
    return {
        "random_seed": rng.randint(1, 10**6),
        "credit_card_list": cards,
        "booking_record": {},
        "access_token": rng.choice(("", "token_", "access_")) + secret(rng, rng.randint(6, 10)),
        "token_type": "Bearer",
        "token_expires_in": 3600,
        "token_scope": "read_write",
        "user_first_name": first,
        "user_last_name": last,
        "budget_limit": float(rng.choice((1000, 2000, 3000))),
    }


def _card_id(rng: random.Random) -> str:
    return rng.choice(("card_{n}", "card{n}", "{n}", "credit_{n}", "id_{n}", "main_{n}")).format(
        n=rng.randint(100, 9999)
    )


def _api(s: Scene) -> Any:
    return s.api(CLASS)


def _token(s: Scene) -> tuple[str, str]:
    """The access token, and how the user tells it, where it has not been told."""
    token = _api(s).access_token
    if s.last.get("token") == token:
        return token, ""
    s.last["token"] = token
    return token, s.say(
        " My access token is {t}.", " Use the access token '{t}'.", " The token for my account is '{t}'.", t=token
    )


def _card(s: Scene) -> tuple[str, str]:
    """A card, and how the user names it."""
    if s.last.get("card") in _api(s).credit_card_list and s.maybe(0.6):
        return s.last["card"], s.say("the same card", "my card from before")
    card = s.last["card"] = s.pick(card for card in _api(s).credit_card_list if card.split("_")[-1].isalnum())
    return card, s.say(
        "my card {c}", "my credit card with the id '{c}'", "the card with the ID {c}", "the card '{c}'", c=card
    )


def _route(s: Scene) -> dict[str, str]:
    """A flight that exists: the arguments from, to, date, class."""
    day = datetime.date(2026, 1, 1) + datetime.timedelta(days=s.rng.randrange(700))
    for _ in range(TOO_LONG):
        start, end = s.sample(AIRPORTS.values(), 2)
        route = {
            "travel_from": start,
            "travel_to": end,
            "travel_date": day.isoformat(),
            "travel_class": s.pick(("economy", "business", "first")),
        }
        try:
            s.probe("get_flight_cost", **route)
        except Unfit:
            continue
        return route
    raise Unfit("no route")


def _told(s: Scene, route: dict[str, str]) -> str:
    """How the user describes a flight."""
    names = {code: city for city, code in AIRPORTS.items()}
    a, b = (names[route[key]] if s.maybe(0.75) else route[key] for key in ("travel_from", "travel_to"))
    year, month, day = (int(part) for part in route["travel_date"].split("-"))
    date = s.pick(
        (route["travel_date"], f"{MONTHS[month - 1]} {day}, {year}", f"the {day}. of {MONTHS[month - 1]} {year}")
    )
    kind = route["travel_class"] + s.pick((" class", "-class"))
    return s.say(
        "from {a} to {b} on {d} in {k}",
        "in {k} from {a} to {b} on {d}",
        "on {d} from {a} to {b}, {k}",
        "to {b}, starting in {a}, {k}, on {d}",
        a=a,
        b=b,
        d=date,
        k=kind,
    )


def _same_route(s: Scene) -> tuple[dict[str, str], str]:
    """The flight that was talked about, or a new one; and how the user describes it."""
    if "route" in s.last and s.maybe(0.75):
        return s.last["route"], s.say("that flight", "this flight", "the flight we looked at")
    route = s.last["route"] = _route(s)
    return route, s.say("a flight {r}", "the flight {r}", "a ticket {r}", r=_told(s, route))


def cost(s: Scene) -> Request:
    route = s.last["route"] = _route(s)
    price = s.do("get_flight_cost", **route)["travel_cost_list"][0]
    s.last["fact"] = ("My flight costs $XXX.", "the price of the flight", price)
    told = _told(s, route)
    ask = s.say(
        "How much is a flight {r}?",
        "What would I pay for a flight {r}?",
        "Find out the price of a flight {r}.",
        "I am thinking of flying {r}. What does it cost?",
        r=told,
    )
    return Request(ask, (s.say("What does a flight cost?", "I want to know a flight's price."), f"A flight {told}."))


def book(s: Scene) -> Request:
    route, called = _same_route(s)
    token, tell = _token(s)
    card, with_card = _card(s)
    check = s.maybe(0.3)
    if check:
        s.do("get_flight_cost", **route)
    s.last["booking"] = s.do("book_flight", access_token=token, card_id=card, **route)["booking_id"]
    first = s.say(" Check its price first.", " Look up what it costs before you do.") if check else ""
    ask = s.say(
        "Book {f} with {c}.{p}{t}",
        "I want to take {f}, please book it and charge {c}.{p}{t}",
        "Reserve {f} and pay with {c}.{p}{t}",
        "Let's do it: book {f} using {c}.{p}{t}",
        f=called,
        c=with_card,
        p=first,
        t=tell,
    )
    return Request(ask, (f"Book {called}.{first}{tell}", s.say("Pay with {c}.", "Use {c}.", c=with_card)))


def invoice(s: Scene) -> Request:
    token, tell = _token(s)
    s.do("retrieve_invoice", access_token=token, booking_id=s.known("booking"))
    ask = s.say(
        "Give me the invoice of that booking.",
        "I need the invoice for the flight.",
        "Can I have an invoice for my reservation?",
        "Fetch the bill of the booking we made.",
    )
    return Request(ask + tell, ("I would like to have something in writing." + tell, ask))


def cancel(s: Scene) -> Request:
    token, tell = _token(s)
    s.do("cancel_booking", access_token=token, booking_id=s.known("booking"))
    del s.last["booking"]
    ask = s.say(
        "Cancel the booking.",
        "I cannot go, cancel my flight.",
        "Something has come up. Please cancel the reservation that we made.",
        "My plans changed, so undo the booking.",
    )
    return Request(ask + tell, (s.say("My plans have changed.", "Something came up.") + tell, ask))


def insure(s: Scene) -> Request:
    token, tell = _token(s)
    booking, price = s.known("booking"), s.pick((50, 80, 100, 150, 200, 250, 500))
    kind = s.pick(("comprehensive", "basic", "travel", "medical", "cancellation"))
    card, with_card = _card(s)
    s.do(
        "purchase_insurance",
        access_token=token,
        insurance_type=kind,
        insurance_cost=price,
        booking_id=booking,
        card_id=card,
    )
    ask = s.say(
        "Add a {k} insurance for {p} dollars to the booking, paid with {c}.{t}",
        "Buy the {k} insurance for my trip, it costs ${p}. Charge {c}.{t}",
        k=kind,
        p=price,
        c=with_card,
        t=tell,
    )
    return Request(ask, (f"Add an insurance for {price} dollars, paid with {with_card}.{tell}", f"The {kind} one."))


def support(s: Scene) -> Request:
    text = remark(s.rng)
    s.do("contact_customer_support", booking_id=s.known("booking"), message=text)
    ask = s.say(
        "Contact the customer support about my booking and say {t}.",
        "Write to customer support on this booking: {t}.",
        "There is a problem with the booking. Tell the support {t}.",
        t=s.quoted(text),
    )
    return Request(ask, ("Contact the customer support about my booking.", f"Tell them {s.quoted(text)}."))


def budget(s: Scene) -> Request:
    token, tell = _token(s)
    if s.maybe(0.4):
        code, name = s.pick(CURRENCIES.values())
        amount = 1000 * s.rng.randint(1, 60)
        value = s.do("compute_exchange_rate", base_currency=code, target_currency="USD", value=amount)[
            "exchanged_value"
        ]
        s.do("set_budget_limit", access_token=token, budget_limit=value)
        ask = s.say(
            "Set my budget to what {a} {n} are in US dollars.{t}",
            "Convert {a} {n} to US dollars and make that my budget limit.{t}",
            a=amount,
            n=s.pick((code, name)),
            t=tell,
        )
        return Request(ask, (f"Set my budget to a sum in {name}, converted to US dollars.{tell}", f"{amount}."))
    amount = s.pick((500, 800, 1000, 1500, 2000, 2500, 3000, 5000, 50 * s.rng.randint(10, 99)))
    s.do("set_budget_limit", access_token=token, budget_limit=amount)
    ask = s.say(
        "Set my budget limit to {a} dollars.{t}",
        "I do not want to spend more than ${a}, set that as my budget.{t}",
        "My budget should be {a} USD.{t}",
        a=amount,
        t=tell,
    )
    return Request(ask, (f"Set a budget limit.{tell}", s.say("{a} dollars.", "${a}.", a=amount)))


def exchange(s: Scene) -> Request:
    code, name = s.pick(CURRENCIES.values())
    amount = s.pick((100, 250, 500, 1000, 1500, 10 * s.rng.randint(1, 500)))
    pair = ["USD", code] if s.maybe(0.6) else [code, "USD"]
    called = [("US dollars" if c == "USD" else name) if s.maybe(0.5) else c for c in pair]
    s.do("compute_exchange_rate", base_currency=pair[0], target_currency=pair[1], value=amount)
    ask = s.say(
        "How much are {x} {a} in {b}?",
        "Convert {x} {a} to {b}.",
        "What do I get in {b} for {x} {a}?",
        x=amount,
        a=called[0],
        b=called[1],
    )
    return Request(ask, (f"Convert {amount} {called[0]} for me.", f"To {called[1]}."))


def airport(s: Scene) -> Request:
    city = s.pick(AIRPORTS)
    s.do("get_nearest_airport_by_city", location=city)
    ask = s.say(
        "Which airport is the nearest to {c}?",
        "I live in {c}. What is the closest airport?",
        "Find the airport of {c}.",
        c=city,
    )
    return Request(ask, ("Which airport is the nearest?", s.say("I am in {c}.", "To {c}.", c=city)))


def airports(s: Scene) -> Request:
    s.do("list_all_airports")
    return Request(s.say("List all airports.", "Which airports can I fly from?", "Show me every airport there is."))


def verify(s: Scene) -> Request:
    first, last = _api(s).user_first_name, _api(s).user_last_name
    born = datetime.date(1955, 1, 1) + datetime.timedelta(days=s.rng.randrange(17000))
    passport = f"US{s.rng.randint(1000, 99999999)}"
    s.do(
        "verify_traveler_information",
        first_name=first,
        last_name=last,
        date_of_birth=born.isoformat(),
        passport_number=passport,
    )
    birthday = s.pick((born.isoformat(), f"{MONTHS[born.month - 1]} {born.day}, {born.year}"))
    ask = s.say(
        "Verify my data: {f} {l}, born on {b}, passport {p}.",
        "I am {f} {l}, my passport number is {p} and my date of birth {b}. Please check this.",
        f=first,
        l=last,
        b=birthday,
        p=passport,
    )
    return Request(ask, (f"Verify my data: {first} {last}, born on {birthday}.", f"My passport number is {passport}."))


def authenticate(s: Scene) -> Request:
    client, key, refresh = (f"{word}_{secret(s.rng, 5)}" for word in ("client", "secret", "refresh"))
    first, last = _api(s).user_first_name, _api(s).user_last_name
    token = s.do(
        "authenticate_travel",
        client_id=client,
        client_secret=key,
        refresh_token=refresh,
        grant_type="read_write",
        user_first_name=first,
        user_last_name=last,
    )["access_token"]
    s.last["token"] = token
    ask = s.say(
        "Log me into the travel system: client id {c}, secret {k}, refresh token {r}, grant type read_write, {f} {l}.",
        "Authenticate {f} {l} for travel with client id '{c}', secret '{k}' and refresh token '{r}', read_write.",
        c=client,
        k=key,
        r=refresh,
        f=first,
        l=last,
    )
    return Request(ask, ("Log me into the travel system.", ask))


def register(s: Scene) -> Request:
    token, tell = _token(s)
    number, code = str(s.rng.randint(10**15, 10**16 - 1)), s.rng.randint(100, 999)
    expires = f"{s.rng.randint(1, 12):02d}/20{s.rng.randint(27, 34)}"
    holder = f"{_api(s).user_first_name} {_api(s).user_last_name}"
    s.last["card"] = s.do(
        "register_credit_card",
        access_token=token,
        card_number=number,
        expiration_date=expires,
        cardholder_name=holder,
        card_verification_number=code,
    )["card_id"]
    ask = s.say(
        "Register my card {n}, valid until {e}, in the name of {h}, CVV {c}.{t}",
        n=number,
        e=expires,
        h=holder,
        c=code,
        t=tell,
    )
    return Request(
        ask, (f"Register my card {number}, in the name of {holder}, CVV {code}.{tell}", f"Valid until {expires}.")
    )


def balance(s: Scene) -> Request:
    token, tell = _token(s)
    card, called = _card(s)
    s.do("get_credit_card_balance", access_token=token, card_id=card)
    ask = s.say("How much is left on {c}?{t}", "What is the balance of {c}?{t}", c=called, t=tell)
    return Request(ask, (f"How much money is left?{tell}", f"On {called}."))


def bookings(s: Scene) -> Request:
    token, tell = _token(s)
    s.do("get_booking_history", access_token=token)
    return Request(s.say("Show me all my bookings.", "What have I booked so far?") + tell)


KINDS = (
    *(cost,) * 6, *(book,) * 14, *(invoice,) * 16, *(cancel,) * 10, *(insure,) * 6, *(support,) * 10, *(budget,) * 4,
    *(exchange,) * 2, *(airport,) * 3, airports, *(verify,) * 3, *(authenticate,) * 2, *(register,) * 2,
    balance, bookings,
)  # fmt: skip
"""The kinds of request, the frequent ones several times; those about a booking need one, and are often unfit."""
