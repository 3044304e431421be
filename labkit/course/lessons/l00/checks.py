"""Exercises of lesson 00."""

import math

from labkit.course.checks import exercise
from labkit.portraits import ATTRIBUTES, PortraitSpec, caption


def open_attributes(caption):
    """The attributes that a caption leaves open, in the order of `ATTRIBUTES`."""
    return [name for name in ATTRIBUTES if name not in caption.named]


@exercise("l00.open_attributes", reference=open_attributes)
def check_open_attributes(c, fn):
    c.callable(fn)
    spec = PortraitSpec()
    some = caption(spec, drop=["mood", "skin"])
    got = c.call(fn, some)
    c.instance(got, list)
    c.mistake("l00.named_instead", when=set(got) == set(some.named))
    c.mistake("l00.everything", when=set(got) == set(ATTRIBUTES))
    c.equal(got, ["skin", "mood"])
    c.equal(c.call(fn, caption(spec)), [])
    c.equal(c.call(fn, caption(spec, drop=ATTRIBUTES)), list(ATTRIBUTES))


@check_open_attributes.wrong("l00.named_instead")
def _(caption):
    return [name for name in ATTRIBUTES if name in caption.named]


@check_open_attributes.wrong("l00.everything")
def _(caption):
    return list(ATTRIBUTES)


def faithfulness(named, asked, read):
    """Share of the named attributes whose read value is the one asked for; 1 if none is named."""
    return sum(asked[name] == read[name] for name in named) / len(named) if named else 1.0


@exercise("l00.faithfulness", reference=faithfulness)
def check_faithfulness(c, fn):
    c.callable(fn)
    asked = PortraitSpec().to_dict()
    other = {"mood": "sad", "glasses": "sunglasses", "clothes": "purple", "background": "lemon"}
    assert all(asked[name] != value for name, value in other.items())
    read, named = asked | other, {"mood", "hair_color", "skin", "glasses"}
    got = c.number(c.call(fn, set(named), dict(asked), dict(read)))
    c.mistake("l00.all_nine", got=got, looks_like=5 / 9)
    c.mistake("l00.a_count", got=got, looks_like=2.0)
    c.hand(c.call(fn, {"mood", "skin"}, dict(asked), dict(read)), 0.5)
    c.close(got, 0.5)
    c.close(c.call(fn, {"style", "mood", "clothes"}, dict(asked), dict(read)), 1 / 3)
    c.close(c.call(fn, set(), dict(asked), dict(read)), 1.0, key="l00.nothing_named")


@check_faithfulness.wrong("l00.all_nine")
def _(named, asked, read):
    return sum(asked[name] == read[name] for name in asked) / len(asked)


@check_faithfulness.wrong("l00.a_count")
def _(named, asked, read):
    return float(sum(asked[name] == read[name] for name in named)) if named else 1.0


@check_faithfulness.wrong("l00.nothing_named")
def _(named, asked, read):
    return sum(asked[name] == read[name] for name in named) / len(named) if named else 0.0


def missing_pairs(rows, at_least):
    """Pairs ((attribute, value), (attribute, value)) that never meet although at least so many should by chance."""
    having = {}
    for i, row in enumerate(rows):
        for item in row.items():
            having.setdefault(item, set()).add(i)
    place = {name: k for k, name in enumerate(rows[0])}
    items = sorted(having, key=lambda item: place[item[0]])
    return [
        (a, b)
        for i, a in enumerate(items)
        for b in items[i + 1 :]
        if a[0] != b[0] and len(having[a]) * len(having[b]) / len(rows) >= at_least and not having[a] & having[b]
    ]


@exercise("l00.missing_pairs", reference=missing_pairs)
def check_missing_pairs(c, fn):
    c.callable(fn)
    rows = [
        {"x": x, "y": y, "z": z}
        for x, y, z in [
            (1, "a", 0),
            (1, "a", 1),
            (1, "b", 0),
            (2, "b", 1),
            (2, "b", 0),
            (2, "c", 1),
            (1, "a", 0),
            (2, "b", 0),
        ]
    ]
    got = c.call(fn, [dict(row) for row in rows], 1)
    c.instance(got, (list, set, tuple))
    found = {tuple(map(tuple, pair)) for pair in got}
    c.mistake("l00.same_attribute", when=any(a[0] == b[0] for a, b in found))
    meets = any(row[a[0]] == a[1] and row[b[0]] == b[1] for a, b in found for row in rows)
    c.mistake("l00.they_meet", when=meets)
    c.mistake("l00.never_expected", when=(("x", 1), ("y", "c")) in found)
    c.equal(sorted(found), [(("x", 2), ("y", "a"))])
    four = [{"x": 1, "y": 0}, {"x": 1, "y": 0}, {"x": 0, "y": 1}, {"x": 0, "y": 1}]
    few = c.call(fn, [dict(row) for row in four], 1)
    c.require((("x", 1), ("y", 1)) in {tuple(map(tuple, pair)) for pair in few}, "check.hand")
    c.equal(list(c.call(fn, [dict(row) for row in four], 2)), [])


