"""Worlds and requests of the APIs that accompany others: messages, posts, tickets, numbers."""

from __future__ import annotations

import random
from typing import Any

from rcgrpo.environments.bfcl.synthetic.scene import Request, Scene, Unfit
from rcgrpo.environments.bfcl.synthetic.words import ADJECTIVES, FIRST, NOUNS, TAGS, remark, secret, sentence

# -- MessageAPI


def messages(rng: random.Random) -> dict[str, Any]:
    """A workspace of four to six people; often nobody is logged in."""
    people = rng.sample(FIRST, rng.randint(4, 6))
    ids = {name: f"USR{number:03d}" for number, name in enumerate(people, 1)}
    inbox = [{rng.choice(list(ids.values())): remark(rng)} for _ in range(rng.randint(1, 3))]
    return {
        "random_seed": rng.randint(1, 10**6),
        "user_count": len(people),
        "user_map": ids,
        "inbox": inbox,
        "message_count": len(inbox),
        "current_user": rng.choice((None, *ids.values())),
    }


def _me(s: Scene) -> str:
    """Logs in where nobody is; what the user says about it."""
    api = s.api("MessageAPI")
    if api.current_user and s.maybe(0.7):
        return ""
    if s.last.get("me"):
        return ""
    user = s.last["me"] = api.current_user or s.pick(api.user_map.values())
    s.do("message_login", user_id=user)
    return s.say(" My user ID is {u}.", " I am {u}, log me in first.", " Log in as {u} for that.", u=user)


def _person(s: Scene) -> tuple[str, str]:
    """A receiver's ID, and how the user names them; looked up where only the name is told."""
    name, user = s.pick((n, u) for n, u in s.api("MessageAPI").user_map.items() if u != s.last.get("me"))
    s.last["person"] = user
    if s.maybe(0.5):
        return user, s.say(
            "{n} (ID {u})", "user {u}", "the user with the ID '{u}'", "{n}, whose ID is {u},", n=name, u=user
        )
    s.do("get_user_id", user=name)
    return user, name


def send(s: Scene) -> Request:
    me = _me(s)
    user, called = _person(s)
    if "fact" in s.last and s.maybe(0.5):
        form, what, value = s.last["fact"]
        s.do("send_message", receiver_id=user, message=form.replace("XXX", str(value)))
        ask = s.say(
            "Send {c} the message '{f}', with {w} in place of XXX.{m}",
            "Tell {c} about it in the form '{f}', where XXX is {w}.{m}",
            c=called,
            f=form,
            w=what,
            m=me,
        )
        return Request(ask, (f"Tell {called} about it.{me}", f"Write '{form}', where XXX is {what}."))
    text = remark(s.rng)
    s.do("send_message", receiver_id=user, message=text)
    ask = s.say(
        "Send {t} to {c}.{m}",
        "Write a message to {c} that says {t}.{m}",
        "Let {c} know: {t}.{m}",
        "I want to tell {c} {t}.{m}",
        c=called,
        t=s.quoted(text),
        m=me,
    )
    return Request(ask, (f"Send a message to {called}.{me}", f"It should say {s.quoted(text)}."))


def view_sent(s: Scene) -> Request:
    me = _me(s)
    s.do("view_messages_sent")
    return Request(
        s.say(
            "Show me all the messages that I have sent.",
            "Which messages have I sent so far?",
            "List what I have written to others.",
        )
        + me
    )


def delete_message(s: Scene) -> Request:
    me = _me(s)
    if "person" in s.last and s.maybe(0.8):
        user, called = s.last["person"], s.say("the message that I just sent", "my last message to them")
    else:
        user = s.pick(next(iter(message)) for message in s.api("MessageAPI").inbox)
        called = s.say("the latest message to {u}", u=user)
    s.do("delete_message", receiver_id=user)
    ask = s.say("Delete {c}.{m}", "Remove {c}, it was a mistake.{m}", "Take back {c}.{m}", c=called, m=me)
    return Request(ask, (f"I made a mistake.{me}", f"Delete {called}."))


def add_contact(s: Scene) -> Request:
    name = s.pick(name for name in FIRST if name not in s.api("MessageAPI").user_map)
    s.do("add_contact", user_name=name)
    ask = s.say("Add {n} to my contacts.", "Make a new contact named {n}.", n=name)
    return Request(ask, ("Add somebody to my contacts.", f"{name}."))


