"""Worlds and requests of GorillaFileSystem."""

from __future__ import annotations

import random
from typing import Any

from rcgrpo.environments.bfcl.synthetic.scene import Request, Scene, Unfit
from rcgrpo.environments.bfcl.synthetic.words import DIRS, FIRST, NOUNS, file_name, remark, sentence

CLASS = "GorillaFileSystem"


def config(rng: random.Random) -> dict[str, Any]:
    """A home of two to four folders, some nested, with a few files each."""
    names = rng.sample(DIRS, 7)

    def folder(depth: int) -> dict[str, Any]:
        contents: dict[str, Any] = {}
        for _ in range(rng.randint(1, 3)):
            contents[file_name(rng)] = {"type": "file", "content": _content(rng)}
        if rng.random() < 0.1:
            contents[f".{rng.choice(NOUNS)}"] = {"type": "file", "content": _content(rng)}
        if depth < 2:
            for _ in range(rng.randint(0, 2) if depth else rng.randint(1, 3)):
                if names:
                    name = names.pop()
                    contents[name] = folder(depth + 1) if rng.random() < 0.8 else {"type": "directory", "contents": {}}
        return {"type": "directory", "contents": dict(rng.sample(list(contents.items()), len(contents)))}

    return {"root": {rng.choice([*DIRS, *(name.lower() for name in FIRST)]): folder(0)}}


def _content(rng: random.Random) -> str:
    return rng.choice((" ", "\n", "\n")).join(sentence(rng) for _ in range(rng.randint(1, 4)))


# -- where things are


def _here(s: Scene) -> Any:
    return s.api(CLASS)._current_dir


def _folders(s: Scene) -> list[Any]:
    """Every directory, the root first."""
    found = [s.api(CLASS).root]
    for folder in found:
        found += [item for item in folder.contents.values() if hasattr(item, "contents")]
    return found


def _inner(folder: Any) -> list[str]:
    return [name for name, item in folder.contents.items() if hasattr(item, "contents")]


def _files(folder: Any) -> list[str]:
    return [name for name, item in folder.contents.items() if not hasattr(item, "contents")]


def _somewhere(s: Scene, files: int = 0, inner: int = 0) -> Any:
    """A folder with so many files and folders, the current one where it will do, more often than not."""
    here = _here(s)
    fits = [folder for folder in _folders(s) if len(_files(folder)) >= files and len(_inner(folder)) >= inner]
    return here if here in fits and s.maybe(0.6) else s.pick(fits)


def _lineage(folder: Any) -> list[Any]:
    line = [folder]
    while line[-1].parent is not None:
        line.append(line[-1].parent)
    return line[::-1]


def _go(s: Scene, folder: Any) -> str:
    """Change to ``folder``, and how the user says where it is."""
    ours, theirs = _lineage(_here(s)), _lineage(folder)
    shared = sum(a is b for a, b in zip(ours, theirs, strict=False))
    if len(ours) == shared == len(theirs):
        return s.say("", "", "", " here", " in the current directory", " in this folder")
    for _ in ours[shared:]:
        s.do("cd", folder="..")
    for step in theirs[shared:]:
        s.do("cd", folder=step.name)
    if len(theirs) == 1:
        return s.say(" in the top folder", " in the root directory {n}", n=folder.name)
    path = [step.name for step in theirs[shared:]]
    if len(path) > 1:
        return s.say(
            " in {i}, which is inside {o}", " in the {i} folder under {o}", i=path[-1], o=" and then ".join(path[:-1])
        )
    if not path:
        return s.say(" back in {n}", " one level up in {n}", n=folder.name)
    return s.say(" in {n}", " in the {n} folder", " inside the directory {n}", n=folder.name)


def _find(s: Scene, folder: Any, name: str) -> str:
    """Go where a file is: told by the user, or found first."""
    everywhere = [file for f in _folders(s) for file in f.contents]
    below = _here(s) in _lineage(folder)[:-1]
    if below and sum(name in other for other in everywhere) == 1 and s.maybe(0.4):
        s.do("find", path=".", name=name)
        _go(s, folder)
        return s.say(" somewhere below here", ", wherever it is", " (please find out where it is)")
    return _go(s, folder)


def _one(s: Scene) -> tuple[str, str]:
    """A file to work on, where the expert then is, and how the user says where: the last one or any."""
    if "file" in s.last and s.maybe(0.35):
        name = s.last["file"]
        if name in _files(_here(s)):
            return name, ""
    folder = _somewhere(s, files=1)
    name = s.pick(_files(folder))
    where = _find(s, folder, name)
    s.last["file"] = name
    return name, where


def _about(s: Scene, name: str) -> str:
    return s.say("{f}", "'{f}'", "the file {f}", "the file '{f}'", f=name)


# -- reading


