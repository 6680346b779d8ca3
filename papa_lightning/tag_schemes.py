"""Schemes of tags that mark entities in sentences: recognition, reading and writing."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

Scheme = Literal["IOB2", "IOB1", "IO", "IOBES", "BILOU"]
"""Scheme of tags. A tag is `O`, or a mark, a hyphen and the kind of the entity: `B-PER`."""

OUTSIDE = "O"


class Rules(NamedTuple):
    """Meanings of pairs of neighbouring tags, as patterns: both marks, and a comparison of the kinds.

    `*` stands for any mark or kinds, `=` for equal kinds, `!` for different ones.

    Args:
        marks: All marks but O.
        starts: Pairs in which the second tag begins an entity.
        goes_on: Pairs in which the second tag continues the entity of the first.
        ends: Pairs in which the entity of the first tag is complete.
    """

    marks: str
    starts: frozenset[str]
    goes_on: frozenset[str]
    ends: frozenset[str]


def _rules(marks: str, starts: str, goes_on: str, ends: str) -> Rules:
    """Rules from patterns between blanks."""
    return Rules(marks, *(frozenset(patterns.split()) for patterns in (starts, goes_on, ends)))


#: As seqeval reads them strictly (IO, which it does not know, by the same idea). Sources: Ramshaw and Marcus, "Text
#: Chunking using Transformation-Based Learning", 1995 (IOB1); Ratnaparkhi 1998 (IOB2); Ratinov and Roth, "Design
#: Challenges and Misconceptions in Named Entity Recognition", 2009 (BILOU, which is IOBES under other letters).
RULES: Mapping[Scheme, Rules] = {
    "IOB2": _rules("BI", "*B*", "BI= II=", "IO* II! IB* BO* BI! BB*"),
    "IOB1": _rules("BI", "OI* II! BI* IB= BB=", "BI= II=", "II! IO* IB* BO* BI! BB="),
    "IO": _rules("I", "OI* II!", "II=", "IO* II!"),
    "IOBES": _rules("BIES", "*B* *S*", "BI= BE= II= IE=", "S** E**"),
    "BILOU": _rules("BILU", "*B* *U*", "BI= BL= II= IL=", "U** L**"),
}


def matches(patterns: frozenset[str], before: str, tag: str) -> bool:
    """Whether two neighbouring tags match a pattern of `Rules`."""
    kinds = "=" if before[2:] == tag[2:] else "!"
    return any(
        all(sign in (found, "*") for sign, found in zip(pattern, (before[0], tag[0], kinds), strict=True))
        for pattern in patterns
    )


def is_tag(name: str, marks: str) -> bool:
    """Whether a name is a tag with one of some marks, or O."""
    return name == OUTSIDE or (len(name) > 2 and name[1] == "-" and name[0] in marks)


def scheme_of(label_names: Sequence[str]) -> Scheme | None:
    """Scheme of tags, recognised by their names; None for names of no scheme or of several.

    With B- and I- alone it is IOB2 if each kind has B-, and IOB1 if each has I-; IOBES and BILOU have B- and E- (L-)
    for the same kinds, and S- (U-).

    Example:
        >>> scheme_of(("O", "B-PER", "I-PER")), scheme_of(("O", "I-PER", "I-LOC", "B-LOC")), scheme_of(("O", "I-PER"))
        ('IOB2', 'IOB1', 'IO')
    """
    if not all(is_tag(name, "BIESLU") for name in label_names):
        return None
    kinds = {mark: {name[2:] for name in label_names if name[0] == mark and name != OUTSIDE} for mark in "BIESLU"}
    marks = {mark for mark, found in kinds.items() if found}
    if not marks:
        return None
    if marks <= set("BI"):
        if kinds["I"] <= kinds["B"]:
            return "IOB2"
        return "IO" if marks == {"I"} else "IOB1" if kinds["B"] <= kinds["I"] else None
    candidates: tuple[tuple[Scheme, str, str], ...] = (("IOBES", "E", "S"), ("BILOU", "L", "U"))
    for scheme, last, single in candidates:
        if marks <= set(RULES[scheme].marks) and kinds["B"] == kinds[last] >= kinds["I"] and kinds[single]:
            return scheme
    return None


def looks_tagged(label_names: Sequence[str]) -> bool:
    """Whether names look like tags of entities: O, and others that begin with a capital letter and a hyphen."""
    others = [name for name in label_names if name != OUTSIDE]
    return len(others) < len(label_names) and bool(others) and all(is_tag(name, name[:1].upper()) for name in others)


class Entity(NamedTuple):
    """Entity of a sentence: first word, word after the last one, and kind."""

    start: int
    stop: int
    kind: str


def read_entities(tags: Sequence[str]) -> list[Entity]:
    """Entities of a sentence, also from tags that break their scheme: a tag that continues nothing begins an entity.

    Example:
        >>> read_entities(["I-PER", "I-PER", "B-PER", "O", "S-LOC"])
        [Entity(start=0, stop=2, kind='PER'), Entity(start=2, stop=3, kind='PER'), Entity(start=4, stop=5, kind='LOC')]
    """
    found: list[Entity] = []
    for place, (before, tag) in enumerate(zip([OUTSIDE, *tags], tags, strict=False)):
        if tag == OUTSIDE:
            continue
        begins = tag[0] in "BSU" or before == OUTSIDE or before[0] in "ESLU" or before[2:] != tag[2:]
        start = place if begins else found.pop().start
        found.append(Entity(start, place + 1, tag[2:]))
    return found


_MARKS: Mapping[Scheme, tuple[str, str, str]] = {
    "IOB2": ("B", "I", "B"),
    "IOB1": ("I", "I", "I"),
    "IO": ("I", "I", "I"),
    "IOBES": ("B", "E", "S"),
    "BILOU": ("B", "L", "U"),
}
"""Marks of the first, the last and the only word of an entity."""


def write_entities(entities: Sequence[Entity], length: int, scheme: Scheme) -> list[str]:
    """Tags of a sentence of `length` words, from its entities in order.

    Example:
        >>> write_entities([Entity(0, 2, "PER"), Entity(2, 3, "PER")], 4, "IOBES")
        ['B-PER', 'E-PER', 'S-PER', 'O']
    """
    tags = [OUTSIDE] * length
    for start, stop, kind in entities:
        first, last, single = _MARKS[scheme]
        if scheme == "IOB1" and start > 0 and tags[start - 1][2:] == kind:
            first = single = "B"
        marks = single if stop - start == 1 else first + "I" * (stop - start - 2) + last
        tags[start:stop] = [f"{mark}-{kind}" for mark in marks]
    return tags


def fit_tags(tags: Sequence[str], kept: Sequence[int], scheme: Scheme) -> list[str]:
    """Tags of the words that are left of a sentence, `kept` by number; the rest of an entity remains an entity."""
    left: list[Entity] = []
    for start, stop, kind in read_entities(tags):
        if places := [place for place, word in enumerate(kept) if start <= word < stop]:
            left.append(Entity(places[0], places[-1] + 1, kind))
    return write_entities(left, len(kept), scheme)
