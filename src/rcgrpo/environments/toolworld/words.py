"""The entities that requests and worlds are made of."""


def _words(text: str, separator: str | None = None) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(separator))


ITEMS = _words("""
    lamp chair desk mug kettle radio tent rope drill ladder fan clock mirror vase rug shelf stool bench heater
    toaster blender pan knife fork bowl plate jar box bag belt hat scarf coat boot glove watch ring pen ruler
    stapler globe easel camera tripod guitar drum flute piano bike helmet
""")
"""What the shop sells."""

NAMES = _words("""
    Ana Ben Cleo Dan Eva Finn Gus Hana Ivo Jan Kim Lea Max Nora Omar Pia Quin Rosa Sam Tess Udo Vera Will Xena
    Yara Zoe Adam Bea Carl Dora Emil Fay Gina Hugo Iris Jack Kai Lou Mia Ned
""")
"""Contacts and senders."""

DIRS = _words("""
    docs photos music work home old temp bills trips taxes school plans drafts backup games books
""")
"""Dirs."""

STEMS = _words("""
    notes report budget list plan letter recipe poem diary memo invoice draft essay logo song map menu story
    quiz resume agenda survey contract photo sketch ticket guide table index summary
""")
"""File names, less the extension."""

EXTENSIONS = ("txt", "md", "csv", "doc")

TITLES = _words("""
    dentist gym lunch standup review haircut yoga call interview workshop dinner lesson checkup demo training
    meetup party chess choir swim audit picnic debate concert
""")
"""Calendar entries."""

SAYINGS = _words(
    """
    see you soon, call me back, I am late, dinner is ready, the bus is here,
    happy birthday, meeting moved, all good here, need more time, thanks a lot,
    bring the keys, lunch at noon, train is late, good luck, please reply,
    I agree, not today, maybe tomorrow, on my way, let us talk,
    well done, send the bill, door is open, see page two
""",
    ",",
)
"""Texts of files and mails."""

FILLER_ITEMS = _words("""
    sofa cup spoon towel brush broom bucket hose rake saw nail bolt glue tape cable plug cord soap candle carpet
""")
"""What long_context adds to the shop."""

FILLER_NAMES = _words("""
    Abe Bob Cam Deb Eli Flo Gil Hal Ida Joe Ken Leo Meg Nat Ola Pam Ray Sue Tim Val
""")
"""Senders that long_context adds."""

FILLER_TITLES = _words("""
    news walk dishes series reading homework cards bath sleep tea
""")
"""Evening entries that long_context adds."""
