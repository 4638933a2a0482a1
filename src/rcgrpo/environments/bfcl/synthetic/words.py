"""What synthetic worlds and requests are made of: our own lists, and the places and companies that the APIs know."""

from __future__ import annotations

import random


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FIRST = _words(
    "Ada Boris Chloe Dmitri Elif Farah Gustav Hana Ivo Jonas Keiko Lena Marco Nadia Omar Petra Quentin Rosa Stefan "
    "Tariq Uma Viktor Wanda Ximena Yusuf Zelda Alma Bruno Carla Dario Edith Felix Greta Hugo Irene Joao Klara Liam "
    "Mira Nico Olga Pavel Ronja Selma Tomas Vera Amara Bilal Celine Dean"
)
LAST = _words(
    "Adler Baker Costa Dahl Evans Fuchs Grant Holt Ito Jansen Keller Lind Moreau Novak Okafor Price Quist Rossi Stone "
    "Torres Ulman Vance Weber Young Zander Brandt Carver Duarte Ekman Frost"
)
NOUNS = _words(
    "garden budget harbor lesson recipe invoice orbit survey ticket sensor forest market river engine letter meeting "
    "poster sample picture contract lecture diary summary outline ledger manual sketch catalog journal backup index "
    "agenda memo draft essay notes plan list chart result figure table session module feature client staff season "
    "summer winter tour museum bakery studio workshop library kitchen office stadium bridge tower valley island"
)
ADJECTIVES = _words(
    "quick quiet old new final early late bright small large simple clean broken ready busy open hidden yearly weekly "
    "daily local public private red blue green warm cold fresh heavy light proud calm strange careful"
)
VERBS = _words(
    "needs follows covers supports delays replaces improves confirms explains mentions shows includes changes opens "
    "closes moves lists blocks repeats checks fixes misses tracks helps starts ends"
)
LABELS = ("Note", "Error", "Warning", "Todo", "Total", "Step", "Idea", "Item", "Task", "Status", "Name", "Score")
EXTENSIONS = ("txt", "txt", "txt", "md", "csv", "log", "docx", "pdf", "json", "py")
DIRS = _words(
    "documents archive projects photos backup reports shared temp music drafts workspace data old_files invoices "
    "courses recipes scripts public private notes sources exports inbox team research library storage media"
)
TAGS = _words(
    "Travel Cars Finance Markets Coding Science Food Garden Music Sports Morning Weekend RoadTrip Update News "
    "Progress Launch Team Motivation Research Holiday Savings Innovation Photography Reading"
)
STREETS = ("Maple Street", "Hill Road", "Station Square", "Lake Avenue", "Mill Lane", "King Street", "Park Way")

TOWNS = (
    "Rivermist", "Stonebrook", "Maplecrest", "Silverpine", "Shadowridge", "Sunset Valley", "Oakendale", "Willowbend",
    "Crescent Hollow", "Autumnville", "San Francisco",
)  # fmt: skip
"""The cities whose zip codes VehicleControlAPI knows."""

ROADS = (
    ("Rivermist", "Stonebrook"), ("Maplecrest", "Silverpine"), ("Shadowridge", "Sunset Valley"),
    ("Oakendale", "Willowbend"), ("Crescent Hollow", "Autumnville"), ("San Francisco", "Rivermist"),
    ("Silverpine", "Oakendale"), ("San Francisco", "Silverpine"), ("Stonebrook", "San Francisco"),
)  # fmt: skip
"""The pairs of them whose distance it knows."""

AIRPORTS = {
    "Rivermist": "RMS",
    "Stonebrook": "SBK",
    "Maplecrest": "MPC",
    "Silverpine": "SVP",
    "Shadowridge": "SHD",
    "Sunset Valley": "SSV",
    "Oakendale": "OKD",
    "Willowbend": "WLB",
    "Crescent Hollow": "CRH",
    "Autumnville": "ATV",
    "Pinehaven": "PHV",
    "Greenfield": "GFD",
    "San Francisco": "SFO",
    "Los Angeles": "LAX",
    "New York": "JFK",
    "Chicago": "ORD",
    "Boston": "BOS",
    "London": "LHR",
    "Paris": "CDG",
    "Beijing": "PEK",
    "Hong Kong": "HKG",
    "Rome": "CIA",
    "Tokyo": "HND",
}
"""The airports that TravelAPI knows, by city."""

