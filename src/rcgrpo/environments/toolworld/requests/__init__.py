"""What users ask for, and how the expert does it: one function per kind of request.

Each takes the scene, acts in its world through ``scene.do`` and returns the user's words. Easy requests need one
look-up and one action at most; hard ones chain results, decide on them, or recover from an error.
"""

from __future__ import annotations

from collections.abc import Callable

from rcgrpo.environments.toolworld.requests import both, calendar, files, mail, shop
from rcgrpo.environments.toolworld.scene import Request, Scene

Kind = Callable[[Scene], Request]

EASY: dict[str, tuple[Kind, ...]] = {
    "files": (
        files.read_file,
        files.remove_file,
        files.move_file,
        files.copy_file,
        files.write_note,
    ),
    "shop": (
        shop.ask_price,
        shop.ask_balance,
        shop.deposit,
        shop.buy,
        shop.watch,
    ),
    "mail": (
        mail.send,
        mail.read_mail,
        mail.trash_mail,
        mail.star_mail,
        mail.block,
    ),
    "calendar": (calendar.ask_when, calendar.book, calendar.cancel, calendar.alert, calendar.shift),
}
"""Requests of each domain that need one look-up and one action at most."""

FOLLOW_UPS: dict[str, tuple[Kind, ...]] = {
    "files": (files.same_file_action,),
    "shop": (shop.buy_more, shop.watch_it, shop.refund),
    "mail": (mail.same_mail_action, mail.send_again),
    "calendar": (calendar.alert_it,),
}
"""Requests that refer to what an earlier turn was about."""

HARD: dict[str, tuple[Kind, ...]] = {
    "files": (files.file_into_new_dir, files.judge_size, files.remove_biggest, files.move_two, files.append_text),
    "shop": (shop.buy_if_cheap, shop.buy_cheaper, shop.buy_with_deposit, shop.buy_all_stock),
    "mail": (mail.forward, mail.judge_mail, mail.send_two, mail.send_or_else),
    "calendar": (calendar.push_back, calendar.book_or_next, calendar.book_first_free, calendar.clear_morning),
}
"""Requests of each domain that chain results, decide on them, or recover from an error."""

BOTH: dict[frozenset[str], tuple[Kind, ...]] = {
    frozenset(("shop", "mail")): (both.send_price,),
    frozenset(("files", "mail")): (both.send_file, both.note_mail),
    frozenset(("calendar", "mail")): (both.send_when,),
    frozenset(("files", "shop")): (both.note_price,),
    frozenset(("shop", "calendar")): (both.book_if_cheap,),
    frozenset(("files", "calendar")): (both.note_when,),
}
"""Hard requests that carry a result from one domain to another."""