def read_file(s: Scene) -> Request:
    name, where = _one(s)
    s.do("cat", file_name=name)
    ask = s.say(
        "Show me what is in {f}{w}.",
        "What does {f}{w} say?",
        "Print the contents of {f}{w}.",
        "I would like to read {f}{w}.",
        "Open {f}{w} and let me see its text.",
        f=_about(s, name),
        w=where,
    )
    return Request(ask, (s.say("Show me one of my files.", "I want to read a file."), f"I mean {name}{where}."))


def search_file(s: Scene) -> Request:
    name, where = _one(s)
    words = [word.strip(".:,") for word in _here(s).contents[name].content.split()]
    word = s.pick(word for word in words if len(word) > 3)
    s.do("grep", file_name=name, pattern=word)
    ask = s.say(
        "Which lines of {f}{w} mention '{p}'?",
        "Search {f}{w} for '{p}'.",
        "Find every line with the word '{p}' in {f}{w}.",
        "Look for the term '{p}' in {f}{w} and show the lines.",
        f=_about(s, name),
        w=where,
        p=word,
    )
    vague = s.say("Search {f}{w} for a certain word.", "Find some lines in {f}{w}.", f=name, w=where)
    return Request(ask, (vague, s.say("The word is '{p}'.", "Search for '{p}'.", p=word)))


def count(s: Scene) -> Request:
    name, where = _one(s)
    mode = s.pick("lwc")
    s.do("wc", file_name=name, mode=mode)
    unit = {"l": "lines", "w": "words", "c": "characters"}[mode]
    ask = s.say(
        "How many {u} does {f}{w} have?",
        "Count the {u} of {f}{w}.",
        "Tell me the number of {u} in {f}{w}.",
        u=unit,
        f=_about(s, name),
        w=where,
    )
    vague = s.say("How long is {f}{w}?", "Count what is in {f}{w}.", f=name, w=where)
    return Request(ask, (vague, s.say("In {u}.", "I mean the number of {u}.", u=unit)))


def sort_file(s: Scene) -> Request:
    name, where = _one(s)
    s.do("sort", file_name=name)
    ask = s.say(
        "Sort the lines of {f}{w}.",
        "Show {f}{w} with its lines in alphabetical order.",
        "Put {f}{w} into order, line by line.",
        f=_about(s, name),
        w=where,
    )
    return Request(ask, (s.say("Sort a file for me."), f"It is {name}{where}."))


def last_lines(s: Scene) -> Request:
    name, where = _one(s)
    lines = s.pick((1, 1, 2, 3, 5, 10))
    s.do("tail", file_name=name, lines=lines)
    if lines == 1:
        ask = s.say("Show the last line of {f}{w}.", "What is the final line of {f}{w}?", f=_about(s, name), w=where)
    else:
        ask = s.say(
            "Show the last {n} lines of {f}{w}.",
            "Display the final {n} lines of {f}{w}.",
            f=_about(s, name),
            w=where,
            n=lines,
        )
    vague = s.say("Show me the end of {f}{w}.", f=name, w=where)
    return Request(ask, (vague, f"The last {lines} line{'s' * (lines > 1)}."))


def compare(s: Scene) -> Request:
    folder = _somewhere(s, files=2)
    a, b = s.sample(_files(folder), 2)
    where = _go(s, folder)
    s.do("diff", file_name1=a, file_name2=b)
    ask = s.say(
        "What is the difference between {a} and {b}{w}?",
        "Compare '{a}' with '{b}'{w}.",
        "Tell me how {a} differs from {b}{w}.",
        a=a,
        b=b,
        w=where,
    )
    return Request(ask, (s.say("Compare {a}{w} with the other one.", a=a, w=where), f"The other one is {b}."))


def list_files(s: Scene) -> Request:
    folder = _somewhere(s)
    where, hidden = _go(s, folder) or " here", s.maybe(0.6)
    if hidden:
        s.do("ls", a=True)
        ask = s.say(
            "List everything{w}, hidden files too.", "Which files are there{w}? Include the hidden ones.", w=where
        )
    else:
        s.do("ls")
        ask = s.say("List the files{w}.", "What is there{w}?", "Show me the contents of the folder{w}.", w=where)
    return Request(ask)


