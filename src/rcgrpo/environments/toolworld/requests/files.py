"""Requests about files."""

from __future__ import annotations

from rcgrpo.environments.toolworld.scene import Request, Scene, Unfit
from rcgrpo.environments.toolworld.words import DIRS, SAYINGS


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
    vague = s.say("Delete one of my files.", "Get rid of some file.", "Remove the old file.")
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
    vague = s.say("{v} a file to {d}.", "{v} one of my files to {d}.", v=verb, d=to)
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
    vague = s.say("Delete the biggest file in one of the dirs.", "Remove the largest file of some dir.")
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