def message_login(s: Scene) -> Request:
    if s.api("MessageAPI").current_user:
        raise Unfit("logged in")
    user = s.last["me"] = s.pick(s.api("MessageAPI").user_map.values())
    s.do("message_login", user_id=user)
    ask = s.say("Log me into the messages as {u}.", "My ID for messages is {u}, log me in.", u=user)
    return Request(ask, ("Log me into the messages.", f"My ID is {user}."))


def search_messages(s: Scene) -> Request:
    me = _me(s)
    message = s.pick(s.api("MessageAPI").inbox)
    word = s.pick(word.strip(".,:!?") for word in next(iter(message.values())).split() if len(word) > 4)
    s.do("search_messages", keyword=word)
    ask = s.say("Search my messages for '{w}'.{m}", "Which messages mention '{w}'?{m}", w=word, m=me)
    return Request(ask, (f"Search my messages for a word.{me}", f"For '{word}'."))


# -- TwitterAPI


def posts(rng: random.Random) -> dict[str, Any]:
    """An account with a few tweets of its own and of others."""
    user = f"{rng.choice(ADJECTIVES)}_{rng.choice(NOUNS)}"
    start = rng.randint(0, 12)
    tweets = {
        str(start + i): {
            "id": start + i,
            "username": rng.choice((user, rng.choice(FIRST).lower())),
            "content": remark(rng),
            "tags": [f"#{rng.choice(TAGS)}"],
            "mentions": [],
        }
        for i in range(rng.randint(0, 3))
    }
    return {
        "username": user,
        "password": secret(rng),
        "authenticated": rng.random() < 0.5,
        "tweets": tweets,
        "comments": {},
        "retweets": {},
        "following_list": [name.lower() for name in rng.sample(FIRST, 2)],
        "tweet_counter": start + len(tweets),
    }


def _account(s: Scene) -> str:
    """Logs in where that has not been done; what the user says about it."""
    api = s.api("TwitterAPI")
    if api.authenticated and (s.last.get("twitter") or s.maybe(0.7)):
        return ""
    s.last["twitter"] = True
    s.do("authenticate_twitter", username=api.username, password=api.password)
    return s.say(
        " My username is {u} and my password is {p}.",
        " Log in as '{u}' with the password '{p}'.",
        " The account is {u}, password {p}.",
        u=api.username,
        p=api.password,
    )


def post(s: Scene) -> Request:
    account = _account(s)
    extra, told = {}, ""
    if "fact" in s.last and s.maybe(0.5):
        form, what, value = s.last["fact"]
        text, quoted = form.replace("XXX", str(value)), f"'{form}', where XXX is {what}"
    else:
        text = remark(s.rng)
        quoted = s.quoted(text)
    if s.maybe(0.55):
        tags = extra["tags"] = [f"#{tag}" for tag in s.sample(TAGS, s.pick((1, 1, 2)))]
        written = " and ".join(tags if s.maybe(0.6) else [f"'{tag[1:]}'" for tag in tags])
        told += s.say(" with the hashtag{s} {t}", " tagged {t}", t=written, s="s" * (len(tags) > 1))
    if s.maybe(0.3):
        name = s.pick(FIRST)
        extra["mentions"] = [f"@{name}"]
        told += s.say(", mentioning {n}", " and mention @{n}", n=name)
    s.last["tweet"] = s.do("post_tweet", content=text, **extra)["id"]
    ask = s.say(
        "Post {q}{x}.{a}",
        "Tweet {q}{x}.{a}",
        "Share this on Twitter{x}: {q}.{a}",
        "Make a post{x} that says {q}.{a}",
        q=quoted,
        x=told,
        a=account,
    )
    return Request(ask, (f"Post something{told}.{account}", s.say("It should say {q}.", "Write {q}.", q=quoted)))


def _tweet(s: Scene) -> tuple[int, str]:
    if "tweet" in s.last:
        return s.last["tweet"], s.say("that tweet", "my new post", "the post we just made", "it")
    tweet = s.last["tweet"] = s.pick(s.api("TwitterAPI").tweets)
    return tweet, s.say("tweet {n}", "the tweet with the ID {n}", n=tweet)