def find_named(s: Scene) -> Request:
    name = s.pick(file for folder in _folders(s) for file in _files(folder) if "." in file[1:])
    part = s.pick((name, name.rsplit(".")[0], name[: max(3, len(name) // 2)].split("_")[0]))
    s.do("find", path=".", name=part)
    ask = s.say(
        "Find all files with '{p}' in their name.",
        "Where are the files that have '{p}' in the name?",
        "Locate whatever is called something like '{p}', from here downwards.",
        "Search the current directory and below for names that contain '{p}'.",
        p=part,
    )
    return Request(ask, (s.say("Find some files for me.", "Locate a file."), f"The name has '{part}' in it."))


def disk_usage(s: Scene) -> Request:
    folder = _somewhere(s)
    where = _go(s, folder) or " here"
    if s.maybe(0.7):
        s.do("du", human_readable=True)
        return Request(
            s.say(
                "How much space is used{w}, in human readable form?", "Show the human-readable disk usage{w}.", w=where
            )
        )
    s.do("du")
    return Request(s.say("How many bytes are used{w}?", "What is the disk usage{w}, in plain bytes?", w=where))


def where_am_i(s: Scene) -> Request:
    s.do("pwd")
    return Request(s.say("Where am I?", "What is the current working directory?", "Tell me the path I am in."))


def go_to(s: Scene) -> Request:
    inner = s.pick(_inner(_here(s)))
    s.do("cd", folder=inner)
    if s.maybe(0.5):
        s.do("ls")
        return Request(s.say("Go to {d} and list its files.", "Open the {d} folder, what is in there?", d=inner))
    return Request(s.say("Go into {d}.", "Change to the {d} directory.", "Enter the folder {d}.", d=inner))


# -- writing


def _new_name(s: Scene) -> str:
    name = file_name(s.rng)
    if name in _here(s).contents:
        raise Unfit("taken")
    return name


def new_folder(s: Scene) -> Request:
    where = _go(s, _somewhere(s))
    name = s.pick(
        n for n in (*DIRS, *(f"{noun}_{s.rng.randint(1, 99)}" for noun in NOUNS)) if n not in _here(s).contents
    )
    s.do("mkdir", dir_name=name)
    ask = s.say(
        "Make a new folder {n}{w}.",
        "Create a directory called '{n}'{w}.",
        "I need a folder with the name {n}{w}.",
        n=name,
        w=where,
    )
    return Request(ask, (f"Make a new folder{where}.", s.say("Call it {n}.", "Its name is '{n}'.", n=name)))


def new_file(s: Scene) -> Request:
    where = _go(s, _somewhere(s))
    name = _new_name(s)
    s.do("touch", file_name=name)
    s.last["file"] = name
    if s.maybe(0.35):
        ask = s.say("Create an empty file {n}{w}.", "Make a new file called '{n}'{w}.", n=name, w=where)
        return Request(ask, (f"Create a new file{where}.", s.say("Name it {n}.", "'{n}'.", n=name)))
    text = remark(s.rng)
    s.do("echo", content=text, file_name=name)
    ask = s.say(
        "Create a file {n}{w} that says {t}.",
        "Write {t} into a new file named '{n}'{w}.",
        "Make '{n}'{w} and put {t} in it.",
        n=name,
        w=where,
        t=s.quoted(text),
    )
    vague = s.say("Create a file {n}{w} with some text.", n=name, w=where)
    return Request(ask, (vague, s.say("The text is {t}.", "Write {t}.", t=s.quoted(text))))


def overwrite(s: Scene) -> Request:
    name, where = _one(s)
    text = remark(s.rng)
    s.do("echo", content=text, file_name=name)
    ask = s.say(
        "Replace the text of {f}{w} by {t}.",
        "Write {t} to {f}{w}.",
        "{f}{w} should say {t} from now on.",
        f=_about(s, name),
        w=where,
        t=s.quoted(text),
    )
    return Request(ask, (f"Write something to {name}{where}.", s.say("Write {t}.", t=s.quoted(text))))


def write_count(s: Scene) -> Request:
    name, where = _one(s)
    mode, unit = s.pick((("l", "lines"), ("w", "words"), ("c", "characters")))
    number = s.do("wc", file_name=name, mode=mode)["count"]
    new = _new_name(s)
    s.do("touch", file_name=new)
    s.do("echo", content=str(number), file_name=new)
    ask = s.say(
        "Count the {u} of {f}{w} and write just the number into a new file {n}.",
        "How many {u} does {f}{w} have? Put the number, and nothing else, into '{n}', which you have to create.",
        u=unit,
        f=_about(s, name),
        w=where,
        n=new,
    )
    return Request(ask, (f"Count the {unit} of {name}{where} and write it down.", f"Into a new file {new}."))


def copy_text(s: Scene) -> Request:
    name, where = _one(s)
    text = s.do("cat", file_name=name)["file_content"]
    new = _new_name(s)
    s.do("touch", file_name=new)
    s.do("echo", content=text, file_name=new)
    ask = s.say(
        "Make a file {n} with the same text as {f}{w}.",
        "Read {f}{w} and write its exact contents into a new file '{n}'.",
        f=_about(s, name),
        w=where,
        n=new,
    )
    return Request(ask, (f"Make another file with the text of {name}{where}.", f"Name it {new}."))


def _into(s: Scene, function: str, verbs: tuple[str, ...]) -> Request:
    folder = _somewhere(s, files=1, inner=1)
    name, to = s.pick(_files(folder)), s.pick(_inner(folder))
    where = _go(s, folder)
    s.do(function, source=name, destination=to)
    if s.maybe(0.3):
        s.do("cd", folder=to)
        s.do("ls")
        tail = s.say(" Then go there and list what is in it.", " After that, change to {t} and show its files.", t=to)
    else:
        tail = ""
    ask = s.say("{v} {f}{w} into {t}.", "{v} '{f}'{w} to the {t} folder.", v=s.pick(verbs), f=name, w=where, t=to)
    vague = s.say("{v} {f}{w} to another folder.", v=s.pick(verbs), f=name, w=where)
    return Request(ask + tail, (vague, s.say("To {t}.", "I mean {t}.", t=to) + tail))


def move(s: Scene) -> Request:
    return _into(s, "mv", ("Move", "Shift", "Transfer", "Put"))


def copy(s: Scene) -> Request:
    return _into(s, "cp", ("Copy", "Duplicate", "Back up"))


def move_to_new_folder(s: Scene) -> Request:
    name, where = _one(s)
    to = s.pick(d for d in DIRS if d not in _here(s).contents)
    s.do("mkdir", dir_name=to)
    s.do("mv", source=name, destination=to)
    ask = s.say(
        "Make a folder {t} and move {f}{w} into it.",
        "Move {f}{w} to '{t}' in the same directory. Create that folder first.",
        f=_about(s, name),
        w=where,
        t=to,
    )
    return Request(ask, (f"Move {name}{where} to a new folder.", f"The folder should be called {to}."))


def rename(s: Scene) -> Request:
    name, where = _one(s)
    new = _new_name(s)
    s.do("mv", source=name, destination=new)
    s.last["file"] = new
    ask = s.say(
        "Rename {f}{w} to {n}.",
        "Give {f}{w} the new name '{n}'.",
        "Change the name of {f}{w} into {n}.",
        f=_about(s, name),
        w=where,
        n=new,
    )
    return Request(ask, (f"Rename {name}{where}.", s.say("To {n}.", "The new name is {n}.", n=new)))


def copy_as(s: Scene) -> Request:
    folder = _somewhere(s, files=1, inner=1)
    name, to = s.pick(_files(folder)), s.pick(_inner(folder))
    where = _go(s, folder)
    s.do("cp", source=name, destination=to)
    s.do("cd", folder=to)
    new = _new_name(s)
    s.do("mv", source=name, destination=new)
    s.last["file"] = new
    ask = s.say(
        "Copy {f}{w} to {t} and rename the copy to {n}.",
        "Put a copy of {f}{w} into {t} under the name '{n}'.",
        f=_about(s, name),
        w=where,
        t=to,
        n=new,
    )
    return Request(ask, (f"Copy {name}{where} to {to} under another name.", f"Name it {new}."))


def remove(s: Scene) -> Request:
    name, where = _one(s)
    s.do("rm", file_name=name)
    s.last.pop("file", None)
    ask = s.say(
        "Delete {f}{w}.", "Remove {f}{w}.", "I do not need {f}{w} any more, get rid of it.", f=_about(s, name), w=where
    )
    return Request(ask, (s.say("Delete a file.", "Remove one of my files."), f"It is {name}{where}."))


def remove_folder(s: Scene) -> Request:
    parent = s.pick(f for f in _folders(s) if any(not _inner(f.contents[name]) for name in _inner(f)))
    name = s.pick(name for name in _inner(parent) if not _inner(parent.contents[name]))
    files = _files(parent.contents[name])
    where = _go(s, parent)
    if files:
        s.do("cd", folder=name)
        s.do("ls", a=True)
        for file in files:
            s.do("rm", file_name=file)
        s.do("cd", folder="..")
        ask = s.say("Delete all files in the folder {d}{w}, and the folder itself.", d=name, w=where)
    else:
        ask = s.say("Remove the empty folder {d}{w}.", "Delete the directory {d}{w}, it is empty.", d=name, w=where)
    s.do("rmdir", dir_name=name)
    return Request(ask, (s.say("Remove one of the folders."), f"I mean {name}{where}."))


KINDS = (
    *(read_file,) * 3, *(search_file,) * 3, *(count,) * 2, *(sort_file,) * 2, *(last_lines,) * 3, *(compare,) * 3,
    *(list_files,) * 3, *(find_named,) * 3, disk_usage, where_am_i, *(go_to,) * 2, *(new_folder,) * 2, *(new_file,) * 5,
    *(overwrite,) * 3, write_count, copy_text, *(move,) * 3, *(copy,) * 3, *(move_to_new_folder,) * 2, rename, copy_as,
    *(remove,) * 3, remove_folder,
)  # fmt: skip
"""The kinds of request, the frequent ones several times."""