@check_missing_pairs.wrong("l00.never_expected")
def _(rows, at_least):
    return missing_pairs(rows, 0)


@check_missing_pairs.wrong("l00.they_meet")
def _(rows, at_least):
    items = list(dict.fromkeys(item for row in rows for item in row.items()))
    return [(a, b) for i, a in enumerate(items) for b in items[i + 1 :] if a[0] < b[0]]


@check_missing_pairs.wrong("l00.same_attribute")
def _(rows, at_least):
    items = list(dict.fromkeys(item for row in rows for item in row.items()))
    pairs = [(a, b) for i, a in enumerate(items) for b in items[i + 1 :]]
    return [(a, b) for a, b in pairs if not any(set((a, b)) <= set(row.items()) for row in rows)]


def portraits_left(named, choices):
    """How many portraits fit a caption that names these attributes: the product over what it leaves open."""
    return math.prod(len(values) for name, values in choices.items() if name not in named)


@exercise("l00.portraits_left", reference=portraits_left)
def check_portraits_left(c, fn):
    c.callable(fn)
    choices = {"x": ["a", "b"], "y": ["a", "b", "c"], "z": ["a", "b", "c", "d", "e", "f", "g"]}
    got = c.number(c.call(fn, {"z"}, {name: list(values) for name, values in choices.items()}))
    c.mistake("l00.named_choices", got=got, looks_like=7)
    c.mistake("l00.added", got=got, looks_like=2 + 3)
    c.mistake("l00.all_choices", got=got, looks_like=2 * 3 * 7)
    c.hand(c.call(fn, {"x"}, {"x": [1, 2], "y": [1, 2, 3]}), 3)
    c.close(got, 6)
    c.close(c.call(fn, set(), choices), 42)
    c.close(c.call(fn, set(choices), choices), 1, key="l00.one_left")


@check_portraits_left.wrong("l00.named_choices")
def _(named, choices):
    return math.prod(len(choices[name]) for name in named)


@check_portraits_left.wrong("l00.added")
def _(named, choices):
    return sum(len(values) for name, values in choices.items() if name not in named)


@check_portraits_left.wrong("l00.all_choices")
def _(named, choices):
    return math.prod(len(values) for values in choices.values())


@check_portraits_left.wrong("l00.one_left")
def _(named, choices):
    count = math.prod(len(values) for name, values in choices.items() if name not in named)
    return count if len(named) < len(choices) else 0


def misses(named, asked, reads):
    """Per named attribute the share of the pictures in which it is not as asked, as a dictionary."""
    return {name: sum(read[name] != asked[name] for read in reads) / len(reads) for name in named}


@exercise("l00.misses", reference=misses)
def check_misses(c, fn):
    c.callable(fn)
    asked = {"x": 1, "y": 1, "z": 1}
    reads = [{"x": 1, "y": 2, "z": 2}, {"x": 1, "y": 2, "z": 2}, {"x": 2, "y": 2, "z": 1}, {"x": 1, "y": 1, "z": 2}]
    got = c.call(fn, {"x", "y"}, dict(asked), [dict(read) for read in reads])
    c.instance(got, dict)
    c.mistake("l00.open_too", when="z" in got)
    c.keys(got, ["x", "y"])
    shares = [c.number(got[name]) for name in "xy"]
    c.mistake("l00.hits", got=shares, looks_like=[0.75, 0.25])
    c.mistake("l00.counts", got=shares, looks_like=[1, 3])
    c.hand(shares, [0.25, 0.75])
    c.equal(dict(c.call(fn, {"z"}, {"z": 5}, [{"z": 5}, {"z": 5}])), {"z": 0.0})


@check_misses.wrong("l00.open_too")
def _(named, asked, reads):
    return {name: sum(read[name] != asked[name] for read in reads) / len(reads) for name in reads[0]}


@check_misses.wrong("l00.hits")
def _(named, asked, reads):
    return {name: sum(read[name] == asked[name] for read in reads) / len(reads) for name in named}


@check_misses.wrong("l00.counts")
def _(named, asked, reads):
    return {name: sum(read[name] != asked[name] for read in reads) for name in named}