def retweet(s: Scene) -> Request:
    tweet, called = _tweet(s)
    account = _account(s)
    s.do("retweet", tweet_id=tweet)
    ask = s.say(
        "Retweet {c}.{a}", "Share {c} again with a retweet.{a}", "Spread {c} by retweeting.{a}", c=called, a=account
    )
    return Request(ask, (f"Retweet something.{account}", f"I mean {called}."))


def comment(s: Scene) -> Request:
    tweet, called = _tweet(s)
    account = _account(s)
    text = remark(s.rng)
    s.do("comment", tweet_id=tweet, comment_content=text)
    ask = s.say(
        "Comment on {c}: {t}.{a}",
        "Add the comment {t} to {c}.{a}",
        "Write {t} under {c}.{a}",
        c=called,
        t=s.quoted(text),
        a=account,
    )
    return Request(ask, (f"Comment on {called}.{account}", f"Say {s.quoted(text)}."))


def mention(s: Scene) -> Request:
    tweet, called = _tweet(s)
    name = f"@{s.pick(FIRST)}"
    s.do("mention", tweet_id=tweet, mentioned_usernames=[name])
    return Request(s.say("Mention {n} in {c}.", "Add {n} to the mentions of {c}.", n=name, c=called))


def follow(s: Scene) -> Request:
    account = _account(s)
    name = s.pick(FIRST).lower()
    s.do("follow_user", username_to_follow=name)
    return Request(s.say("Follow {n} on Twitter.{a}", "I want to follow {n}.{a}", n=name, a=account))


# -- TicketAPI


def tickets(rng: random.Random) -> dict[str, Any]:
    """A queue of a few tickets; somebody is logged in as often as not."""
    user = rng.choice(FIRST)
    ids = rng.sample(range(1, 9999), rng.randint(1, 3))
    return {
        "ticket_queue": [
            {
                "id": number,
                "title": f"{rng.choice(ADJECTIVES).title()} {rng.choice(NOUNS)}",
                "description": sentence(rng),
                "status": "Open",
                "priority": rng.randint(1, 5),
                "created_by": rng.choice((user, rng.choice(FIRST))),
            }
            for number in ids
        ],
        "ticket_counter": max(ids) + 1,
        "current_user": rng.choice((user, None)),
    }


def _clerk(s: Scene) -> str:
    if s.api("TicketAPI").current_user:
        return ""
    name, password = s.pick(FIRST).lower(), secret(s.rng)
    s.do("ticket_login", username=name, password=password)
    return s.say(
        " My ticket login is {n} with the password {p}.",
        " Log in to the tickets as '{n}', password '{p}'.",
        n=name,
        p=password,
    )


def create_ticket(s: Scene) -> Request:
    login = _clerk(s)
    title = (
        f"{s.pick(ADJECTIVES).title()} {s.pick(NOUNS).title()} {s.pick(('Problem', 'Request', 'Issue', 'Question'))}"
    )
    text, priority = sentence(s.rng), s.rng.randint(1, 5)
    extra: dict[str, Any] = {}
    told = ""
    if s.maybe(0.7):
        extra["description"] = text
        told += s.say(" with the description {t}", ", described as {t},", t=s.quoted(text))
    if s.maybe(0.6):
        extra["priority"] = priority
        told += s.say(" of priority {p}", " and priority {p}", p=priority)
    s.last["ticket"] = s.do("create_ticket", title=title, **extra)["id"]
    ask = s.say("Create a ticket '{n}'{x}.{l}", "Open a support ticket titled '{n}'{x}.{l}", n=title, x=told, l=login)
    return Request(ask, (f"Create a ticket{told}.{login}", f"Its title should be '{title}'."))


def _ticket(s: Scene) -> tuple[int, str]:
    if "ticket" in s.last and s.maybe(0.7):
        return s.last["ticket"], s.say("that ticket", "the ticket", "this ticket")
    number = s.last["ticket"] = s.pick(ticket["id"] for ticket in s.api("TicketAPI").ticket_queue)
    return number, s.say("ticket {n}", "the ticket with the ID {n}", "ticket #{n}", n=number)


def get_ticket(s: Scene) -> Request:
    number, called = _ticket(s)
    s.do("get_ticket", ticket_id=number)
    ask = s.say("Show me {c}.", "What does {c} say?", "Get the details of {c}.", c=called)
    return Request(ask, ("Show me a ticket.", f"I mean {called}."))


