"""The official ``multi_turn_checker`` as a subprocess: one JSON request per line in, one JSON answer per line out.

Run as ``python official_worker.py HOME``, HOME holding ``bfcl_eval``; it imports nothing of rcgrpo. A request has
``entry`` (id, initial_config, involved_classes), ``gold`` (call strings per turn), ``answer`` (per turn, a list of
steps of call strings) and ``patches``. The answer has ``valid``, ``error`` (the official error type, or the
exception that the checker itself raised) and ``seconds`` (of processor time). A request with ``calls`` (strings) in
place of gold and answer is executed only; the answer has ``results`` (texts), ``seconds`` and ``world_seconds`` (of
making the world).

The official code is used as it is. But it keeps every world it makes in module globals, and lets one world write
into module-level data that later ones read; both are put back after each request, so that each is judged as in a
fresh process. ``patches`` mends two defects of it, to find out whether they are what a difference comes from:
``aliasing`` (worlds that share objects within one entry) and ``rewriting`` (its regular expression that prefixes
function names, also inside text arguments).
"""

import contextlib
import copy
import functools
import inspect
import json
import re
import signal
import sys
import time

SECONDS_PER_REQUEST = 60
"""Afterwards the alarm ends this process: the official executor can hang on arguments, but not on ours."""


def main(home: str) -> None:
    sys.path.insert(0, home)
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever the official code prints must not mix with the answers
    from bfcl_eval.eval_checker.multi_turn_eval import (  # pyright: ignore[reportMissingImports]
        multi_turn_checker,
        multi_turn_utils,
    )
    from bfcl_eval.eval_checker.multi_turn_eval.func_source_code import (  # pyright: ignore[reportMissingImports]
        long_context,
        posting_api,
        travel_booking,
    )

    cards, bookings = long_context.CREDIT_CARD_EXTENSION, long_context.BOOKING_RECORD_EXTENSION
    pristine = copy.deepcopy((cards, bookings))
    patches = {
        "aliasing": lambda: _aliasing_mended(travel_booking.TravelAPI, posting_api.TwitterAPI),
        "rewriting": lambda: _replaced(multi_turn_utils, "_process_method_calls", _prefix_leading_name),
    }
    for number, line in enumerate(sys.stdin):
        request = json.loads(line)
        signal.alarm(SECONDS_PER_REQUEST)
        with contextlib.ExitStack() as mended:
            for name in request["patches"]:
                mended.enter_context(patches[name]())
            if "calls" in request:
                answer = _execute(multi_turn_utils.execute_multi_turn_func_call, request, f"model{number}")
            else:
                answer = _judge(multi_turn_checker.multi_turn_checker, request, f"model{number}")
        signal.alarm(0)
        print(json.dumps(answer), file=answers, flush=True)

        for name in [name for name in vars(multi_turn_utils) if name.endswith("_instance")]:
            delattr(multi_turn_utils, name)
        for live, clean in zip((cards, bookings), pristine, strict=True):
            live.clear()
            live.update(copy.deepcopy(clean))
        for shared in posting_api.TwitterAPI.post_tweet.__defaults__ or ():
            shared.clear()


def _judge(checker, request, model_name):
    entry = request["entry"]
    began = time.thread_time()
    try:
        result = checker(request["answer"], request["gold"], entry, entry["id"].rsplit("_", 1)[0], model_name)
    except Exception as error:  # noqa: BLE001 - whatever the official code raises is its answer
        return {"valid": False, "error": f"raised {type(error).__name__}: {error}", "seconds": 0.0}
    seconds = time.thread_time() - began
    return {"valid": result["valid"], "error": result.get("error_type", ""), "seconds": seconds}


def _execute(executor, request, model_name):
    entry = request["entry"]
    world = (entry["initial_config"], entry["involved_classes"], model_name, entry["id"], "long_context" in entry["id"])
    made = time.thread_time()
    executor([], *world)  # the worlds are made here
    began = time.thread_time()
    results = [executor([call], *world)[0][0] for call in request["calls"]]
    return {"results": results, "world_seconds": began - made, "seconds": time.thread_time() - began}


@contextlib.contextmanager
def _replaced(owner, name, value):
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


@contextlib.contextmanager
def _aliasing_mended(travel, twitter):
    load, post = travel._load_scenario, twitter.post_tweet

    @functools.wraps(load)
    def load_own(self, scenario, long_context=False):
        load(self, scenario, long_context=long_context)
        self.credit_card_list = copy.deepcopy(self.credit_card_list)
        self.booking_record = copy.deepcopy(self.booking_record)

    @functools.wraps(post)
    def post_own(self, *args, **kwargs):
        given = inspect.signature(post).bind_partial(self, *args, **kwargs).arguments
        return post(self, *args, **{"tags": [], "mentions": [], **kwargs} if len(given) == len(kwargs) + 1 else kwargs)

    with _replaced(travel, "_load_scenario", load_own), _replaced(twitter, "post_tweet", post_own):
        yield


def _prefix_leading_name(call, instances):
    name = re.match(r"\s*([a-zA-Z_]\w*)", call)
    return f"{instances[name[1]]}.{call.lstrip()}" if name and name[1] in instances else call


if __name__ == "__main__":
    main(sys.argv[1])