COMPANIES = {
    "Apple": "AAPL",
    "Google": "GOOG",
    "Tesla": "TSLA",
    "Microsoft": "MSFT",
    "Nvidia": "NVDA",
    "Zeta Corp": "ZETA",
    "Alpha Tech": "ALPH",
    "Omega Industries": "OMEG",
    "Quasar Ltd.": "QUAS",
    "Neptune Systems": "NEPT",
    "Synex Solutions": "SYNX",
    "Amazon": "AMZN",
}
"""The companies that TradingBot knows, with their symbols."""

CURRENCIES = {
    "RMB": ("RMB", "Chinese yuan"),
    "EUR": ("EUR", "euros"),
    "JPY": ("JPY", "Japanese yen"),
    "GBP": ("GBP", "British pounds"),
    "CAD": ("CAD", "Canadian dollars"),
    "AUD": ("AUD", "Australian dollars"),
    "INR": ("INR", "Indian rupees"),
    "MXN": ("MXN", "Mexican pesos"),
}
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip

OPENERS = (
    "", "", "", "", "", "", "Please help me: ", "Hi! ", "Hello there. ", "OK. ", "Thanks. ", "Next: ",
    "Great, thanks! ",
    "One more thing: ", "All right. ", "Good morning! ", "I have a busy day, so be quick. ", "Wonderful. ",
    "My colleagues are waiting for this. ", "I was just thinking about it over breakfast. ",
    "I am preparing everything for next week. ", "That is settled, so let's go on. ", "Now that this is done: ",
    "It has been a long day, and there is still something to do. ", "With that out of the way, here is the next step. ",
)  # fmt: skip
"""Said before a request; they change nothing."""

AFTERTHOUGHTS = (
    "", "", "", "", "", "", " Thank you!", " Thanks a lot.", " That would help me a great deal.", " Take your time.",
    " I would really appreciate it.", " I want to be sure that everything is in order.", " It is quite important.",
    " This should make the rest of the day easier.", " I can't do it myself right now.",
)  # fmt: skip
"""Said after a request; they change nothing."""

CONNECTIVES = (" After that: ", " And then: ", " Also: ", " When that is done: ", " ", " Next, something else. ")
"""Said between two requests of one turn."""


def sentence(rng: random.Random) -> str:
    """A short sentence such as ``The quiet harbor follows our plan.``"""
    kind = rng.randrange(4)
    adjective, verb = rng.choice(ADJECTIVES), rng.choice(VERBS)
    first, second = rng.sample(NOUNS, 2)
    if kind == 0:
        return f"The {adjective} {first} {verb} our {second}."
    if kind == 1:
        return f"{rng.choice(LABELS)} {rng.randint(1, 99)}: {adjective} {first}"
    if kind == 2:
        return f"{rng.choice(FIRST)} {verb} the {first} of {rng.choice(FIRST)}."
    return f"{rng.choice(LABELS)}: {first} and {second}"


def remark(rng: random.Random) -> str:
    """What somebody may send or post: one or two sentences."""
    kind, noun, other = rng.randrange(7), rng.choice(NOUNS), rng.choice(NOUNS)
    adjective, name = rng.choice(ADJECTIVES), rng.choice(FIRST)
    first = (
        f"The {noun} is {adjective} now",
        f"Just finished the {adjective} {noun} with {name}",
        f"Can we talk about the {noun} at {rng.randint(1, 12)} o'clock?",
        f"Looking forward to the {noun} and the {other}!",
        f"{name} says that the {noun} {rng.choice(VERBS)} the {other}.",
        f"On my way to the {adjective} {noun}.",
        f"So {adjective} today, what a {noun}!",
    )[kind]
    return f"{first} {sentence(rng)}" if rng.random() < 0.2 else first


def file_name(rng: random.Random) -> str:
    """Such as ``budget_draft.txt``, ``Sketch3.md``."""
    stem = rng.choice(NOUNS)
    kind = rng.randrange(5)
    if kind == 0:
        stem = f"{stem}_{rng.choice(NOUNS)}"
    elif kind == 1:
        stem = f"{rng.choice(ADJECTIVES)}_{stem}"
    elif kind == 2:
        stem = f"{stem.title()}{rng.choice(NOUNS).title()}"
    elif kind == 3:
        stem = f"{stem}{rng.randint(1, 30)}"
    return f"{stem}.{rng.choice(EXTENSIONS)}"


def secret(rng: random.Random, length: int = 9) -> str:
    """A random token or password."""
    return "".join(rng.choices("abcdefghkmnprstuvwxyz23456789", k=length))