def resolve(s: Scene) -> Request:
    number, called = _ticket(s)
    if s.maybe(0.3):
        s.do("resolve_ticket", ticket_id=number, resolution="")
        return Request(
            s.say("Resolve {c} and leave the resolution empty.", "Mark {c} as resolved, with no text.", c=called)
        )
    text = sentence(s.rng)
    s.do("resolve_ticket", ticket_id=number, resolution=text)
    ask = s.say("Resolve {c} with the words {t}.", "Mark {c} as resolved and write {t}.", c=called, t=s.quoted(text))
    return Request(ask, (f"Resolve {called} with some words.", f"Write {s.quoted(text)}."))


def close(s: Scene) -> Request:
    number, called = _ticket(s)
    s.do("close_ticket", ticket_id=number)
    ask = s.say("Close {c}.", "Please close {c}, it is not needed any more.", c=called)
    return Request(ask, ("Close a ticket.", f"I mean {called}."))


def edit(s: Scene) -> Request:
    number, called = _ticket(s)
    priority = s.rng.randint(1, 5)
    s.do("edit_ticket", ticket_id=number, updates={"priority": priority})
    ask = s.say("Set the priority of {c} to {p}.", "Change {c} to priority {p}.", c=called, p=priority)
    return Request(ask, (f"Change the priority of {called}.", f"To {priority}."))


# -- MathAPI


def numbers(rng: random.Random) -> dict[str, Any]:
    """It has no state."""
    return {}


def _values(s: Scene) -> tuple[list[float], str]:
    """A few numbers to compute with, and how the user tells them."""
    tires = s.world.instances.get("VehicleControlAPI")
    if tires and s.maybe(0.5):
        result = s.do("check_tire_pressure")
        return [value for key, value in result.items() if key.endswith("TirePressure")], "my four tire pressures"
    values = [s.pick((s.rng.randint(1, 100), round(s.rng.uniform(1, 100), 1))) for _ in range(s.rng.randint(3, 5))]
    return values, " and ".join([", ".join(map(str, values[:-1])), str(values[-1])])


def mean(s: Scene) -> Request:
    values, told = _values(s)
    s.do("mean", numbers=values)
    return Request(s.say("What is the average of {v}?", "Compute the mean of {v}.", v=told))


def deviation(s: Scene) -> Request:
    values, told = _values(s)
    s.do("standard_deviation", numbers=values)
    return Request(s.say("What is the standard deviation of {v}?", "Compute the standard deviation of {v}.", v=told))


def logarithm(s: Scene) -> Request:
    base, precision = s.pick((2, 5, 6, 10, 20)), s.rng.randint(2, 10)
    if "distance" in s.last and s.maybe(0.6):
        value, told = s.last["distance"], "that distance"
    else:
        value = s.rng.randint(2, 900)
        told = str(value)
    s.do("logarithm", value=value, base=base, precision=precision)
    ask = s.say(
        "What is the logarithm of {v} to the base {b}, with a precision of {p} digits?",
        "Compute the base {b} logarithm of {v} with {p} digits of precision.",
        v=told,
        b=base,
        p=precision,
    )
    return Request(
        ask, (f"Compute the logarithm of {told} with {precision} digits of precision.", f"To the base {base}.")
    )


def arithmetic(s: Scene) -> Request:
    name, word = s.pick((("add", "plus"), ("subtract", "minus"), ("multiply", "times"), ("divide", "divided by")))
    a, b = s.rng.randint(1, 500), s.rng.randint(1, 50)
    s.do(name, a=a, b=b)
    return Request(s.say("How much is {a} {w} {b}?", "What is {a} {w} {b}?", a=a, w=word, b=b))


SIDES = {
    "MessageAPI": (
        messages,
        (*(send,) * 6, *(view_sent,) * 4, *(delete_message,) * 2, add_contact, message_login, search_messages),
    ),
    "TwitterAPI": (posts, (*(post,) * 7, *(retweet,) * 2, *(comment,) * 2, mention, follow)),
    "TicketAPI": (tickets, (*(create_ticket,) * 4, *(get_ticket,) * 2, *(resolve,) * 3, close, edit)),
    "MathAPI": (numbers, (*(mean,) * 3, deviation, *(logarithm,) * 3, arithmetic)),
}
"""World and kinds of request of each, the frequent ones several times."""
